"""Train a text classifier with the Trainer of transformers.

Its arguments are the folder of the model and the width, such as `teacher 64`.
"""

import sys

import transformers

from curricle.integrations.transformers import CurriculumConfig, CurriculumTrainer
from texts import lines, trained_tokenizer

VOCABULARY, LENGTH = 512, 32
SETTINGS = {
    "num_train_epochs": 2,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "per_device_train_batch_size": 32,
    "learning_rate": 3e-3,
    "seed": 1,
    "disable_tqdm": True,
}


def main(folder: str, width: int, **changes: object) -> dict[str, float]:
    """Return the metrics on held-out text.

    Args:
        folder: Where the model is written.
        width: Width of the model.
        **changes: Settings in place of those above.
    """
    tokenizer = trained_tokenizer(VOCABULARY)
    model = transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=len(tokenizer),
            dim=width,
            hidden_dim=4 * width,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=LENGTH,
        )
    )
    data = {
        "train_dataset": lines("train", tokenizer, LENGTH),
        "eval_dataset": lines("valid", tokenizer, LENGTH),
        "processing_class": tokenizer,
        "compute_metrics": accuracy,
    }
    args = CurriculumConfig(output_dir=folder, curriculum="extraction", **SETTINGS | changes)
    trainer = CurriculumTrainer(model=model, teacher_model="teacher", args=args, **data)
    trainer.train()
    trainer.save_model(folder)
    return trainer.evaluate()


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """Return the share of right classes."""
    classes = prediction.predictions.argmax(-1)
    return {"accuracy": float((classes == prediction.label_ids).mean())}


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
