"""Reader of the packed top-k log-probabilities in DistillKit's Parquet files.

DistillKit writes the configuration of the packing beside the files. The k log-probabilities of a
position are in descending order. The first `exact_k` are plain floating-point numbers. The others
are the sum of a polynomial in their index, with the coefficients next in the row, and of quantized
residuals in bins, each bin preceded by its scale. With `delta_encoding` every number is the
difference to the previous number. Ids are packed with the highest bit first.

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
    """Residuals with a common scale."""

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
    """Classes of a position."""
    exact_k: int = Field(ge=0)
    """Number of log-probabilities stored as plain numbers."""
    exact_dtype: Number = "float32"
    """Their type."""
    polynomial_terms: tuple[int | Literal["sqrt", "exp"], ...] | None = None
    """Powers and functions of the polynomial that approximates the other log-probabilities."""
    term_dtype: Number = "float32"
    """Type of the coefficients."""
    residual_bins: tuple[Bin, ...] = ()
    """Packing of the residuals of the approximation."""
    delta_encoding: bool = True
    """Whether each number is the difference to the previous number."""
    error_diffusion: bool = False
    """Rounding method of the writer; without effect on reading."""
    normalize_t: bool = False
    """Whether the polynomial's variable runs from 0 to 1 instead of by ones."""

    def classes(self, content: UInt8[Tensor, "row byte"]) -> Int[Tensor, "row draw"]:
        """Return the ids in the bytes of `bytepacked_indices`."""
        return unpacked(content, bits_of(self.d), self.k)

    def log_probabilities(self, content: UInt8[Tensor, "row byte"]) -> Float[Tensor, "row draw"]:
        """Return the log-probabilities in the bytes of `compressed_logprobs`."""
        # The order of these reads is the layout: exact numbers, coefficients, bins of residuals.
        bytes_left = _Bytes(content)
        exact = bytes_left.numbers(self.exact_k, self.exact_dtype)
        terms = self.polynomial_terms or ()
        coefficients = bytes_left.numbers(len(terms), self.term_dtype)
        num_approximated = self.k - self.exact_k
        curve = torch.zeros(len(content), num_approximated)
        if terms:
            shape = self._terms(num_approximated)
            curve = (shape * coefficients.unsqueeze(1)).sum(-1)
        # Bins cover the approximated classes from the most likely on. Classes after the last bin
        # keep the polynomial alone.
        start = 0
        for residual_bin in self.residual_bins:
            residuals = bytes_left.residuals(residual_bin)
            curve[:, start : start + residual_bin.num_elements] += residuals
            start += residual_bin.num_elements
        numbers = torch.cat([exact, curve], dim=-1)
        return numbers.cumsum(-1) if self.delta_encoding else numbers

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
    compression: Compression = parse(Compression, read_yaml(path), source=str(path))
    return compression


@final
class _Bytes:
    """Packed rows that are consumed from the front."""

    def __init__(self, content: UInt8[Tensor, "row byte"]) -> None:
        self._left = content

    def numbers(self, count: int, dtype: Number) -> Float[Tensor, "row draw"]:
        size = DTYPES[dtype].itemsize
        content = self._take(count * size)
        if not count:
            return torch.zeros(len(content), 0)
        # A slice of a single row keeps its strides, with which a view as another type fails.
        plain = content.flatten().clone().view(DTYPES[dtype])
        return plain.reshape(len(content), count).float()

    def residuals(self, residual_bin: Bin) -> Float[Tensor, "row draw"]:
        scale = self.numbers(1, residual_bin.scale_dtype)
        content = self._take(-(-residual_bin.element_bits * residual_bin.num_elements // 8))
        steps = unpacked(content, residual_bin.element_bits, residual_bin.num_elements).float()
        # A single bit encodes the sign, -1 or 1; wider residuals are unsigned with an offset of
        # half their range.
        middle = (
            steps * 2 - 1
            if residual_bin.element_bits == 1
            else steps - 2 ** (residual_bin.element_bits - 1)
        )
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
        content, self._left = self._left[:, :count], self._left[:, count:]
        return content
