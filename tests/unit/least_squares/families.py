"""Small models of several families, with weights as after training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from curricle import seeding

TOKENS, LENGTH = 40, 10
SIZES: Mapping[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**SIZES, **IDS, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3ForCausalLM", {**SIZES, **IDS, "num_key_value_heads": 1, "head_dim": 8}),
    "phi": ("PhiForCausalLM", {**SIZES, **IDS}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**SIZES, **IDS, "rotary_pct": 0.5}),
    "gpt2": (
        "GPT2LMHeadModel",
        {**IDS, "vocab_size": TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    ),
    "opt": (
        "OPTForCausalLM",
        {**SIZES, **IDS, "ffn_dim": 24, "word_embed_proj_dim": 16},
    ),
    "bert": ("BertForMaskedLM", SIZES),
    "bert_classifier": ("BertForSequenceClassification", {**SIZES, "num_labels": 3}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"vocab_size": TOKENS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        {**SIZES, **IDS, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "vit": (
        "ViTForImageClassification",
        {
            **{name: SIZES[name] for name in SIZES if "vocab" not in name and "max" not in name},
            "image_size": 8,
            "patch_size": 4,
            "num_labels": 3,
        },
    ),
}
WIDTHS = ("hidden_size", "n_embd", "dim", "word_embed_proj_dim")


def model(family: str, *, seed: int = 0, **fields: Any) -> nn.Module:
    """Return a model in evaluation mode."""
    import transformers

    name, sizes = FAMILIES[family]
    kind = getattr(transformers, name)
    with seeding.scoped(seed, f"least squares {family}"):
        config = kind.config_class(**{**sizes, **fields})
        made: nn.Module = kind(config).eval()
        for parameter in made.parameters():
            if parameter.ndim == 1:
                # Otherwise zeros and ones, which no fit has to find.
                parameter.data += 0.2 * torch.randn(parameter.shape)
            else:
                parameter.data *= 4
    return made


def inputs(family: str, seed: int, examples: int = 8) -> Tensor | dict[str, Tensor]:
    """Return inputs of a batch."""
    generator = seeding.generator(seed, "least squares inputs")
    if family == "vit":
        return torch.randn(examples, 3, 8, 8, generator=generator)
    return {"input_ids": torch.randint(3, TOKENS, (examples, LENGTH), generator=generator)}


def logits(module: nn.Module, batch: Tensor | dict[str, Tensor]) -> Tensor:
    """Return the logits of a model."""
    named = {"pixel_values": batch} if isinstance(batch, Tensor) else batch
    with torch.no_grad():
        output: Tensor = module(**named).logits
    return output
