"""Tapped models of the modules that a user already has.

`tapped` takes an MLP, a Hugging Face model or any other module. For Hugging Face models no table
of families is needed: the blocks are the one module list as long as the configuration says, the
head is the top-level children from the base model to the output embeddings, and all taps lie on
the residual stream. Nothing here imports transformers.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from curricle.errors import BindError
from curricle.models.heads import HeadEnd
from curricle.models.hooked import HookedModel
from curricle.models.mlp import MLP
from curricle.models.stacks import Numbering, numbered_blocks
from curricle.models.tapped import TappedModel
from curricle.models.tuners import base_of
from curricle.models.unwrapping import unwrapped
from curricle.protocols import conforms

SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of the bound of the logits in configurations."""


class _HuggingFaceModel(Protocol):
    """The part of a Hugging Face model that is needed to find its taps."""

    config: Any

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
    """Return a model with readable hidden states.

    A tapped model is returned as it is; an `MLP` and Hugging Face models are recognized; any
    other module is read at module paths.

    Args:
        model: The model.
        blocks: Paths of the blocks in forward order; needed only for modules that are not
            recognized, and only if taps shall have numbers.
        head: Path of the module that makes the logits position by position, after which the pass
            ends; see `HookedModel`. For Hugging Face models it is found, and their scaling and
            capping of the logits is applied.
        is_residual: Whether the blocks share a residual stream; None means yes for Hugging Face
            models and no for others.
        width_axis: Axis that counts features in hidden states and classes in logits; 1 for
            convolutions. States with four axes or more need it.

    Raises:
        BindError: If a path does not exist, a tapped model is described again, or it is no
            model.
    """
    if not isinstance(model, nn.Module) and not conforms(model, TappedModel):
        raise BindError(
            f"'model' must be a torch.nn.Module, or one that curricle.tapped describes; got "
            f"{type(model).__name__!r} (a folder of stored targets is opened by "
            f"curricle.open_targets, and only as a teacher of 'distill')"
        )
    if not isinstance(model, nn.Module):
        if blocks or head is not None or is_residual is not None or width_axis != -1:
            raise BindError("'model' must not be tapped already to be described; got a tapped one")
        return model
    model, notes = unwrapped(model)
    output: nn.Module | None = None
    numbering, head_end = Numbering(paths=tuple(blocks)), None
    has_config = conforms(model, _HuggingFaceModel) and hasattr(model.config, "model_type")
    if has_config and not blocks:
        numbering = numbered_blocks(model, model.config)
    elif isinstance(model, MLP) and not blocks:
        numbering = Numbering(paths=tuple(f"blocks.{place}" for place in range(len(model.blocks))))
    # A configuration without a depth is one of several models; what their heads are is not known.
    is_transformer = has_config and hasattr(model.config, "num_hidden_layers")
    if is_transformer and head is None:
        output = _output_embeddings(model)
        head_end = _head_end(model, output)
    return HookedModel(
        model,
        blocks=replace(numbering, notes=(*notes, *numbering.notes)),
        head=_head_paths(model, output) if head is None else head,
        head_end=head_end,
        is_residual=is_transformer if is_residual is None else is_residual,
        width_axis=width_axis,
        keywords=_keywords(model) if has_config else None,
    )


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    """Return the module that makes the logits, if the model has one."""
    try:
        output: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        # Families without a vocabulary may leave the method to their subclasses.
        return None
    return output


def _head_paths(model: nn.Module, output: nn.Module | None) -> tuple[str, ...]:
    """Return the top-level children after the base model, up to that with the output embeddings."""
    if output is None:
        return ()
    inner: Any = base_of(model)
    place = next(path for path, submodule in model.named_modules() if submodule is inner)
    base: object = inner.base_model
    paths: tuple[str, ...] = ()
    follows_base = False
    for name, child in inner.named_children():
        path = f"{place}.{name}" if place else name
        if child is base:
            follows_base, paths = True, ()
            continue
        paths = (*paths, path) if follows_base else (path,)
        if any(module is output for module in child.modules()):
            return paths
    return ()


def _head_end(model: nn.Module, output: nn.Module | None) -> HeadEnd | None:
    """Return the path of the output embeddings and the configured scaling of their logits.

    `check_head` verifies that `forward` agrees with the configuration.
    """
    paths = [path for path, module in model.named_modules() if module is output]
    if not paths:
        return None
    fields = {
        name: field
        for name in (*SOFT_CAPS, "logit_scale", "logits_scaling")
        if isinstance(field := getattr(model.config, name, None), (int, float)) and field
    }
    return HeadEnd(
        path=paths[0],
        scale=fields.get("logit_scale", 1.0) / fields.get("logits_scaling", 1.0),
        soft_cap=next((fields[name] for name in SOFT_CAPS if name in fields), None),
    )


def _keywords(model: nn.Module) -> dict[str, object]:
    """Return fixed keyword arguments of every pass of a Hugging Face model.

    Training must not pay for a key-value cache, and logits are identified by the output's names.
    """
    keywords: dict[str, object] = {}
    if _takes(model, "use_cache"):
        keywords["use_cache"] = False
    if getattr(model.config, "return_dict", True) is False:
        keywords["return_dict"] = True
    return keywords


def _takes(model: nn.Module, name: str) -> bool:
    """Return whether a model has an option, also behind a wrapper of PEFT that passes it on."""
    parameters = inspect.signature(type(model).forward).parameters
    inner = base_of(model)
    if name in parameters or inner is model:
        return name in parameters
    passes = any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    return passes and _takes(inner, name)
