"""How is a curriculum executed, whatever it teaches?

These settings change speed, memory and what is written down; but for precision, accumulation
rounding and clipping they do not change what is learned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, final

import torch
from pydantic import Field

from curricle.errors import BindError
from curricle.specs import value


@final
@value
class EngineSettings:
    """How the engine runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models run; `auto` takes a GPU if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward passes; bfloat16 by autocast, weights stay float32."""
    accumulation: int = Field(default=1, gt=0)
    """Parts into which a batch is cut to save memory; the loss is that of the whole batch."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; None does not clip."""
    evaluate_every: int = Field(default=250, gt=0)
    """Steps between evaluations; the end of the run is always evaluated."""
    record_every: int = Field(default=50, gt=0)
    """Steps between records of the training loss."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints to resume from; None writes none."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of torch; None leaves torch's choice."""

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            BindError: If a GPU is asked for and there is none.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BindError("'device' must be available; got 'cuda' on a machine without a GPU")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @contextmanager
    def stated_threads(self) -> Iterator[None]:
        """Run a block with the stated number of CPU threads; torch's own comes back after.

        Yields:
            Nothing.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run."""
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.torch_device().type, torch.bfloat16, enabled=enabled)
