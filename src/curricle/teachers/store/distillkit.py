"""How does DistillKit pack the top-k log-probabilities of its Parquet files?

Its capture writes the configuration of the packing beside the files. A position's k
log-probabilities fall from the first on. The first `exact_k` are plain floating-point numbers. The
others are the sum of a polynomial in their number, whose coefficients follow, and residuals, which
are whole numbers of few bits in bins, each bin with its scale before it. With `delta_encoding` all
these numbers are the differences to the one before. Ids are packed with the highest bit first.

Axes: row (positions), byte, draw (the k classes), term (of the polynomial).

Design: our own reader of a layout that was established from the project's public source at commit
03b326e (`sample_logits_vllm.py`, `compression/`), with no code taken from it. The older layout
(`packed_indices`, `exact_values`, `coeffs`) is not read.
"""

from pathlib import Path
from typing import Literal, final

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from curricle.errors import DataError
from curricle.teachers.store.packing import bits_of, unpacked
from curricle.values import parse, read_yaml, value

CONFIGURATION = "compression_config.yaml"
Number = Literal["float16", "bfloat16", "float32", "float64"]
DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@final
@value
class Bin:
    """Some residuals of one scale."""

    scale_dtype: Number
    """Type of the scale."""
    element_bits: int = Field(gt=0, le=32)
    """Bits of a residual."""
    num_elements: int = Field(gt=0)
    """Number of residuals."""


@final
@value
class Compression:
    """What `compression_config.yaml` holds."""

    d: int = Field(gt=0)
    """Size of the vocabulary."""
    k: int = Field(gt=0)
    """Classes of a position."""
    exact_k: int = Field(ge=0)
    """How many are plain numbers."""
    exact_dtype: Number = "float32"
    """Their type."""
    polynomial_terms: tuple[int | Literal["sqrt", "exp"], ...] | None = None
    """Powers and functions whose sum approximates the others."""
    term_dtype: Number = "float32"
    """Type of the coefficients."""
    residual_bins: tuple[Bin, ...] = ()
    """How what is left is packed."""
    delta_encoding: bool = True
    """Whether numbers are differences."""
    error_diffusion: bool = False
    """How residuals were rounded; of no effect for a reader."""
    normalize_t: bool = False
    """Whether the polynomial's variable runs from 0 to 1 instead of by ones."""

    def classes(self, content: UInt8[Tensor, "row byte"]) -> Int[Tensor, "row draw"]:
        """Return the ids in the bytes of `bytepacked_indices`."""
        return unpacked(content, bits_of(self.d), self.k)

    def log_probabilities(self, content: UInt8[Tensor, "row byte"]) -> Float[Tensor, "row draw"]:
        """Return the log-probabilities in the bytes of `compressed_logprobs`."""
        bytes_left = _Bytes(content)
        exact = bytes_left.numbers(self.exact_k, self.exact_dtype)
        terms = self.polynomial_terms or ()
        coefficients = bytes_left.numbers(len(terms), self.term_dtype)
        others = self.k - self.exact_k
        curve = torch.zeros(len(content), others)
        if terms:
            shape = self._terms(others)
            curve = (shape * coefficients.unsqueeze(1)).sum(-1)
        start = 0
        for one in self.residual_bins:
            residuals = bytes_left.residuals(one)
            curve[:, start : start + one.num_elements] += residuals
            start += one.num_elements
        whole = torch.cat([exact, curve], dim=-1)
        return whole.cumsum(-1) if self.delta_encoding else whole

    def _terms(self, count: int) -> Float[Tensor, "draw term"]:
        points = torch.linspace(0, 1, count) if self.normalize_t else torch.arange(count).float()
        functions = {"sqrt": torch.sqrt, "exp": torch.exp}
        columns = [
            functions[term](points) if isinstance(term, str) else points**term
            for term in self.polynomial_terms or ()
        ]
        return torch.stack(columns, dim=-1)


def read_compression(folder: Path) -> Compression | None:
    """Return the configuration in a folder of DistillKit's; None if there is none."""
    path = folder / CONFIGURATION
    if not path.is_file():
        return None
    found: Compression = parse(Compression, read_yaml(path), source=str(path))
    return found


@final
class _Bytes:
    """Takes what is packed off the front of some rows."""

    def __init__(self, content: UInt8[Tensor, "row byte"]) -> None:
        self._left = content

    def numbers(self, count: int, dtype: Number) -> Float[Tensor, "row draw"]:
        size = DTYPES[dtype].itemsize
        taken = self._take(count * size)
        if not count:
            return torch.zeros(len(taken), 0)
        # A slice of one row keeps strides that a view in other units would refuse.
        plain = taken.flatten().clone().view(DTYPES[dtype])
        return plain.reshape(len(taken), count).float()

    def residuals(self, one: Bin) -> Float[Tensor, "row draw"]:
        scale = self.numbers(1, one.scale_dtype)
        taken = self._take(-(-one.element_bits * one.num_elements // 8))
        steps = unpacked(taken, one.element_bits, one.num_elements).float()
        # One bit is a sign; more are counted from the middle.
        middle = steps * 2 - 1 if one.element_bits == 1 else steps - 2 ** (one.element_bits - 1)
        return middle * scale

    def _take(self, count: int) -> UInt8[Tensor, "row byte"]:
        """Return the next bytes of each row.

        Raises:
            DataError: If there are not so many.
        """
        if self._left.shape[1] < count:
            raise DataError(
                f"'compressed_logprobs' must have {count} more bytes by its configuration; got "
                f"{self._left.shape[1]}"
            )
        taken, self._left = self._left[:, :count], self._left[:, count:]
        return taken
