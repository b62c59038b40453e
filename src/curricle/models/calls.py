"""Calls of modules with the inputs of a batch.

Named inputs are passed as keywords. A module whose forward pass takes all of them in one mapping,
as those of sentence-transformers do, declares it by the annotation of its only required argument.
"""

import inspect
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import cast

from torch import Tensor, nn

from curricle.models.tapped import Inputs

MAPPINGS = ("dict", "Mapping", "MutableMapping")
"""Names of the types of a mapping in annotations, without their module."""
LISTED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
"""Kinds of arguments that may be passed by position."""


def run_module(
    module: nn.Module, inputs: Inputs, keywords: Mapping[str, object] | None = None
) -> object:
    """Return the output of a module for the inputs of a batch.

    Args:
        module: The module.
        inputs: One tensor, or named tensors.
        keywords: Further keyword arguments.
    """
    options = keywords or {}
    if isinstance(inputs, Tensor):
        return module(inputs, **options)
    # The type checker does not take a class for hashable.
    if takes_mapping(cast("Hashable", type(module))):
        # A copy: modules of sentence-transformers add their outputs to it.
        return module(dict(inputs), **options)
    return module(**inputs, **options)


@lru_cache(maxsize=256)
def takes_mapping(kind: type[nn.Module]) -> bool:
    """Return whether modules of a class take all named inputs in one mapping.

    Args:
        kind: Class of the module.
    """
    try:
        parameters = [*inspect.signature(kind.forward).parameters.values()][1:]
    except (TypeError, ValueError):
        return False
    listed = [parameter for parameter in parameters if parameter.kind in LISTED]
    required = [parameter for parameter in listed if parameter.default is parameter.empty]
    return len(required) == 1 and required[0] is listed[0] and _is_mapping(required[0].annotation)


def _is_mapping(annotation: object) -> bool:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text.strip("'\" ").partition("[")[0].rpartition(".")[2] in MAPPINGS
