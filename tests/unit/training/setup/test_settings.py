"""How the engine's settings become a placement and precisions."""

from typing import Any

import pytest
import torch

from curricle.errors import BindError, SpecError
from curricle.models.inference import Inference
from curricle.training.setup.placement import HOST
from curricle.training.setup.settings import TrainingSettings


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TrainingSettings().placement is HOST


def test_with_a_gpu_auto_is_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert TrainingSettings().placement.kind == "cuda"
    assert TrainingSettings(device="cpu").placement is HOST


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BindError, match=r"^'device' must be available; got 'cuda' on a machine"):
        _ = TrainingSettings(device="cuda").placement


def test_the_stated_threads_are_used_in_the_block_only() -> None:
    before = torch.get_num_threads()
    with TrainingSettings(threads=before + 1).stated_threads():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_without_a_stated_number_the_threads_are_torchs() -> None:
    before = torch.get_num_threads()
    with TrainingSettings().stated_threads():
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_precision_is_that_of_matrix_products(precision: str, dtype: torch.dtype) -> None:
    settings = TrainingSettings(device="cpu", precision=precision)  # type: ignore[arg-type]
    with settings.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    with settings.teacher_autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert settings.precisions == (precision,)


def test_the_teacher_may_have_a_precision_of_its_own() -> None:
    settings = TrainingSettings(device="cpu", teacher_precision="bfloat16")
    with settings.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with settings.teacher_autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert settings.precisions == ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("gradient_accumulation_steps", 0),
        ("max_grad_norm", 0.0),
        ("eval_every", 0),
        ("log_every", 0),
        ("save_every", 0),
        ("threads", 0),
        ("precision", "float16"),
        ("teacher_precision", "float16"),
    ],
)
def test_a_wrong_setting_is_named(field: str, wrong: object) -> None:
    with pytest.raises(
        SpecError, match=rf"^'TrainingSettings\.{field}' .*; got {wrong!r}($|; did you mean)"
    ):
        TrainingSettings(**{field: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            {"max_grad_norm": 1.0},
            r"'compiled_steps=4' cannot .* with 'max_grad_norm=1.0': .*clipping",
        ),
        (
            {"gradient_accumulation_steps": 2},
            r"'compiled_steps=4' cannot be used with 'gradient_acc.*=2': .*do not support",
        ),
        ({"prefetch": "batch"}, r"cannot be used with 'prefetch=batch': .*; remove one of them$"),
        ({"compile": "both"}, r"'compiled_steps=4' cannot be used with 'compile=both': "),
    ],
)
def test_what_needs_single_steps_is_refused_with_compiled_ones(
    other: dict[str, float], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        TrainingSettings(compiled_steps=4, **other)  # type: ignore[arg-type]
    assert TrainingSettings(**other).compiled_steps == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["log_every", "eval_every", "save_every"])
def test_compiled_steps_fit_between_what_is_written(name: str) -> None:
    TrainingSettings(compiled_steps=10, **{name: 10})  # type: ignore[arg-type]
    with pytest.raises(
        SpecError, match=r"'compiled_steps' must not exceed the 9 steps between .*; got 10$"
    ):
        TrainingSettings(compiled_steps=10, **{name: 9})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "linear"),
    [
        ({}, None),
        ({"precision": "bfloat16"}, torch.bfloat16),
        ({"teacher_precision": "bfloat16"}, torch.bfloat16),
        ({"precision": "bfloat16", "teacher_precision": "float32"}, None),
    ],
)
@pytest.mark.parametrize(
    ("compile_", "compiled"),
    [("none", False), ("student", False), ("teacher", True), ("both", True)],
)
def test_settings_say_how_the_teacher_is_made_fast(
    settings: dict[str, Any], linear: torch.dtype | None, compile_: Any, compiled: bool
) -> None:
    found = TrainingSettings(**settings, compile=compile_).teacher_inference
    assert found == Inference(linear=linear, compiled=compiled)


def test_nothing_can_be_made_ahead_where_every_step_is_written_down() -> None:
    with pytest.raises(SpecError, match=r"'prefetch=batch' cannot be used with an interval of 1"):
        TrainingSettings(prefetch="batch", log_every=1)
