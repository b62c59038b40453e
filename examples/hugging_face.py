"""Distil a Hugging Face model into a smaller one and save it for `from_pretrained`.

Both are built from configurations here, so that nothing is downloaded; in practice the teacher
comes from `AutoModelForMaskedLM.from_pretrained(...)`.
Run it with: python examples/hugging_face.py
"""

import tempfile
from pathlib import Path

from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

import curricle
from curricle import seeding
from curricle.data.text import MaskedWindows, evaluation_batches, open_or_build

VOCABULARY, WINDOW = 512, 32


def main(steps: int = 200) -> dict[str, float]:
    """Return the metrics of the student.

    Args:
        steps: Length of the teacher's and of the student's training.
    """
    with tempfile.TemporaryDirectory() as folder:
        train, valid = (
            open_or_build(
                "sample", split, vocabulary_size=VOCABULARY, cache_dir=Path(folder, "cache")
            )
            for split in ("train", "valid")
        )
        data = MaskedWindows(train, window=WINDOW, batch_size=16, seed=0)
        held_out = MaskedWindows(valid, window=WINDOW, batch_size=16, seed=0, purpose="evaluation")
        settings = {
            "evaluation": evaluation_batches(held_out, 8),
            "optimizer": curricle.AdamW(learning_rate=3e-3),
        }

        teacher, student = bert(64, "teacher"), bert(32, "student")
        labels = curricle.from_labels(total=f"{steps} steps")
        curricle.distill(teacher, None, labels, data, **settings)
        # Blocks and head of Hugging Face models are found by themselves; here block 1 of 2.
        curriculum = curricle.extraction(
            total=f"{steps} steps", pairs=(curricle.LayerPair(student=1, teacher=1),)
        )
        result = curricle.distill(student, teacher, curriculum, data, **settings)

        student.save_pretrained(Path(folder, "student"))
        AutoModelForMaskedLM.from_pretrained(Path(folder, "student"))
    print(f"student {result.metrics['accuracy']:.3f} masked-token accuracy")
    return result.metrics


def bert(width: int, purpose: str) -> BertForMaskedLM:
    """Return a two-layer BERT whose first weights depend on the purpose only."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
    )
    with seeding.scoped(0, purpose):
        return BertForMaskedLM(config)


if __name__ == "__main__":
    main()
