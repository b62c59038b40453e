"""Wrappers of torch: the module inside is read."""

from typing import Any

import torch
from torch import nn

from curricle.models.mlp import MLP
from curricle.models.unwrapping import unwrapped
from curricle.models.wrapping import tapped
from tests.parts import mlp

NOTE = (
    "the wrapper {wrapper} of {module} was taken off: taps are read from the module itself, which "
    "runs uncompiled and without replicas"
)


def plain() -> MLP:
    module = mlp(5, 4).module
    assert isinstance(module, MLP)
    return module


def compiled(module: nn.Module) -> nn.Module:
    # This backend needs none of the compiler's imports, which warn.
    wrapper: Any = torch.compile(module, backend="eager")
    assert isinstance(wrapper, nn.Module)
    return wrapper


def test_a_module_without_a_wrapper_stays() -> None:
    module = plain()
    assert unwrapped(module) == (module, ())


def test_a_compiled_module_is_read_itself() -> None:
    module = plain()
    model = tapped(compiled(module))
    assert model.module is module
    assert model.depth == 2
    assert getattr(model, "notes", ()) == (NOTE.format(wrapper="OptimizedModule", module="MLP"),)


def test_data_parallel_is_taken_off_also_around_another_wrapper() -> None:
    module = plain()
    inner, notes = unwrapped(nn.DataParallel(compiled(module)))
    assert inner is module
    assert notes == (
        NOTE.format(wrapper="DataParallel", module="OptimizedModule"),
        NOTE.format(wrapper="OptimizedModule", module="MLP"),
    )
