"""Structural checks: the same answer for objects that forward their attributes."""

from typing import Any, Protocol

import pytest
from torch import nn

from curricle.protocols import conforms


class Named(Protocol):
    """One field and one method."""

    name: str

    def call(self) -> None: ...


class Longer(Named, Protocol):
    """One property besides."""

    @property
    def size(self) -> int: ...


class Plain:
    name = "x"
    size = 1

    def call(self) -> None: ...


class Forwards:
    def __init__(self, inner: object) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class Layered(nn.Module):
    """A module whose fields are submodules, which only `nn.Module.__getattr__` finds."""

    def __init__(self) -> None:
        super().__init__()
        self.name = nn.Identity()
        self.size = nn.Identity()

    def call(self) -> None: ...


@pytest.mark.parametrize(
    "value", [Plain(), Forwards(Plain()), Layered()], ids=["plain", "forwarding", "module"]
)
@pytest.mark.parametrize("protocol", [Named, Longer])
def test_forwarded_attributes_count(value: object, protocol: type) -> None:
    assert conforms(value, protocol)


def test_a_missing_member_is_noticed_also_one_of_a_base() -> None:
    assert not conforms(object(), Named)
    part = Plain()
    part.__dict__["call"] = None
    assert not conforms(part, Longer)


def test_a_member_may_be_none_unless_it_is_a_method() -> None:
    part = Plain()
    part.__dict__["name"] = None
    assert conforms(part, Named)


def test_a_callable_is_recognized() -> None:
    class Calls(Protocol):
        def __call__(self) -> None: ...

    assert conforms(print, Calls)
    assert not conforms(3, Calls)
