"""Which encoders do the benchmarks run? BERTs that are not trained; nothing is measured here."""

from curricle import seeding
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.tapped import TappedModel
from curricle.tasks import TaskData


def encoder(layers: int, width: int, data: TaskData) -> TappedModel:
    """Return a BERT with heads of 64, or one head if it is narrower, without dropout."""
    config = {
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // 64, 1),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    with seeding.scoped(0, f"width {width}"):
        return HuggingFaceSpec(model_type="bert", config=config).build(
            num_inputs=data.num_inputs,
            num_classes=data.num_classes,
            num_positions=data.num_positions,
            padding_token=data.padding_token,
        )
