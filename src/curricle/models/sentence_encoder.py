"""Encoders of sentences: a transformer whose states are pooled into one embedding a text.

`SentenceEncoder` is the pooling around any Hugging Face encoder, and its folders are those of
sentence-transformers. `SentenceEncoderSpec` builds one for a spec, with fresh weights or from such
a folder.

Axes: example (texts), position (tokens), width (of a state), embedding (values of an embedding).

Settings of a folder that concern its use alone, such as named prompts, are written again. A default
prompt is refused, since tasks of specs read texts as they are.

Design: the output is a mapping with the names of sentence-transformers, so that a `SentenceEncoder`
and a `SentenceTransformer` are read alike, by the names of their outputs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from curricle.colocation import count_beside
from curricle.errors import BindError, CheckpointError, SpecError, loading_hint
from curricle.files import write_text
from curricle.models.huggingface import new_encoder, pretrained_encoder
from curricle.models.outputs import EMBEDDING
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.values import value
from curricle.yaml_specs import Document, from_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["mean", "cls", "max", "lasttoken"]
"""Embedding of a text: the mean of the states of its tokens, the first, the maximum, the last."""
MODULES, POOLING, DENSE, NORMALIZE = "modules.json", "1_Pooling", "2_Dense", "Normalize"
"""File and folders of the layout of sentence-transformers."""
CONFIG, LIMITS = "config.json", "sentence_bert_config.json"
"""Files of a module, and of the tokens that a folder takes."""
SETTINGS = "config_sentence_transformers.json"
"""File of the prompts of a folder, and of the similarity of its embeddings."""
MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Poolings by their flags in configurations of sentence-transformers."""
FOREIGN_MODES = ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
"""Flags of poolings that exist in sentence-transformers only."""
LINEAR = "torch.nn.modules.linear.Identity"
"""Activation of a dense layer without any."""
LEAST_LENGTH = 1e-9
"""Least number of tokens in a mean, which keeps an empty text finite."""


@final
class SentenceEncoder(nn.Module):
    """A Hugging Face encoder with pooled outputs."""

    def __init__(
        self,
        encoder: nn.Module,
        *,
        pooling: Pooling = "mean",
        width: int | None = None,
        normalize: bool = True,
        max_length: int | None = None,
        lower_case: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Put a pooling around an encoder.

        Args:
            encoder: Model of transformers that returns `last_hidden_state`.
            pooling: Embedding of a text from the states of its tokens.
            width: Values of an embedding, by a linear map of the pooled state with weights from
                torch's global generator; None for those of a state.
            normalize: Whether embeddings have length 1.
            max_length: Tokens of the longest text, which is written for tokenizers of exported
                folders; None leaves it to the encoder.
            lower_case: Whether exported folders turn texts into lower case.
            settings: Fields of `config_sentence_transformers.json` in exported folders; None for no
                prompts and cosine similarity.

        Raises:
            BindError: If the encoder has no configuration with a `hidden_size`.
        """
        super().__init__()
        size = getattr(getattr(encoder, "config", None), "hidden_size", None)
        if not isinstance(size, int):
            raise BindError(
                f"'encoder' must be a model of transformers with a 'hidden_size' in its "
                f"configuration; got {type(encoder).__name__!r}{loading_hint(encoder)}"
            )
        self.encoder = encoder
        self.dense = None if width is None else nn.Linear(size, width)
        self.pooling: Pooling = pooling
        self.normalize = normalize
        self.max_length = max_length
        self.lower_case = lower_case
        self.settings: dict[str, object] = {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            **(settings or {}),
        }

    @property
    def width(self) -> int:
        """Return the number of values of an embedding."""
        config = cast("PreTrainedModel", self.encoder).config
        return int(config.hidden_size) if self.dense is None else self.dense.out_features

    def forward(
        self,
        input_ids: Int[Tensor, "example position"],
        attention_mask: Int[Tensor, "example position"] | None = None,
        **features: Tensor,
    ) -> dict[str, Tensor]:
        """Return the states of the tokens and the embeddings of the texts.

        Args:
            input_ids: Token ids.
            attention_mask: 1 where there is a token, 0 for padding; None without padding.
            **features: Further inputs of the encoder.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        output = self.encoder(input_ids=input_ids, attention_mask=mask, **features)
        states = output.last_hidden_state
        pooled = pooled_states(states, mask, self.pooling)
        embeddings = pooled if self.dense is None else self.dense(pooled)
        if self.normalize:
            embeddings = functional.normalize(embeddings, dim=-1)
        return {"token_embeddings": states, EMBEDDING: embeddings}

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the folder that `SentenceTransformer` reads, without the tokenizer.

        Args:
            save_directory: Where; made if it is missing.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        encoder = cast("PreTrainedModel", self.encoder)
        encoder.save_pretrained(str(folder))
        config = encoder.config
        modules = [("Transformer", ""), ("Pooling", POOLING)]
        flags = {flag: mode == self.pooling for flag, mode in MODES.items()}
        _write(folder / POOLING / CONFIG, {"word_embedding_dimension": config.hidden_size, **flags})
        if self.dense is not None:
            modules.append(("Dense", DENSE))
            sizes = {"in_features": config.hidden_size, "out_features": self.dense.out_features}
            shape = {**sizes, "bias": True, "activation_function": LINEAR}
            _write(folder / DENSE / CONFIG, shape)
            weights = {f"linear.{name}": w for name, w in self.dense.state_dict().items()}
            save_file(weights, folder / DENSE / "model.safetensors", {"format": "pt"})
        if self.normalize:
            path = f"{len(modules)}_{NORMALIZE}"
            (folder / path).mkdir(exist_ok=True)
            modules.append((NORMALIZE, path))
        listed = [
            {
                "idx": place,
                "name": str(place),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for place, (kind, path) in enumerate(modules)
        ]
        _write(folder / MODULES, listed)
        limits = {"max_seq_length": self.max_length, "do_lower_case": self.lower_case}
        _write(folder / LIMITS, limits)
        _write(folder / SETTINGS, self.settings)


def pooled_states(
    states: Float[Tensor, "example position width"],
    mask: Int[Tensor, "example position"],
    pooling: Pooling,
) -> Float[Tensor, "example width"]:
    """Return one state a text.

    Args:
        states: States of the tokens.
        mask: 1 where there is a token, 0 for padding on either side.
        pooling: How.
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=LEAST_LENGTH)
    if pooling == "max":
        return states.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
    # The first of several largest numbers counts, and positions count backwards for the last token.
    positions = count_beside(mask, mask.shape[1])
    order = -positions if pooling == "cls" else positions
    places = order.masked_fill(mask == 0, -mask.shape[1]).argmax(1)
    # By gather and not by row numbers, which a traced model would keep from its example.
    return states.gather(1, places[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)


@final
@value
class SentenceEncoderSpec:
    """An encoder of sentences: new, or from a folder of transformers or sentence-transformers."""

    kind: Literal["sentence_encoder"] = "sentence_encoder"
    model_type: str | None = None
    """Family of a new encoder, as in its configuration, for example `bert`."""
    config: Document = Field(default_factory=dict)
    """Fields of a new encoder's configuration; vocabulary and positions follow the task."""
    path: str | None = None
    """Folder of a pretrained encoder, in place of `model_type`."""
    pooling: Pooling | None = None
    """Embedding of a text: `mean` of its states, the first (`cls`), `max` or `lasttoken`; None for
    that of the folder, or else the mean."""
    width: int | None = Field(default=None, gt=0)
    """Values of an embedding, by a linear map after the pooling; None for those of the folder, or
    else of a state."""
    normalize: bool | None = None
    """Whether embeddings have length 1; None for the choice of the folder, or else true."""

    def __post_init__(self) -> None:
        """Check that the encoder is either new or from a folder.

        Raises:
            SpecError: If it is both or neither, or a folder comes with a configuration.
        """
        if (self.model_type is None) == (self.path is None):
            raise SpecError(
                f"'model_type' or 'path' must be given, and not both, for kind {self.kind!r}; got "
                f"{self.model_type!r} and {self.path!r}"
            )
        if self.path is not None and self.config:
            raise SpecError(f"'config' has no effect with 'path'; got {self.config}")

    def build(
        self,
        *,
        num_inputs: int,
        num_classes: int,
        num_positions: int,
        padding_token: int | None = 0,
    ) -> TappedModel:
        """Return the model; new weights are from torch's global generator.

        Args:
            num_inputs: Size of the vocabulary.
            num_classes: Not used; the width of embeddings is that of the model.
            num_positions: Length of the sequences.
            padding_token: Padding id; None without one.
        """
        del num_classes
        if self.path is not None:
            return tapped(self._opened(self.path, num_inputs, num_positions))
        assert self.model_type is not None  # noqa: S101 - one of both is given
        encoder = new_encoder(
            self.model_type,
            self.config,
            num_inputs=num_inputs,
            num_positions=num_positions,
            padding_token=padding_token,
        )
        return tapped(
            SentenceEncoder(
                encoder,
                pooling=self.pooling or "mean",
                width=self.width,
                normalize=self.normalize is not False,
                max_length=num_positions,
            )
        )

    def _opened(self, path: str, num_inputs: int, num_positions: int) -> SentenceEncoder:
        """Return the encoder of a folder, with the fields' changes of its pooling."""
        modules = _modules(Path(path))
        home = next((place for kind, place in modules if kind == "Transformer"), Path(path))
        pooling: Pooling = "mean"
        normalize, dense = not modules, None
        for kind, place in modules:
            pooling = _pooling(place) if kind == "Pooling" else pooling
            dense = _dense(place) if kind == "Dense" else dense
            normalize = normalize or kind == NORMALIZE
        settings = _settings(Path(path))
        encoder = pretrained_encoder(str(home), num_inputs=num_inputs, num_positions=num_positions)
        stored_width = None if dense is None else len(dense["weight"])
        model = SentenceEncoder(
            encoder,
            pooling=self.pooling or pooling,
            width=self.width or stored_width,
            normalize=normalize if self.normalize is None else self.normalize,
            max_length=_max_length(home),
            lower_case=_limits(home).get("do_lower_case") is True,
            settings=settings,
        )
        # A map of another width is a new one.
        if model.dense is not None and dense is not None and model.width == stored_width:
            model.dense.load_state_dict(dense)
        return model


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return kinds and folders of the modules of sentence-transformers; none for a plain folder.

    Raises:
        CheckpointError: If there are others than encoder, pooling, linear map and normalization.
    """
    if not (folder / MODULES).is_file():
        return []
    try:
        listed = from_json((folder / MODULES).read_bytes())
        modules = [(entry["type"].rpartition(".")[2], folder / entry["path"]) for entry in listed]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{str(folder / MODULES)!r} must list modules as sentence-transformers does; {error}"
        ) from None
    kinds = [kind for kind, _ in modules]
    if kinds not in (
        ["Transformer", "Pooling", *dense, *normalize]
        for dense in ([], ["Dense"])
        for normalize in ([], [NORMALIZE])
    ):
        raise CheckpointError(
            f"'path' {str(folder)!r} must be a folder of sentence-transformers with Transformer, "
            f"Pooling and, if any, Dense and Normalize; got {', '.join(kinds)}; in Python, "
            f"curricle.distill takes sentence_transformers.SentenceTransformer(path) as it is"
        )
    return modules


def _pooling(folder: Path) -> Pooling:
    """Return the pooling of a folder.

    Raises:
        CheckpointError: If it is none of those here.
    """
    config = _config(folder / CONFIG)
    flagged = [flag for flag in (*MODES, *FOREIGN_MODES) if config.get(flag)]
    named = config.get("pooling_mode") or [MODES.get(flag, flag) for flag in flagged]
    names = [named] if isinstance(named, str) else list(named)
    if len(names) != 1 or names[0] not in MODES.values():
        raise CheckpointError(
            f"{str(folder)!r} must have one pooling of {', '.join(MODES.values())}; got "
            f"{', '.join(names) or 'none'}"
        )
    return cast("Pooling", names[0])


def _dense(folder: Path) -> dict[str, Tensor]:
    """Return weight and bias of a linear map.

    Raises:
        CheckpointError: If it has an activation or no bias, or cannot be read.
    """
    config = _config(folder / CONFIG)
    activation = config.get("activation_function", LINEAR)
    if activation != LINEAR or not config.get("bias", True):
        raise CheckpointError(
            f"{str(folder)!r} must be a linear map with a bias and no activation; got "
            f"{activation!r}; in Python, curricle.distill takes "
            f"sentence_transformers.SentenceTransformer(path) as it is"
        )
    try:
        weights = load_file(folder / "model.safetensors")
        return {name: weights[f"linear.{name}"] for name in ("weight", "bias")}
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{str(folder)!r} must hold 'linear.weight' and 'linear.bias' in a "
            f"'model.safetensors'; {error}"
        ) from None


def _max_length(folder: Path) -> int | None:
    """Return the number of tokens that a folder of sentence-transformers states; None for none."""
    length = _limits(folder).get("max_seq_length")
    return length if isinstance(length, int) else None


def _limits(folder: Path) -> Document:
    """Return the fields of the tokens that a folder takes; none without the file."""
    path = folder / LIMITS
    return _config(path) if path.is_file() else {}


def _settings(folder: Path) -> Document:
    """Return prompts and similarity of a folder; none for a plain folder.

    Raises:
        CheckpointError: If it has a default prompt, without which its model would be read.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    # The versions are those of the packages that wrote the folder.
    settings = {name: field for name, field in _config(path).items() if name != "__version__"}
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if prompt:
        raise CheckpointError(
            f"'path' {str(folder)!r} must be a folder without a default prompt, since tasks of "
            f"specs read texts as they are; got {prompt!r} under {name!r}; "
            f"'default_prompt_name': null in {SETTINGS!r} reads texts without it; in Python, "
            f"TextCollator reads texts with it"
        )
    return settings


def _config(path: Path) -> Document:
    """Return the fields of a configuration.

    Raises:
        CheckpointError: If the file is missing or no mapping.
    """
    try:
        config = from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} must be a configuration; {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(path)!r} must be a configuration; got no mapping")
    return config


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")
