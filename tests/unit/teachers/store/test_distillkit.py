"""DistillKit's packed log-probabilities, written here by hand, bit by bit."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from curricle.errors import DataError, SpecError
from curricle.teachers.store.distillkit import CONFIGURATION, Bin, Compression, read_compression

LOG_KNOWN = [-0.5, -1.25, -2.0, -3.0, -4.5]


def bits(numbers: list[int], width: int) -> bytes:
    text = "".join(f"{number:0{width}b}" for number in numbers)
    text = text.ljust(-(-len(text) // 8) * 8, "0")
    return bytes(int(text[place : place + 8], 2) for place in range(0, len(text), 8))


def rows(content: bytes) -> torch.Tensor:
    return torch.tensor([list(content)], dtype=torch.uint8)


def test_plain_numbers_are_read() -> None:
    config = Compression(d=100, k=5, exact_k=5, delta_encoding=False)
    found = config.log_probabilities(rows(struct.pack("<5f", *LOG_KNOWN)))
    assert found[0].tolist() == LOG_KNOWN


def test_differences_are_added_up() -> None:
    config = Compression(d=100, k=5, exact_k=5, exact_dtype="float16")
    steps = np.diff(LOG_KNOWN, prepend=0)
    found = config.log_probabilities(rows(struct.pack("<5e", *steps)))
    assert found[0].tolist() == pytest.approx(LOG_KNOWN)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_polynomial_and_residuals_are_added(normalized: bool) -> None:
    config = Compression(
        d=100,
        k=6,
        exact_k=1,
        polynomial_terms=(0, 1, "sqrt"),
        term_dtype="float32",
        residual_bins=(
            Bin(scale_dtype="float16", element_bits=3, num_elements=3),
            Bin(scale_dtype="float32", element_bits=1, num_elements=1),
        ),
        delta_encoding=False,
        normalize_t=normalized,
    )
    content = struct.pack("<f", -0.25) + struct.pack("<3f", -1.0, -0.5, 0.25)
    content += struct.pack("<e", 0.5) + bits([0, 4, 7], 3) + struct.pack("<f", 0.125) + bits([0], 1)
    points = np.arange(5) / (4 if normalized else 1)
    curve = -1.0 - 0.5 * points + 0.25 * np.sqrt(points)
    # Three bits count from -4 on; one bit is a sign.
    residuals = np.array([-4 * 0.5, 0.0, 3 * 0.5, -0.125, 0.0])
    found = config.log_probabilities(rows(content))
    np.testing.assert_allclose(found[0], [-0.25, *(curve + residuals)], rtol=1e-6)


def test_ids_are_read() -> None:
    config = Compression(d=128_256, k=3, exact_k=3)
    ids = [128_255, 0, 70_000]
    assert config.classes(rows(bits(ids, 17)))[0].tolist() == ids


def test_too_few_bytes_are_told() -> None:
    with pytest.raises(DataError, match="must have 20 more bytes by its configuration; got 8"):
        Compression(d=9, k=5, exact_k=5).log_probabilities(rows(bytes(8)))


def test_the_configuration_is_read_as_it_is_written(tmp_path: Path) -> None:
    assert read_compression(tmp_path) is None
    written = {
        "d": 128256,
        "k": 8,
        "exact_k": 4,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, 1, "sqrt"],
        "term_dtype": "float32",
        "residual_bins": [{"scale_dtype": "float16", "element_bits": 5, "num_elements": 4}],
        "delta_encoding": False,
        "error_diffusion": False,
        "normalize_t": True,
    }
    (tmp_path / CONFIGURATION).write_text(yaml.safe_dump(written))
    found = read_compression(tmp_path)
    assert found is not None
    assert (found.k, found.residual_bins[0].element_bits, found.normalize_t) == (8, 5, True)
    (tmp_path / CONFIGURATION).write_text(yaml.safe_dump(written | {"own": 1}))
    with pytest.raises(SpecError, match="'own' is not a field"):
        read_compression(tmp_path)
