"""Tasks of run specs: parity, text, grammars, and labeled examples.

A task is a value; `open` gives the streams and held-out batches of a seed, and the sizes that a
model must have. Held-out data never depend on the run's seed, so all runs are judged alike.
"""

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, final

from pydantic import Field

from curricle.data.streams import Stream
from curricle.data.synthetic.grammars import Grammar, shipped
from curricle.data.synthetic.parity import Encoding, ParityStream
from curricle.data.synthetic.pcfg import (
    PCFG_MASKING,
    CausalStrings,
    MaskedStrings,
    PadTo,
    TokenIds,
    sequence_positions,
    sequence_tokens,
)
from curricle.data.text.corpora import names
from curricle.data.text.token_store import TokenStore
from curricle.data.text.windows import CausalWindows, MaskedWindows, Masking, evaluation_batches
from curricle.errors import CurricleError, DataError, SpecError
from curricle.example_tasks import ExamplesTask, TensorsTask
from curricle.extras import imported
from curricle.task_data import EVALUATION_SEED, LANGUAGE_MODELS, BaseTask, TaskData
from curricle.values import value


@final
@value
class ParityTask(BaseTask):
    """Sparse parity of random bits, with fresh samples at every step."""

    kind: Literal["parity"] = "parity"
    num_inputs: int = Field(default=100, gt=0)
    """d, the number of bits."""
    degree: int = Field(default=4, gt=0)
    """k, the number of bits whose product is the label; at most d."""
    depth: int = Field(default=1, gt=0, le=20)
    """D, levels of a tree of parities with 2^D labels; 1 is a single parity, 20 the most."""
    encoding: Encoding = "signs"
    """How bits are read: as signs by an `mlp`, or as tokens by a language model."""
    batch_size: int = Field(default=64, gt=0)
    """Examples a step."""
    evaluation_examples: int = Field(default=4096, gt=0)
    """Held-out examples."""

    @property
    def models(self) -> tuple[str, ...]:
        """Return the kinds of models that can read the data."""
        return ("mlp",) if self.encoding == "signs" else LANGUAGE_MODELS

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions a step; signs have none, so it is the batch size."""
        return self.batch_size * (1 if self.encoding == "signs" else self.num_inputs)

    def tokenizer_digest(self, _cache_dir: Path) -> str:
        """Return the SHA-256 of the tokenizer: none, for the data are no text."""
        return ""

    def write_tokenizer(self, folder: Path, *, cache_dir: Path) -> None:
        """Write nothing, for the data are no text."""

    def open(self, *, seed: int, cache_dir: Path, reader: str = "train") -> TaskData:
        """Return the data of a seed.

        Args:
            seed: Seed of the training data.
            cache_dir: Not used; parity is drawn, not stored.
            reader: Name of the reader; two readers of a seed get different data.
        """
        del cache_dir
        stream = self._stream(self.batch_size, seed, reader)
        are_tokens = self.encoding == "tokens"
        # A language model needs more memory for an example: its held-out data come in parts.
        size = min(self.batch_size, self.evaluation_examples) if are_tokens else None
        held_out = self._stream(size or self.evaluation_examples, EVALUATION_SEED, "evaluation")
        number = -(-self.evaluation_examples // held_out.batch_size)
        tree = "" if self.depth == 1 else f" in a tree of depth {self.depth}"
        return TaskData(
            stream=stream,
            evaluation=tuple(held_out.batch(step) for step in range(number)),
            num_inputs=2**self.depth if are_tokens else self.num_inputs,
            num_classes=2**self.depth,
            num_positions=self.num_inputs if are_tokens else 1,
            name=f"({self.num_inputs},{self.degree})-parity{tree}",
            padding_token=None,
        )

    def _stream(self, batch_size: int, seed: int, purpose: str) -> ParityStream:
        return ParityStream(
            num_inputs=self.num_inputs,
            degree=self.degree,
            batch_size=batch_size,
            seed=seed,
            purpose=purpose,
            depth=self.depth,
            encoding=self.encoding,
        )


@final
@value
class TextTask(BaseTask):
    """Language modeling on a text, with a tokenizer trained on it."""

    kind: Literal["text"] = "text"
    corpus: str | tuple[str, ...] = "sample"
    """A text file, a folder with train, valid and test files, `sample` for the shipped text,
    `datasets:NAME` or `datasets:NAME:CONFIG` for a data set of the Hugging Face Hub, or a list of
    these, read one after another."""
    objective: Literal["masked", "next_token"] = "masked"
    """Predicted tokens: hidden ones (BERT) or the next one (GPT)."""
    vocabulary_size: int = Field(default=4096, gt=0)
    """Entries of the byte-pair vocabulary."""
    window: int = Field(default=64, gt=1)
    """Tokens of one example."""
    batch_size: int = Field(default=64, gt=0)
    """Examples a step."""
    masking: Masking = Masking()
    """How tokens are hidden; for `masked` only."""
    evaluation_batches: int = Field(default=20, gt=0)
    """Held-out batches, from the validation part of the corpus."""

    def __post_init__(self) -> None:
        """Check that there is a text, and no masking with `next_token`.

        Raises:
            SpecError: If not.
        """
        names(self.corpus)
        if self.objective == "next_token" and self.masking != Masking():
            raise SpecError(
                f"'masking' must be left out with objective 'next_token'; got {self.masking}"
            )

    @property
    def models(self) -> tuple[str, ...]:
        """Return the kinds of models that can read the data."""
        return LANGUAGE_MODELS

    @property
    def tokens_per_batch(self) -> int:
        """Return the tokens a step."""
        return self.batch_size * self.window

    def tokenizer_digest(self, cache_dir: Path) -> str:
        """Return the SHA-256 of the tokenizer, in hexadecimal."""
        tokenizer = _text_module().open_tokenizer(
            self.corpus, vocabulary_size=self.vocabulary_size, cache_dir=cache_dir
        )
        return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()

    def write_tokenizer(self, folder: Path, *, cache_dir: Path) -> None:
        """Write the tokenizer as `AutoTokenizer.from_pretrained` reads it.

        Args:
            folder: Where a model lies.
            cache_dir: Where tokenized texts are kept.
        """
        module = _text_module()
        tokenizer = module.open_tokenizer(
            self.corpus, vocabulary_size=self.vocabulary_size, cache_dir=cache_dir
        )
        module.write_tokenizer(tokenizer, folder, window=self.window)

    def open(self, *, seed: int, cache_dir: Path, reader: str = "train") -> TaskData:
        """Return the data of a seed; the tokenized text is made once and reused.

        Args:
            seed: Seed of the training data.
            cache_dir: Where tokenized texts are kept.
            reader: Name of the reader; two readers of a seed get different orders and masks.
        """
        train, valid = self._store("train", cache_dir), self._store("valid", cache_dir)
        size = train.vocabulary.size
        texts = " + ".join(Path(corpus).name for corpus in names(self.corpus))
        stream = self._stream(train, "train", seed=seed, purpose=reader)
        held_out = self._stream(valid, "valid", seed=EVALUATION_SEED, purpose="evaluation")
        return TaskData(
            stream=stream,
            evaluation=evaluation_batches(held_out, self.evaluation_batches),
            num_inputs=size,
            num_classes=size,
            num_positions=self.window,
            name=f"{self.objective} tokens of {texts}",
            mask_token=train.vocabulary.mask if self.objective == "masked" else None,
        )

    def _store(self, split: str, cache_dir: Path) -> TokenStore:
        """Return the tokens of a split.

        Raises:
            CurricleError: If the corpus holds no text or the cache is damaged.
            DataError: If a file cannot be read or written; the reason is given.
        """
        try:
            store: TokenStore = _text_module().open_or_build(
                self.corpus, split, vocabulary_size=self.vocabulary_size, cache_dir=cache_dir
            )
        except CurricleError:
            raise
        except OSError as error:
            raise DataError(
                f"'corpus' must be readable and 'cache_dir' writable; got {error}"
            ) from None
        return store

    def _stream(self, store: TokenStore, split: str, *, seed: int, purpose: str) -> Stream:
        """Return the windows of a split.

        Raises:
            DataError: If it is shorter than one window; corpus and split are named.
        """
        shape = {"window": self.window, "batch_size": self.batch_size, "seed": seed}
        try:
            if self.objective == "next_token":
                return CausalWindows(store, **shape, purpose=purpose)
            return MaskedWindows(store, **shape, masking=self.masking, purpose=purpose)
        except DataError as error:
            raise DataError(f"split {split!r} of corpus {self.corpus!r}: {error}") from None


@final
@value
class PcfgTask(BaseTask):
    """Language modeling on strings of a grammar, with fresh samples at every step."""

    kind: Literal["pcfg"] = "pcfg"
    grammar: Literal["cfg3b", "cfg3b-p2", "cfg3f"] = "cfg3b"
    """Name of the grammar; `cfg3b-p2` is `cfg3b` without one rule."""
    start: int = Field(default=22, gt=0)
    """Symbol that strings begin with; 22 is the highest, lower ones give shorter strings."""
    objective: Literal["masked", "next_token"] = "masked"
    """Predicted tokens: hidden ones (BERT) or the next one (GPT)."""
    batch_size: int = Field(default=64, gt=0)
    """Examples a step."""
    masking: Masking = PCFG_MASKING
    """How tokens are hidden, at rate 0.3 if this is left out; for `masked` only."""
    masking_quirk: bool = False
    """Whether the attention mask is 0 also at selected positions, as in the code of arXiv
    2410.05464; for `masked` only."""
    span_level: int = Field(default=0, ge=0)
    """Only tokens that end a span of a symbol of this level are predicted, and all at 0; for
    `next_token` only."""
    pad_to: PadTo = "grammar"
    """Length of the rows: the longest string of the `grammar`, or of each `batch`."""
    evaluation_batches: int = Field(default=20, gt=0)
    """Held-out batches."""

    def __post_init__(self) -> None:
        """Check that the grammar has the symbols, and that the objective uses all fields.

        Raises:
            SpecError: If not.
        """
        highest = self.rules.num_levels
        if self.span_level > highest:
            raise SpecError(
                f"'span_level' must not exceed {highest}, the level of start symbol "
                f"{self.start}; got {self.span_level}"
            )
        for name, default in self._unheeded.items():
            number = getattr(self, name)
            if number != default:
                raise SpecError(
                    f"{name!r} must be left out with objective {self.objective!r}; got {number}"
                )

    @property
    def rules(self) -> Grammar:
        """Return the grammar, begun at `start`."""
        return shipped(self.grammar, start=self.start)

    @property
    def _unheeded(self) -> dict[str, object]:
        """Return the fields that the objective does not use, with their defaults."""
        if self.objective == "masked":
            return {"span_level": 0}
        return {"masking": PCFG_MASKING, "masking_quirk": False}

    @property
    def models(self) -> tuple[str, ...]:
        """Return the kinds of models that can read the data."""
        return LANGUAGE_MODELS

    @property
    def tokens_per_batch(self) -> int:
        """Return the positions a step, padding included; expected ones with `pad_to` batch."""
        return sequence_tokens(self.rules, batch_size=self.batch_size, pad_to=self.pad_to)

    def tokenizer_digest(self, _cache_dir: Path) -> str:
        """Return the SHA-256 of the tokenizer: none, for the data are no text."""
        return ""

    def write_tokenizer(self, folder: Path, *, cache_dir: Path) -> None:
        """Write nothing, for the data are no text."""

    def open(self, *, seed: int, cache_dir: Path, reader: str = "train") -> TaskData:
        """Return the data of a seed.

        Args:
            seed: Seed of the training data.
            cache_dir: Not used; strings are drawn, not stored.
            reader: Name of the reader; two readers of a seed get different strings.
        """
        del cache_dir
        rules = self.rules
        ids = TokenIds(len(rules.terminals))
        held_out = self._stream(EVALUATION_SEED, "evaluation")
        return TaskData(
            stream=self._stream(seed, reader),
            evaluation=evaluation_batches(held_out, self.evaluation_batches),
            num_inputs=ids.vocabulary_size,
            num_classes=ids.vocabulary_size,
            num_positions=sequence_positions(rules),
            name=f"{self.objective} tokens of {self.grammar} from {self.start}",
            padding_token=ids.padding,
            mask_token=ids.mask if self.objective == "masked" else None,
        )

    def _stream(self, seed: int, purpose: str) -> Stream:
        if self.objective == "next_token":
            return CausalStrings(
                self.rules,
                batch_size=self.batch_size,
                seed=seed,
                span_level=self.span_level,
                pad_to=self.pad_to,
                purpose=purpose,
            )
        return MaskedStrings(
            self.rules,
            batch_size=self.batch_size,
            seed=seed,
            masking=self.masking,
            masking_quirk=self.masking_quirk,
            pad_to=self.pad_to,
            purpose=purpose,
        )


Task = Annotated[
    ParityTask | TextTask | PcfgTask | ExamplesTask | TensorsTask, Field(discriminator="kind")
]


def _text_module() -> ModuleType:
    return imported("curricle.data.text.tokenizing", package="tokenizers", extra="hf", use="text")
