"""Train a causal language model with the Trainer of transformers.

Its arguments are the folder of the model and the width, such as `teacher 64`.
"""

import sys

import transformers

from texts import blocks, trained_tokenizer

VOCABULARY, LENGTH = 512, 32
SETTINGS = {
    "max_steps": 600,
    "logging_steps": 100,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "seed": 1,
    "disable_tqdm": True,
    "gradient_accumulation_steps": 2,
}


def main(folder: str, width: int, **changes: object) -> dict[str, float]:
    """Return the metrics on held-out text.

    Args:
        folder: Where the model is written.
        width: Width of the model.
        **changes: Settings in place of those above.
    """
    tokenizer = trained_tokenizer(VOCABULARY)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
        )
    )
    data = {
        "train_dataset": blocks("train", tokenizer, LENGTH),
        "eval_dataset": blocks("valid", tokenizer, LENGTH),
        "processing_class": tokenizer,
        "data_collator": transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
    }
    args = transformers.TrainingArguments(output_dir=folder, **SETTINGS | changes)
    trainer = transformers.Trainer(model=model, args=args, **data)
    trainer.train()
    trainer.save_model(folder)
    return trainer.evaluate()


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
