"""How does a model that a user already has become a tapped one?

`tapped` takes an MLP, a Hugging Face model or any other module. For Hugging Face models no table
of families is needed: the blocks are the one module list as long as the configuration says, the
head is the top-level child that holds the output embeddings, and all taps lie on the residual
stream. Nothing here imports transformers.
"""

import inspect
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from curricle.errors import BindError
from curricle.models.hooked import HookedModel
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel


@runtime_checkable
class _Config(Protocol):
    """What a Hugging Face configuration says about depth."""

    model_type: str
    num_hidden_layers: int


@runtime_checkable
class _HuggingFaceModel(Protocol):
    """The part of a Hugging Face model that is needed to find its taps."""

    config: _Config

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the module that makes the logits, if the model has one."""
        ...


def tapped(
    model: nn.Module | TappedModel,
    *,
    blocks: Sequence[str] = (),
    head: str | None = None,
    is_residual: bool | None = None,
    width_axis: int = -1,
) -> TappedModel:
    """Return a model whose hidden states can be read.

    A tapped model is returned as it is; an `MLP` and Hugging Face models are recognized; any
    other module is read at module paths.

    Args:
        model: The model.
        blocks: Paths of the blocks in forward order; needed only for modules that are not
            recognized, and only if taps shall have numbers.
        head: Path of the module that makes the logits position by position; see `HookedModel`.
        is_residual: Whether the blocks share a residual stream; None means yes for Hugging Face
            models and no for others.
        width_axis: Axis of the hidden states that counts features; 1 for convolutions.

    Raises:
        BindError: If a path does not exist or the blocks of a Hugging Face model are not found.
    """
    if not isinstance(model, nn.Module):
        return model
    if isinstance(model, MLP) and not blocks:
        return model.tapped()
    if isinstance(model, _HuggingFaceModel) and isinstance(model.config, _Config):
        return HookedModel(
            model,
            blocks=blocks or block_paths(model, model.config.num_hidden_layers),
            head=head or _head_path(model, model.get_output_embeddings()),
            is_residual=True if is_residual is None else is_residual,
            keywords={"use_cache": False} if _has_cache(model) else None,
        )
    return HookedModel(
        model, blocks=blocks, head=head, is_residual=bool(is_residual), width_axis=width_axis
    )


def block_paths(model: nn.Module, num_layers: int) -> tuple[str, ...]:
    """Return the paths of the blocks of the only module list with `num_layers` entries.

    Raises:
        BindError: If there is no such list, or more than one.
    """
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if len(lists) != 1:
        raise BindError(
            f"'blocks' must be given for {type(model).__name__}: one list of {num_layers} modules "
            f"is expected; got {lists}"
        )
    return tuple(f"{lists[0]}.{number}" for number in range(num_layers))


def _head_path(model: nn.Module, output: nn.Module | None) -> str | None:
    """Return the top-level child that holds the output embeddings."""
    for path, child in model.named_children():
        if output is not None and any(module is output for module in child.modules()):
            return path
    return None


def _has_cache(model: nn.Module) -> bool:
    """Return whether forward would build a key-value cache, which training must not pay for."""
    return "use_cache" in inspect.signature(type(model).forward).parameters
