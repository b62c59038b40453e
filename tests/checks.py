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
from typing import Any, ForwardRef, Literal, get_args, get_origin, get_type_hints

import jaxtyping

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
    """Return a function that checks its arguments and its returned value.

    Kernels stay as they are: triton compiles the source of a function, and sees no arguments in
    that of a wrapper.
    """
    if "triton" in function.__globals__:
        return function
    hints = function.__annotations__
    known = {name: resolved(hint, function.__globals__) for name, hint in hints.items()}
    needs_scope = any(map(has_shape, known.values()))
    # A scope would end before the first value of a generator.
    if inspect.isgeneratorfunction(function) and needs_scope:
        return JAXTYPED(function, typechecker=typechecker)
    function.__annotations__ = known
    inner = typechecker(function)
    function.__annotations__ = inner.__annotations__ = hints
    return scoped(inner) if needs_scope else inner


def resolved(hint: Any, names: dict[str, Any]) -> Any:
    """Return a type hint without strings; `Any` if it names what does not exist here, or not yet.

    Beartype would look again at each call, and not find what is imported for mypy alone.
    """
    if not has_string(hint):
        return hint

    def holder() -> None:
        """Stand for a function with this hint."""

    holder.__annotations__ = {"hint": hint}
    try:
        return get_type_hints(holder, names, include_extras=True)["hint"]
    except (AttributeError, NameError):
        return Any


def has_string(hint: Any) -> bool:
    """Return whether a type hint holds a string, which stands for a name that comes later."""
    if isinstance(hint, list):
        return any(map(has_string, hint))
    return isinstance(hint, (str, ForwardRef)) or any(map(has_string, parameters(hint)))


def scoped(function: Function) -> Function:
    """Return a function in whose calls every named axis has one size."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with SCOPE:
            return function(*args, **kwargs)

    return call


def has_shape(hint: Any) -> bool:
    """Return whether a type hint without strings holds a shape."""
    if isinstance(hint, list):
        return any(map(has_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, parameters(hint)))


def parameters(hint: Any) -> tuple[Any, ...]:
    """Return the hints inside a hint; the values of a `Literal` are none."""
    return () if get_origin(hint) is Literal else get_args(hint)
