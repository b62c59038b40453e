"""Texts of the three scripts beside this file: the sample in the package, and its tokenizer."""

import gzip
import re
from importlib.resources import files

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BatchEncoding, PreTrainedTokenizerFast

SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
VALIDATION_SHARE = 0.1


def read(split: str) -> str:
    """Return the text of a split, `train` or `valid`."""
    packed = files("curricle.data.text").joinpath("sample/shakespeare.txt.gz").read_bytes()
    text = gzip.decompress(packed).decode()
    border = int(len(text) * (1 - VALIDATION_SHARE))
    return text[:border] if split == "train" else text[border:]


def trained_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the training text, the same at each call."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator([read("train")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def blocks(split: str, tokenizer: PreTrainedTokenizerFast, length: int) -> list[dict[str, object]]:
    """Return the tokens of a split in blocks of equal length."""
    ids = tokenizer(read(split))["input_ids"]
    starts = range(0, len(ids) - length + 1, length)
    return [{"input_ids": ids[start : start + length]} for start in starts]


def lines(split: str, tokenizer: PreTrainedTokenizerFast, length: int) -> list[BatchEncoding]:
    """Return lines of at least four words, with class 1 where somebody is addressed as thou."""
    texts = [line for line in read(split).splitlines() if len(line.split()) > 3]
    examples = [tokenizer(text, truncation=True, max_length=length) for text in texts]
    for text, example in zip(texts, examples, strict=True):
        example.pop("token_type_ids", None)
        example["labels"] = int(re.search(r"\b(thou|thee|thy)\b", text.lower()) is not None)
    return examples
