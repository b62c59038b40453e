"""Tensors of a batch by field and name, and their digest."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from curricle.data.batch import Batch, named

FIELDS = ("inputs", "labels", "selected", "valid", "teacher_inputs", "alignment", "matched")
"""Fields of a batch that hold tensors."""


def tensors_by_field(batch: Batch) -> dict[str, Mapping[str, Tensor]]:
    """Return the tensors of a batch by field and name; a single tensor has an empty name.

    Args:
        batch: The batch.
    """
    return {field: named(getattr(batch, field)) for field in FIELDS}


def named_tensors(batch: Batch) -> dict[str, Tensor]:
    """Return the tensors of a batch by names such as `labels`, `inputs` or `inputs/input_ids`.

    Args:
        batch: The batch.
    """
    return {
        f"{field}/{name}" if name else field: tensor
        for field, tensors in tensors_by_field(batch).items()
        for name, tensor in tensors.items()
    }


def tensors_digest(tensors: Iterable[tuple[str, Tensor | None]]) -> str:
    """Return the SHA-256 of names, types, shapes and contents of tensors, in hexadecimal.

    Args:
        tensors: Pairs of a name and a tensor, in the order in which they are digested; None for a
            tensor that is absent, of which the name alone counts.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        if tensor is not None:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(content.numpy().data)
    return digest.hexdigest()
