"""Tapped models of users' modules.

`tapped` accepts an MLP, a Hugging Face model or any other module. For Hugging Face models no table
of families is needed. Their blocks are traced in a forward pass; where that fails, they are the one
module list whose length is that in the configuration. The head consists of the top-level children
after the base model, up to the output embeddings. All taps lie on the residual stream. Nothing here
imports transformers.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from curricle.errors import CAUSAL_LOADER, BindError, loading_hint
from curricle.models.heads import HeadEnd
from curricle.models.hooked import HookedModel
from curricle.models.mlp import MLP
from curricle.models.peft_adapters import base_of
from curricle.models.stacks import Numbering, below, numbered_blocks, traced_numbering
from curricle.models.tapped import SEQUENCE_FIRST, TappedModel
from curricle.models.tracing import traced_stacks
from curricle.models.unwrapping import unwrapped
from curricle.protocols import conforms
from curricle.renamed import known_arguments

SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of the bound of the logits in configurations."""


@known_arguments
def tapped(
    model: nn.Module | TappedModel,
    *,
    blocks: Sequence[str] = (),
    head: str | None = None,
    is_residual: bool | None = None,
    width_axis: int = -1,
    batch_axis: Literal[0, 1] = 0,
    output: str = "",
) -> TappedModel:
    """Return a model with readable hidden states.

    A tapped model is returned unchanged; an `MLP` and Hugging Face models are recognized; any other
    module is read at module paths.

    Args:
        model: The model.
        blocks: Paths of the blocks in forward order; needed only for numbered taps of modules that
            are not recognized.
        head: Path of the module that computes the logits position by position and ends the forward
            pass; see `HookedModel`. In Hugging Face models it is found, with their operations on
            the logits after it.
        is_residual: Whether the blocks share a residual stream; None means yes for Hugging Face
            models and no for others.
        width_axis: Axis that counts features in hidden states and classes in logits; 1 for
            convolutions. States with four axes or more need it.
        batch_axis: Axis that counts examples in hidden states of examples, positions and features;
            1 for the layers of torch without `batch_first`. It holds for all taps of the model:
            states with the examples first, as before a transpose to such layers or after the
            transpose back, are refused as taps. Inputs and logits have the examples first in any
            case.
        output: Name, or number, of the entry of the output of `forward` that holds the logits, as
            of one head of several; empty for the only one, or that named `logits`.

    Raises:
        BindError: If a path does not exist, a tapped model is described again, it is not a model,
            or both axes are declared; if both `output` and `head` are given.
    """
    if not isinstance(model, nn.Module) and not conforms(model, TappedModel):
        raise BindError(
            f"'model' must be a torch.nn.Module, or one that curricle.tapped describes; got "
            f"{type(model).__name__!r}{loading_hint(model, CAUSAL_LOADER)} (a folder of "
            f"stored targets is opened by curricle.open_targets, and only as a teacher of "
            f"'distill')"
        )
    if isinstance(blocks, str):
        # A text is a sequence of letters, each of which could be a path.
        raise BindError(
            f"'blocks' must be a list of module paths, as blocks=[{blocks!r}]; got {blocks!r}"
        )
    _check_combined(output=output, head=head, batch_axis=batch_axis, width_axis=width_axis)
    if not isinstance(model, nn.Module):
        is_plain = head is None and is_residual is None and (width_axis, batch_axis) == (-1, 0)
        if blocks or output or not is_plain:
            raise BindError("'model' must not be tapped already to be described; got a tapped one")
        return model
    model, notes = unwrapped(model)
    embeddings: nn.Module | None = None
    numbering, head_end = Numbering(paths=tuple(blocks)), None
    has_config = _is_hugging_face(model)
    inner = None if blocks else _inner_path(model)
    if inner is not None:
        numbering = _numbering(model.get_submodule(inner))
        numbering = below(inner, numbering) if inner else numbering
    elif isinstance(model, MLP) and not blocks:
        numbering = Numbering(paths=tuple(f"blocks.{place}" for place in range(len(model.blocks))))
    # A configuration without a depth is one of several models, with unknown heads, unless a pass
    # has shown the stack that they read.
    main = numbering.main
    is_transformer = has_config and (hasattr(model.config, "num_hidden_layers") or main is not None)
    # Taps inside a module lie on the stream of the model in it, if a pass has shown the stack.
    has_stream = is_transformer or (inner is not None and main is not None)
    keeps_shape = main is None or main.keeps_shape
    # The head of the logits makes no other output.
    if is_transformer and head is None and not output:
        embeddings = _output_embeddings(model)
        head_end = _head_end(model, embeddings)
    return HookedModel(
        model,
        blocks=replace(
            numbering,
            notes=(*notes, *numbering.notes),
            order=SEQUENCE_FIRST if batch_axis else (),
        ),
        head=_head_paths(model, embeddings) if head is None else head,
        head_end=head_end,
        is_residual=(has_stream and keeps_shape) if is_residual is None else is_residual,
        width_axis=width_axis,
        output=output,
        keywords=_keywords(model) if has_config else None,
    )


def _check_combined(*, output: str, head: str | None, batch_axis: int, width_axis: int) -> None:
    """Check that the arguments of `tapped` describe one model.

    Raises:
        BindError: If two of them exclude each other.
    """
    if output and head is not None:
        raise BindError(
            f"'output' must not be combined with 'head', whose output is the logits; got {output!r}"
        )
    if batch_axis and width_axis != -1:
        raise BindError(
            f"'batch_axis' must be 0 beside 'width_axis', which describes states of other axes "
            f"than examples, positions and features; got {batch_axis} beside {width_axis}"
        )


def _inner_path(model: nn.Module) -> str | None:
    """Return the path of the only Hugging Face model in a module, the outermost of nested ones.

    Empty for a module that is one, and None if there is none or several.
    """
    paths: list[str] = []
    for path, module in model.named_modules():
        is_inside = any(not outer or path.startswith(f"{outer}.") for outer in paths)
        if not is_inside and _is_hugging_face(module):
            paths.append(path)
    return paths[0] if len(paths) == 1 else None


def _numbering(model: nn.Module) -> Numbering:
    """Return the blocks of a Hugging Face model, as a pass or its configuration shows them."""
    stacks = traced_stacks(model, _keywords(model))
    return traced_numbering(model, stacks, numbered_blocks(model, model.config))


def _is_hugging_face(model: nn.Module) -> bool:
    """Return whether a model has the attributes of transformers, also behind a wrapper."""
    has_methods = callable(getattr(model, "get_output_embeddings", None))
    has_base = has_methods and hasattr(model, "base_model")
    return has_base and hasattr(getattr(model, "config", None), "model_type")


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    """Return the module that computes the logits, if the model has one."""
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
    inner = base_of(model)
    place = next(path for path, module in model.named_modules() if module is inner)
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
    """Return the path of the output embeddings and their operations in the configuration.

    `check_head` verifies that `forward` agrees with the configuration.
    """
    paths = [path for path, module in model.named_modules() if module is output]
    if not paths:
        return None
    factors = {
        name: factor
        for name in (*SOFT_CAPS, "logit_scale", "logits_scaling")
        if isinstance(factor := getattr(model.config, name, None), (int, float)) and factor
    }
    return HeadEnd(
        path=paths[0],
        scale=factors.get("logit_scale", 1.0) / factors.get("logits_scaling", 1.0),
        soft_cap=next((factors[name] for name in SOFT_CAPS if name in factors), None),
    )


def _keywords(model: nn.Module) -> dict[str, object]:
    """Return fixed keyword arguments of every forward pass of a Hugging Face model.

    Training must not pay for a key-value cache, and logits are recognized by their name.
    """
    keywords: dict[str, object] = {}
    if _accepts(model, "use_cache"):
        keywords["use_cache"] = False
    if getattr(model.config, "return_dict", True) is False:
        keywords["return_dict"] = True
    return keywords


def _accepts(model: nn.Module, name: str) -> bool:
    """Return whether a model has an option, also behind a wrapper of PEFT that passes it on."""
    parameters = inspect.signature(type(model).forward).parameters
    inner = base_of(model)
    if name in parameters or inner is model:
        return name in parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds and _accepts(inner, name)
