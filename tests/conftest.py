"""Settings of all tests, and the guard against global state.

Curricle itself is not imported here before the hook that checks the shapes of every call.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.checks import check_calls

# As for mypy, an int will do where a float is asked for. The option of jaxtyping's pytest plugin
# splits at commas, so it takes either two packages or a checker with arguments.
check_calls(
    ["curricle", "curricle_papers"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# The first calls of torch are slow, so a deadline would fail tests by chance.
settings.register_profile("curricle", deadline=None, max_examples=50)
settings.load_profile("curricle")

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def disk_is_not_awaited() -> Iterator[None]:
    """Replace fsync, whose only effect shows after a power failure, by a check of its argument."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures undrawn, which takes most of the time of a report; their files hold a word."""
    from matplotlib.figure import Figure

    def write(self: Figure, path: Path, *, format: str, **options: Any) -> None:
        path.write_text(format)

    monkeypatch.setattr(Figure, "savefig", write)


@pytest.fixture(autouse=True)
def global_state_is_left_alone() -> Iterator[None]:
    """Fail a test that leaves torch's generator, default dtype or grad mode changed."""
    random_state = torch.get_rng_state()
    dtype = torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    yield
    changed = {
        "drew from or seeded torch's global generator": not torch.equal(
            random_state, torch.get_rng_state()
        ),
        f"left the default dtype at {torch.get_default_dtype()}": dtype
        != torch.get_default_dtype(),
        f"left grad mode at {torch.is_grad_enabled()}": grad != torch.is_grad_enabled(),
    }
    # The next test shall not fail for this one's fault.
    torch.set_rng_state(random_state)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    found = [deed for deed, done in changed.items() if done]
    assert not found, f"the test {' and '.join(found)}"
