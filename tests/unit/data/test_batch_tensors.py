"""Tensors of a batch by field and name, and their digest."""

import hashlib
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.data.batch_tensors import FIELDS, named_tensors, tensors_by_field, tensors_digest

IDS = torch.arange(6).view(2, 3)
BATCH = Batch(
    inputs={"input_ids": IDS, "attention_mask": torch.ones(2, 3)},
    valid=torch.ones(2, 3).bool(),
    teacher_inputs=IDS.float(),
)


def test_every_field_with_tensors_is_walked() -> None:
    annotated = {field.name for field in fields(Batch)}
    others = {"length", "group", "step", "offset", "host"}
    assert annotated - others == set(FIELDS)


def test_tensors_have_the_names_of_their_fields_and_inputs() -> None:
    tensors = named_tensors(BATCH)
    assert list(tensors) == ["inputs/input_ids", "inputs/attention_mask", "valid", "teacher_inputs"]
    assert tensors["inputs/input_ids"] is IDS


def test_fields_without_a_tensor_are_empty() -> None:
    by_field = tensors_by_field(BATCH)
    assert [field for field, tensors in by_field.items() if not tensors] == [
        "labels",
        "selected",
        "alignment",
        "matched",
    ]


def test_a_digest_is_that_of_names_types_shapes_and_bytes() -> None:
    content = np.arange(6, dtype=np.int64).tobytes()
    expected = hashlib.sha256(b"labels" + b"idstorch.int64(2, 3)" + content).hexdigest()
    assert tensors_digest([("labels", None), ("ids", IDS)]) == expected


def test_digests_of_strided_and_of_contiguous_tensors_are_equal() -> None:
    def digest(tensor: Tensor) -> str:
        return tensors_digest([("", tensor)])

    assert digest(IDS.T) == digest(IDS.T.contiguous()) != digest(IDS.reshape(3, 2))
