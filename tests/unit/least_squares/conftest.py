"""Layers that tests build draw from a generator of their own."""

from collections.abc import Iterator

import pytest

from curricle import seeding


@pytest.fixture(autouse=True)
def _drawn_apart() -> Iterator[None]:
    with seeding.scoped(0, "layers of a test"):
        yield
