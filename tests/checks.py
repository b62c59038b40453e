"""Type and shape checks of every call of a package, at a third of the cost of jaxtyping's own hook.

Jaxtyping's decorator checks arguments twice, once alone and once beside the returned value, and
binds every call to its signature. Both serve its longer error sentences. Here beartype checks a
call once, and only functions with a shape in their signature get a scope for the sizes of their
axes.

Design: jaxtyping's import hook inserts `jaxtyping.jaxtyped(...)` above functions and classes, so
another function under that name is all that changes. Curricle is not imported here, since the hook
comes first.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ForwardRef, get_args

import jaxtyping
from beartype.roar import BeartypeDecorHintForwardRefException

Function = Callable[..., Any]
Checker = Callable[[Function], Function]
JAXTYPED = jaxtyping.jaxtyped
# It has no state of its own, so one serves all calls.
SCOPE = JAXTYPED("context")


def check_calls(packages: Sequence[str], checker: str) -> None:
    """Check the calls of all functions and dataclasses of packages that are imported later.

    Args:
        packages: Names of the packages.
        checker: An expression for the type checker, as jaxtyping's hook takes it.
    """
    jaxtyping.install_import_hook(packages, checker)
    setattr(jaxtyping, "jaxtyped", decorator)  # noqa: B010 - of another type for mypy


def decorator(*, typechecker: Checker) -> Callable[[Any], Any]:
    """Return a decorator for a function or a class."""

    def decorate(target: Any) -> Any:
        if inspect.isfunction(target):
            return checked(target, typechecker)
        if dataclasses.is_dataclass(target) and inspect.isclass(target):
            construct = target.__dict__.get("__init__")
            # What stands in the body of the class is decorated there.
            if construct is not None and not hasattr(construct, "__wrapped__"):
                setattr(target, "__init__", checked(construct, typechecker))  # noqa: B010
            return target
        return JAXTYPED(target, typechecker=typechecker)

    return decorate


def checked(function: Function, typechecker: Checker) -> Function:
    """Return a function that checks its arguments and its returned value."""
    hints = list(function.__annotations__.values())
    # A scope would end before the first value of a generator.
    if inspect.isgeneratorfunction(function) and any(map(has_shape, hints)):
        return JAXTYPED(function, typechecker=typechecker)
    try:
        inner = typechecker(function)
    except BeartypeDecorHintForwardRefException:
        # Names that exist for mypy only; jaxtyping leaves them unchecked.
        return JAXTYPED(function, typechecker=typechecker)
    return scoped(inner) if any(map(has_shape, hints)) else inner


def scoped(function: Function) -> Function:
    """Return a function in whose calls every named axis has one size."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with SCOPE:
            return function(*args, **kwargs)

    return call


def has_shape(hint: Any) -> bool:
    """Return whether a type hint holds a shape; one in a string may."""
    if isinstance(hint, (str, ForwardRef)):
        return "[" in str(hint)
    if isinstance(hint, list):
        return any(map(has_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, get_args(hint)))
