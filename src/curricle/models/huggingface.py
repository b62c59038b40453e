"""Specifications of Hugging Face models, new or pretrained.

`HuggingFaceSpec` builds a model of any family with random weights, `PretrainedSpec` loads a local
folder. Both return tapped models through `families.tapped`, which needs no table of families;
`open_tokenizer` loads the tokenizer of a folder; `open_language_model` and `open_classifier` open a
folder with its tokenizer for an evaluation.
This is the only module that uses transformers' model classes; the package is an extra, so it is
imported when a model is built.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast, final

from pydantic import Field
from torch import nn

from curricle.errors import BindError, CheckpointError, SpecError, near_names, short_reason
from curricle.extras import imported
from curricle.memory import is_unallocated
from curricle.models.positions import unused_positions, usable_positions
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.protocols import Tokenizer
from curricle.values import value
from curricle.yaml_specs import Document, from_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Head = Literal[
    "masked_lm",
    "causal_lm",
    "seq2seq_lm",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "image_classification",
]
AUTO_CLASSES: Mapping[Head, str] = MappingProxyType(
    {
        "masked_lm": "AutoModelForMaskedLM",
        "causal_lm": "AutoModelForCausalLM",
        "seq2seq_lm": "AutoModelForSeq2SeqLM",
        "sequence_classification": "AutoModelForSequenceClassification",
        "token_classification": "AutoModelForTokenClassification",
        "question_answering": "AutoModelForQuestionAnswering",
        "image_classification": "AutoModelForImageClassification",
    }
)
"""Classes of transformers that choose a model by its configuration."""
LANGUAGE_HEADS = ("masked_lm", "causal_lm", "seq2seq_lm")
"""Heads that predict the vocabulary; the others predict a task's classes or values."""
HEAD_TABLES: Mapping[Head, str] = MappingProxyType(
    {
        "masked_lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    }
)
"""Tables of transformers with the names of the classes that have a head."""
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
EXTRA_POSITIONS = 8
"""Positions beyond the length of a task's sequences."""
POOLER = "pooler."
"""Beginning of the names of the weights beside the states, which pooled embeddings do not read."""


@final
@value
class HuggingFaceSpec:
    """A model of a Hugging Face family with fresh weights."""

    kind: Literal["hf"] = "hf"
    model_type: str
    """Family as in its configuration, for example `bert`, `gpt2` or `megatron-bert`."""
    head: Head = "masked_lm"
    """Output of the head: tokens, or classes or values of the whole input or of its positions."""
    config: Document = Field(default_factory=dict)
    """Fields of the family's configuration; vocabulary and positions follow the task."""

    def build(
        self,
        *,
        num_inputs: int,
        num_classes: int,
        num_positions: int,
        padding_token: int | None = 0,
    ) -> TappedModel:
        """Return the model with weights from torch's global generator.

        Args:
            num_inputs: Size of the vocabulary, or number of channels of an image.
            num_classes: Classes or values; not used by a head that predicts the vocabulary.
            num_positions: Length of the sequences, or of the edge of an image.
            padding_token: Padding id, with a zero embedding in some families; None without one.

        Raises:
            SpecError: If the family, or a field of its configuration, does not exist, or if
                transformers cannot build the model.
        """
        transformers = _transformers()
        fields = _config_fields(transformers, self.model_type, self.config)
        settings: Document = self._sizes(num_inputs, num_classes, num_positions) | self.config
        if self.head != "image_classification":
            settings = {
                "pad_token_id": padding_token,
                **{name: None for name in SPECIAL_TOKENS if name in fields},
            } | settings
        if self.head == "seq2seq_lm":
            settings.setdefault("decoder_start_token_id", padding_token)
        model = _new_model(
            transformers,
            AUTO_CLASSES[self.head],
            self.model_type,
            settings,
            output=f"head {self.head!r}",
        )
        if self.head != "image_classification":
            _check_sizes(model, num_inputs, num_positions)
        return tapped(model)

    def _sizes(self, num_inputs: int, num_classes: int, num_positions: int) -> dict[str, int]:
        """Return the sizes of a task as fields of the configuration."""
        classes = {} if self.head in LANGUAGE_HEADS else {"num_labels": num_classes}
        if self.head == "image_classification":
            return {"num_channels": num_inputs, "image_size": num_positions} | classes
        # Some families number positions from the padding id and need a few more.
        room = num_positions + EXTRA_POSITIONS
        return {"vocab_size": num_inputs, "max_position_embeddings": room} | classes


@final
@value
class PretrainedSpec:
    """A model loaded from a local Hugging Face folder."""

    kind: Literal["pretrained"] = "pretrained"
    path: str
    """Folder with `config.json` and `model.safetensors`."""
    head: Head = "masked_lm"
    """Output of the head, as in a model of the kind `hf`."""

    def build(
        self,
        *,
        num_inputs: int,
        num_classes: int,
        num_positions: int,
        padding_token: int | None = 0,
    ) -> TappedModel:
        """Return the model in float32.

        Args:
            num_inputs: Size of the task's vocabulary, or number of channels of an image.
            num_classes: Classes or values; not used by a head that predicts the vocabulary.
            num_positions: Length of the sequences, or of the edge of an image.
            padding_token: Not used; it is part of the folder's configuration.

        Raises:
            BindError: If the folder is missing, its vocabulary is smaller than the task's, or it
                has other classes.
            CheckpointError: If transformers cannot read the model or weights are missing.
        """
        del padding_token
        model = _pretrained_model(
            AUTO_CLASSES[self.head], self.path, f"a model with head {self.head!r}"
        )
        config = cast("PreTrainedModel", model).config
        if self.head in LANGUAGE_HEADS and config.vocab_size < num_inputs:
            raise BindError(
                f"'vocabulary' of {self.path!r} must have the task's {num_inputs} entries or more; "
                f"got {config.vocab_size}"
            )
        if self.head not in LANGUAGE_HEADS and config.num_labels != num_classes:
            raise BindError(
                f"'num_labels' of {self.path!r} must be the task's {num_classes} classes or "
                f"values; got {config.num_labels}"
            )
        if self.head != "image_classification":
            _check_sizes(model, num_inputs, num_positions)
        return tapped(model)


def new_encoder(
    model_type: str,
    config: Mapping[str, object],
    *,
    num_inputs: int,
    num_positions: int,
    padding_token: int | None,
) -> nn.Module:
    """Return a model without head, with weights from torch's global generator.

    Args:
        model_type: Family, as in `HuggingFaceSpec`.
        config: Fields of its configuration, likewise.
        num_inputs: Size of the vocabulary.
        num_positions: Length of the sequences.
        padding_token: Padding id; None without one.
    """
    transformers = _transformers()
    fields = _config_fields(transformers, model_type, config)
    settings = {
        "pad_token_id": padding_token,
        **{name: None for name in SPECIAL_TOKENS if name in fields},
        "vocab_size": num_inputs,
        "max_position_embeddings": num_positions + EXTRA_POSITIONS,
        **config,
    }
    model: nn.Module = _new_model(
        transformers, "AutoModel", model_type, settings, output="token states"
    )
    _check_sizes(model, num_inputs, num_positions)
    return model


def pretrained_encoder(path: str, *, num_inputs: int, num_positions: int) -> nn.Module:
    """Return the model of a local folder without its head, in float32.

    A pooler that the folder lacks is left out.

    Args:
        path: Folder with `config.json` and `model.safetensors`.
        num_inputs: Size of the task's vocabulary.
        num_positions: Length of the sequences.
    """
    model = _pretrained_model("AutoModel", path, "an encoder")
    _check_sizes(model, num_inputs, num_positions)
    return model


def _config_fields(
    transformers: ModuleType, model_type: str, config: Mapping[str, object]
) -> list[str]:
    """Return the names of the fields of a family's configuration.

    Raises:
        SpecError: If the family does not exist, or has no field of a name.
    """
    try:
        defaults = transformers.AutoConfig.for_model(model_type)
    except ValueError:
        raise SpecError(
            f"'model_type' must be a family of transformers; got {model_type!r}"
        ) from None
    fields = [*defaults.to_dict(), *defaults.attribute_map]
    for name in config:
        if name not in fields:
            raise SpecError(
                f"{name!r} is not a field of the {model_type} configuration; "
                f"{near_names(name, fields)}"
            )
    return fields


def _new_model(
    transformers: ModuleType,
    auto_class: str,
    model_type: str,
    settings: Mapping[str, object],
    *,
    output: str,
) -> Any:  # noqa: ANN401 - of an optional package
    """Return a model of a family with fresh weights.

    Raises:
        SpecError: If transformers cannot build it.
    """
    try:
        config = transformers.AutoConfig.for_model(model_type, **settings)
        return getattr(transformers, auto_class).from_config(config, trust_remote_code=False)
    except Exception as error:
        # The errors of families for a wrong field have no common base class.
        raise SpecError(
            f"'config' must describe a {model_type} model with {output}; "
            f"transformers says: {short_reason(error)}"
        ) from error


def _unallocated_model(transformers: ModuleType, auto_class: str, path: str) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    model: nn.Module = getattr(transformers, auto_class).from_config(config, dtype="float32")
    return model


def _pretrained_model(auto_class: str, path: str, description: str) -> nn.Module:
    """Return the model of a folder in float32.

    Raises:
        BindError: If the folder is missing.
        CheckpointError: If transformers cannot read the model or weights are missing.
    """
    if not Path(path, "config.json").is_file():
        raise BindError(f"'path' must be a folder with a config.json; got {path!r}")
    if not is_unallocated():
        _check_safetensors(Path(path))
    transformers = _transformers()
    _refuse_code(transformers, path)
    if is_unallocated():
        return _unallocated_model(transformers, auto_class, path)
    try:
        # Version 5 loads in the dtype of the file by default; a student needs float32.
        model, loaded = getattr(transformers, auto_class).from_pretrained(
            path,
            dtype="float32",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            # By default, transformers reads from the standard input whether to run code.
            trust_remote_code=False,
        )
    except Exception as error:
        # The errors of families for a damaged folder have no common base class.
        raise CheckpointError(
            f"'path' {path!r} must hold {description}; transformers says: {short_reason(error)}"
        ) from error
    missing = list(loaded["missing_keys"])
    if auto_class == "AutoModel" and any(name.startswith(POOLER) for name in missing):
        _drop_pooler(model)
        missing = [name for name in missing if not name.startswith(POOLER)]
    if missing:
        # transformers would initialize them at random.
        raise CheckpointError(
            f"'path' {path!r} must hold all weights of {type(model).__name__}; "
            f"{min(missing)!r} is missing"
        )
    module: nn.Module = model
    return module


def _drop_pooler(model: "PreTrainedModel") -> None:
    """Remove the pooler of an encoder, whose weights would be random and belong to no output.

    Args:
        model: Model of transformers.
    """
    is_optional = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    # Families with the argument skip a pooler that is None; the others call it in each pass.
    model.register_module("pooler", None if is_optional else nn.Identity())


def open_tokenizer(path: str) -> Tokenizer:
    """Return the tokenizer in a local Hugging Face folder.

    A tokenizer without a padding token pads with its end of a text, or else its beginning.

    Args:
        path: Folder with `tokenizer.json` or the files of its family.

    Raises:
        BindError: If the folder is missing.
        CheckpointError: If transformers cannot read the tokenizer, or nothing can pad.
    """
    if not Path(path).is_dir():
        raise BindError(f"'tokenizer' must be a folder with a tokenizer; got {path!r}")
    transformers = _transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        # The errors of families for a damaged folder have no common base class.
        raise CheckpointError(
            f"'tokenizer' {path!r} must hold a tokenizer; transformers says: {short_reason(error)}"
        ) from error
    _require_padding(tokenizer, f"'tokenizer' {path!r}")
    return cast("Tokenizer", tokenizer)


def _require_padding(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Let a tokenizer without a padding token, as those of decoders, pad with the end of a text.

    The tokens there are masked.

    Args:
        tokenizer: Tokenizer of transformers.
        name: The tokenizer, for people.

    Raises:
        CheckpointError: If it has no token of the kind.
    """
    if tokenizer.pad_token is not None:
        return
    token = tokenizer.eos_token or tokenizer.bos_token
    if token is None:
        raise CheckpointError(f"{name} must have a padding token; it has none")
    tokenizer.pad_token = token


def wrapped_tokenizer(tokenizer: object, *, special: Mapping[str, str]) -> Tokenizer:
    """Return a tokenizer of the package `tokenizers` as one of transformers.

    Args:
        tokenizer: The tokenizer.
        special: Special tokens by their names in transformers.
    """
    wrapped = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **special,
    )
    return cast("Tokenizer", wrapped)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFolder:
    """Model and tokenizer of a Hugging Face folder."""

    module: nn.Module
    """The model in float32."""
    tokenizer: Any
    """Its tokenizer."""
    new_weights: tuple[str, ...] = ()
    """Names of weights that the folder lacks, which are random."""

    def longest(self, limit: int) -> int:
        """Return the number of tokens that model and tokenizer take, at most `limit`."""
        positions = usable_positions(self.module)
        room = limit if positions is None else positions
        return min(limit, room, int(self.tokenizer.model_max_length))


def language_head(folder: Path) -> Head:
    """Return the kind of head of a language model in a folder.

    Args:
        folder: Folder of `save_pretrained`.

    Raises:
        BindError: If its class predicts neither masked nor next tokens.
    """
    transformers = _transformers()
    _refuse_code(transformers, str(folder))
    architectures = _load(transformers.AutoConfig, folder).architectures or ["none"]
    tables = transformers.models.auto.modeling_auto
    for head, name in HEAD_TABLES.items():
        if architectures[0] in getattr(tables, name).values():
            return head
    raise BindError(
        f"{str(folder)!r} must hold a model that predicts masked or next tokens; got "
        f"{architectures[0]}"
    )


def open_language_model(folder: Path) -> OpenedFolder:
    """Return the language model of a folder with its tokenizer.

    Args:
        folder: Folder of `save_pretrained`.

    Raises:
        CheckpointError: If weights are missing.
    """
    bundle = _open(AUTO_CLASSES[language_head(folder)], folder)
    if bundle.new_weights:
        raise CheckpointError(
            f"{str(folder)!r} must hold all weights of {type(bundle.module).__name__}; "
            f"{bundle.new_weights[0]!r} is missing"
        )
    return bundle


def open_classifier(folder: Path, classes: Sequence[str]) -> OpenedFolder:
    """Return the model of a folder with a head for texts of some classes, and its tokenizer.

    Weights that the folder lacks come from torch's global generator.

    Args:
        folder: Folder of `save_pretrained`.
        classes: Names of the classes.

    Raises:
        CheckpointError: If the folder has none of the model's weights.
    """
    bundle = _open(
        "AutoModelForSequenceClassification",
        folder,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        problem_type="single_label_classification",
        # A head of another number of classes is replaced.
        ignore_mismatched_sizes=True,
    )
    if len(bundle.new_weights) == len(bundle.module.state_dict()):
        raise CheckpointError(
            f"{str(folder)!r} must hold weights of {type(bundle.module).__name__}; got none"
        )
    _require_padding(bundle.tokenizer, f"the tokenizer of {str(folder)!r}")
    config = cast("PreTrainedModel", bundle.module).config
    config.pad_token_id = bundle.tokenizer.pad_token_id
    return bundle


def _open(auto_class: str, folder: Path, **settings: object) -> OpenedFolder:
    """Return model and tokenizer of a folder."""
    _check_safetensors(folder)
    transformers = _transformers()
    _refuse_code(transformers, str(folder))
    module, loaded = _load(
        getattr(transformers, auto_class),
        folder,
        dtype="float32",
        use_safetensors=True,
        output_loading_info=True,
        **settings,
    )
    mismatched = [entry[0] for entry in loaded.get("mismatched_keys", ())]
    return OpenedFolder(
        module=module,
        tokenizer=_load(transformers.AutoTokenizer, folder),
        new_weights=tuple(sorted({*loaded["missing_keys"], *mismatched})),
    )


def _load(auto_class: Any, folder: Path, **settings: object) -> Any:  # noqa: ANN401 - no types
    """Return the object that a class of transformers reads from a folder.

    Raises:
        CheckpointError: If it cannot; its reason is given.
    """
    try:
        return auto_class.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **settings
        )
    except Exception as error:
        # The errors of families for a damaged folder have no common base class.
        raise CheckpointError(
            f"{str(folder)!r} must hold a model and its tokenizer as 'save_pretrained' writes "
            f"them; transformers says: {short_reason(error)}"
        ) from error


def _check_safetensors(folder: Path) -> None:
    """Check that weights do not exist as a pickle only, which is never read.

    Raises:
        CheckpointError: If they do.
    """
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"'path' {str(folder)!r} must hold 'model.safetensors'; got {pickles[0]!r}, a pickle, "
            f"which is not read because reading it can run code; 'save_pretrained' of the model "
            f"writes safetensors"
        )


def _refuse_code(transformers: ModuleType, path: str) -> None:
    """Refuse a folder with a model that is code in the folder.

    Raises:
        CheckpointError: If transformers has no such family.
    """
    try:
        config = from_json(Path(path, "config.json").read_bytes())
        has_code, family = "auto_map" in config, config.get("model_type")
    except (OSError, ValueError, TypeError, AttributeError):
        # Not a configuration: the error of transformers has the reason.
        return
    if has_code and family not in transformers.CONFIG_MAPPING:
        raise CheckpointError(
            f"'path' {path!r} must hold a model of a family included in transformers; its "
            f"'model_type' {family!r} is code in the folder ('auto_map'), which is never run"
        )


def _check_sizes(model: nn.Module, num_inputs: int, num_positions: int) -> None:
    """Check that a model has room for a task's tokens and positions.

    Raises:
        BindError: If not; the message has the field of its configuration.
    """
    extra = unused_positions(model)
    required = {"vocab_size": (num_inputs, 0), "max_position_embeddings": (num_positions, extra)}
    for name, (number, unused) in required.items():
        size = getattr(model.config, name, number + unused)
        if isinstance(size, int) and size < number + unused:
            reason = f" and {unused} more, up to its padding id" if unused else ""
            raise BindError(
                f"{name!r} of the model must be at least the task's {number}{reason}; got {size}"
            )


def _transformers() -> ModuleType:
    transformers = imported(
        "transformers", package="transformers", extra="hf", use="Hugging Face models"
    )
    # Progress bars of single small files would interrupt those of the runs.
    transformers.utils.logging.disable_progress_bar()
    return transformers
