"""Unpacking of the top-k log-probabilities in DistillKit's Parquet files.

A YAML file beside the Parquet files describes the packing. The k log-probabilities of a position
are in descending order. The first `exact_k` are plain floating-point numbers. The remaining ones
are the sum of a polynomial in their index, with its coefficients next in the row, and of residuals:
whole numbers of few bits in bins, each bin preceded by its scale. With `delta_encoding` all numbers
are differences to their predecessors. Ids are packed with the highest bit first.

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
    """Residuals with one scale."""

    scale_dtype: Number
    """Type of the scale."""
    element_bits: int = Field(gt=0, le=32)
    """Bits of a residual."""
    num_elements: int = Field(gt=0)
    """Number of residuals."""


@final
@value
class Compression:
    """Content of `compression_config.yaml`."""

    d: int = Field(gt=0)
    """Size of the vocabulary."""
    k: int = Field(gt=0)
    """Number of classes per position."""
    exact_k: int = Field(ge=0)
    """Number of log-probabilities stored as plain numbers."""
    exact_dtype: Number = "float32"
    """Their type."""
    polynomial_terms: tuple[int | Literal["sqrt", "exp"], ...] | None = None
    """Powers and functions of the polynomial."""
    term_dtype: Number = "float32"
    """Type of the coefficients."""
    residual_bins: tuple[Bin, ...] = ()
    """Bins of the residuals."""
    delta_encoding: bool = True
    """Whether numbers are differences."""
    error_diffusion: bool = False
    """Rounding method of the residuals; without effect on reading."""
    normalize_t: bool = False
    """Whether the polynomial's variable runs from 0 to 1 instead of over the indices."""

    def classes(self, content: UInt8[Tensor, "row byte"]) -> Int[Tensor, "row draw"]:
        """Return the ids in the bytes of `bytepacked_indices`."""
        return unpacked(content, bits_of(self.d), self.k)

    def log_probabilities(self, content: UInt8[Tensor, "row byte"]) -> Float[Tensor, "row draw"]:
        """Return the log-probabilities in the bytes of `compressed_logprobs`."""
        cursor = _ByteCursor(content)
        exact = cursor.read_numbers(self.exact_k, self.exact_dtype)
        terms = self.polynomial_terms or ()
        coefficients = cursor.read_numbers(len(terms), self.term_dtype)
        num_approximate = self.k - self.exact_k
        curve = torch.zeros(len(content), num_approximate)
        if terms:
            curve = (self._terms(num_approximate) * coefficients.unsqueeze(1)).sum(-1)
        start = 0
        for residual_bin in self.residual_bins:
            residuals = cursor.read_residuals(residual_bin)
            # The bins may end early; the polynomial alone gives the last classes then.
            curve[:, start : start + residual_bin.num_elements] += residuals
            start += residual_bin.num_elements
        values = torch.cat([exact, curve], dim=-1)
        return values.cumsum(-1) if self.delta_encoding else values

    def _terms(self, count: int) -> Float[Tensor, "draw term"]:
        # The variable is the index among the approximated classes, not among all k.
        points = torch.linspace(0, 1, count) if self.normalize_t else torch.arange(count).float()
        functions = {"sqrt": torch.sqrt, "exp": torch.exp}
        columns = [
            functions[term](points) if isinstance(term, str) else points**term
            for term in self.polynomial_terms or ()
        ]
        return torch.stack(columns, dim=-1)


def read_compression(folder: Path) -> Compression | None:
    """Return the configuration of a folder of Parquet files; None if there is none."""
    path = folder / CONFIGURATION
    if not path.is_file():
        return None
    compression: Compression = parse(Compression, read_yaml(path), source=str(path))
    return compression


@final
class _ByteCursor:
    """Sequential reader of packed rows."""

    def __init__(self, content: UInt8[Tensor, "row byte"]) -> None:
        self._content = content

    def read_numbers(self, count: int, dtype: Number) -> Float[Tensor, "row draw"]:
        size = DTYPES[dtype].itemsize
        content = self._take(count * size)
        if not count:
            return torch.zeros(len(content), 0)
        # `view` in another dtype refuses the strides of a column slice, so bytes are copied.
        numbers = content.flatten().clone().view(DTYPES[dtype])
        return numbers.reshape(len(content), count).float()

    def read_residuals(self, residual_bin: Bin) -> Float[Tensor, "row draw"]:
        bits, count = residual_bin.element_bits, residual_bin.num_elements
        scale = self.read_numbers(1, residual_bin.scale_dtype)
        # Each bin ends at a full byte.
        steps = unpacked(self._take(-(-bits * count // 8)), bits, count).float()
        # A single bit is a sign, -1 or 1; wider residuals are offset binary around the middle.
        centered = steps * 2 - 1 if bits == 1 else steps - 2 ** (bits - 1)
        return centered * scale

    def _take(self, count: int) -> UInt8[Tensor, "row byte"]:
        """Return the next bytes of each row and advance.

        Raises:
            DataError: If fewer are left.
        """
        if self._content.shape[1] < count:
            raise DataError(
                f"'compressed_logprobs' must have {count} more bytes by its configuration; got "
                f"{self._content.shape[1]}"
            )
        content, self._content = self._content[:, :count], self._content[:, count:]
        return content
