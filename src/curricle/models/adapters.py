"""How does a model that a user already has become a tapped one?

`tapped` takes an MLP, a Hugging Face model or any other module. For Hugging Face models no table
of families is needed: the blocks are the one module list as long as the configuration says, the
head is the top-level children from the base model to the output embeddings, and all taps lie on
the residual stream. Nothing here imports transformers.
"""

import inspect
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from curricle.errors import BindError
from curricle.models.heads import HeadEnd
from curricle.models.hooked import HookedModel
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel

SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call the bound of their logits."""


@runtime_checkable
class _Config(Protocol):
    """What a Hugging Face configuration says about depth."""

    model_type: str
    num_hidden_layers: int


@runtime_checkable
class _HuggingFaceModel(Protocol):
    """The part of a Hugging Face model that is needed to find its taps."""

    config: _Config

    @property
    def base_model(self) -> nn.Module:
        """Return the model without its head."""
        ...

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
        head: Path of the module that makes the logits position by position, after which the pass
            ends; see `HookedModel`. That of Hugging Face models is found, and what they do with
            the logits after it is done.
        is_residual: Whether the blocks share a residual stream; None means yes for Hugging Face
            models and no for others.
        width_axis: Axis of the hidden states that counts features; 1 for convolutions.

    Raises:
        BindError: If a path does not exist, the blocks of a Hugging Face model are not found, or
            a tapped model is described again, or it is no model.
    """
    if not isinstance(model, (nn.Module, TappedModel)):
        raise BindError(
            f"'model' must be a torch.nn.Module, or one that curricle.tapped describes; got "
            f"{type(model).__name__!r} (a folder of stored targets is opened by "
            f"curricle.open_targets, and only as a teacher of 'distill')"
        )
    if not isinstance(model, nn.Module):
        if blocks or head is not None or is_residual is not None or width_axis != -1:
            raise BindError("'model' must not be tapped already to be described; got a tapped one")
        return model
    if isinstance(model, _HuggingFaceModel) and isinstance(model.config, _Config):
        output, base = model.get_output_embeddings(), model.base_model
        return HookedModel(
            model,
            blocks=blocks or block_paths(model, model.config.num_hidden_layers),
            head=_head_paths(model, base=base, output=output) if head is None else head,
            head_end=_head_end(model, output) if head is None else None,
            is_residual=True if is_residual is None else is_residual,
            width_axis=width_axis,
            keywords={"use_cache": False} if _has_cache(model) else None,
        )
    if isinstance(model, MLP):
        blocks = blocks or block_paths(model, len(model.blocks))
    return HookedModel(
        model,
        blocks=blocks,
        head=() if head is None else head,
        is_residual=bool(is_residual),
        width_axis=width_axis,
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


def _head_paths(model: nn.Module, *, base: nn.Module, output: nn.Module | None) -> tuple[str, ...]:
    """Return the top-level children after the base model, up to that with the output embeddings."""
    paths: tuple[str, ...] = ()
    follows_base = False
    for path, child in model.named_children():
        if child is base:
            follows_base, paths = True, ()
            continue
        paths = (*paths, path) if follows_base else (path,)
        if any(module is output for module in child.modules()):
            return paths
    return ()


def _head_end(model: nn.Module, output: nn.Module | None) -> HeadEnd | None:
    """Return where the output embeddings are and what the configuration says of their logits.

    Whether `forward` does as the configuration says is not taken on trust: see `check_head`.
    """
    paths = [path for path, module in model.named_modules() if module is output]
    if not paths:
        return None
    said = {
        name: found
        for name in (*SOFT_CAPS, "logit_scale", "logits_scaling")
        if isinstance(found := getattr(model.config, name, None), (int, float)) and found
    }
    return HeadEnd(
        path=paths[0],
        scale=said.get("logit_scale", 1.0) / said.get("logits_scaling", 1.0),
        soft_cap=next((said[name] for name in SOFT_CAPS if name in said), None),
    )


def _has_cache(model: nn.Module) -> bool:
    """Return whether forward would build a key-value cache, which training must not pay for."""
    return "use_cache" in inspect.signature(type(model).forward).parameters
