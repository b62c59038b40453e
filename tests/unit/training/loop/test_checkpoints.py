"""What a checkpoint holds comes back exactly, and anything else is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from curricle import seeding
from curricle.checksums import SEAL, check_sealed, seal_folder, sealed_names
from curricle.curriculum.strategies import one_shot
from curricle.errors import CheckpointError
from curricle.objectives.adapters import LinearMap
from curricle.records import Usage
from curricle.training.binding.timeline import Timeline, plan_spans
from curricle.training.loop.checkpoints import (
    ADAPTERS,
    ADAPTERS_OPTIMIZER,
    OPTIMIZER,
    STATE,
    STUDENT,
    RunState,
    clear_leftovers,
    latest_checkpoint,
    load_adapters,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from curricle.training.setup.optimizers import SGD, AdamW, Optimizer
from tests.parts import drawn

OPTIMIZERS: list[Optimizer] = [
    SGD(learning_rate=0.1),
    SGD(learning_rate=0.1, momentum=0.9),
    AdamW(learning_rate=0.1),
]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["plain", "sgd", "adamw"])


def model(seed: int = 0, width: int = 4) -> nn.Module:
    with seeding.scoped(seed, "model"):
        return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def stepped(optimizer: Optimizer, module: nn.Module, steps: int) -> torch.optim.Optimizer:
    """Return an optimizer that has taken some steps; the last layer never had a gradient."""
    built = optimizer.build(module.parameters())
    for _ in range(steps):
        for name, parameter in module.named_parameters():
            if not name.startswith("2."):
                parameter.grad = parameter.detach().cos()
        built.step()
    return built


def state(steps: int = 7) -> RunState:
    usage = Usage(steps=steps, examples=70, tokens=700, student_flops=5, seconds=1.5)
    return RunState(usage=usage, records_bytes=123, run="0123456789abcdef")


def forge(path: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint and mend all hashes and counts, as no accident does."""
    (path / name).write_bytes(content)
    counts = json.loads((path / STATE).read_text())
    if name in counts["tensors"]:
        counts["tensors"][name] = len(load(content))
    (path / STATE).write_text(json.dumps(counts))
    seal_folder(path, sealed_names(path))


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@every_optimizer
def test_weights_and_optimizer_go_on_as_if_nothing_had_happened(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    module = model()
    built = stepped(optimizer, module, 3)
    path = save_checkpoint(tmp_path, state(), module, built)
    other = model(1)
    restored = optimizer.build(other.parameters())
    load_checkpoint(path, other, restored)
    assert same(module, other)
    for one, its in ((module, built), (other, restored)):
        for parameter in one.parameters():
            parameter.grad = torch.full_like(parameter, 0.3)
        its.step()
    assert same(module, other)


@every_optimizer
def test_parameters_without_state_have_none_after_loading(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    module = model()
    built = stepped(optimizer, module, 2)
    path = save_checkpoint(tmp_path, state(), module, built)
    other = model()
    restored = stepped(optimizer, other, 1)
    load_checkpoint(path, other, restored)
    with_state = [parameter in restored.state for parameter in other.parameters()]
    assert with_state[4:] == [False, False]


def test_where_the_run_stood_is_read_back(tmp_path: Path) -> None:
    module = model()
    path = save_checkpoint(tmp_path, state(), module, stepped(OPTIMIZERS[0], module, 1))
    assert read_state(path) == state()


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 6])
def test_as_many_checkpoints_as_asked_for_are_kept(tmp_path: Path, keep: int) -> None:
    module = model()
    built = stepped(OPTIMIZERS[1], module, 1)
    paths = [save_checkpoint(tmp_path, state(n), module, built, keep=keep) for n in range(1, 9)]
    assert sorted(tmp_path.iterdir()) == paths[-keep:]


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    module = model()
    built = stepped(OPTIMIZERS[1], module, 1)
    for steps in (5, 10, 100):
        last = save_checkpoint(tmp_path, state(steps), module, built)
    assert list(tmp_path.iterdir()) == [last]
    assert latest_checkpoint(tmp_path) == last
    assert last.name == "step-000000100"


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    module = model()
    built = stepped(OPTIMIZERS[1], module, 1)
    paths = {save_checkpoint(tmp_path, state(), module, built) for _ in range(2)}
    assert list(tmp_path.iterdir()) == list(paths)


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "step-000000009").mkdir()
    (tmp_path / "step-000000009" / STUDENT).touch()
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"usage": {"stepz": 1}}'])
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / STATE).write_text(content)
    with pytest.raises(CheckpointError, match=r"state.json' must hold the state of a run: "):
        read_state(tmp_path)


def test_a_missing_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must hold the state of a run: FileNotFound"):
        read_state(tmp_path)


@pytest.mark.parametrize("name", [STUDENT, OPTIMIZER])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    module = model()
    built = stepped(OPTIMIZERS[1], module, 1)
    file = save_checkpoint(tmp_path, state(), module, built) / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(file.parent, module, built)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    module, other = model(), model(width=5)
    path = save_checkpoint(tmp_path, state(), module, stepped(OPTIMIZERS[1], module, 1))
    with pytest.raises(CheckpointError, match=r"must hold this model's weights"):
        load_checkpoint(path, other, OPTIMIZERS[1].build(other.parameters()))


def test_state_of_a_parameter_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    module = model()
    path = save_checkpoint(tmp_path / "a", state(), module, stepped(OPTIMIZERS[1], module, 1))
    with seeding.scoped(0, "model"):
        foreign = nn.Sequential(*model().children(), nn.Linear(2, 2))
    built = OPTIMIZERS[1].build(foreign.parameters())
    for parameter in foreign.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    strange = save_checkpoint(tmp_path / "b", state(), foreign, built)
    forge(path, OPTIMIZER, (strange / OPTIMIZER).read_bytes())
    with pytest.raises(
        CheckpointError, match=r": 'optimizer' state must be of this model; got '3\.\w+'; rem"
    ):
        load_checkpoint(path, module, OPTIMIZERS[1].build(module.parameters()))


def test_a_checkpoint_is_plain_data_and_safetensors(tmp_path: Path) -> None:
    module = model()
    path = save_checkpoint(tmp_path, state(), module, stepped(OPTIMIZERS[2], module, 1))
    assert sorted(file.name for file in path.iterdir()) == sorted([STUDENT, OPTIMIZER, STATE, SEAL])
    assert json.loads((path / STATE).read_text())["usage"]["steps"] == 7


# --- what is trained besides ----------------------------------------------------------------------


def beside(seed: int = 0) -> nn.ModuleList:
    return nn.ModuleList([LinearMap(drawn(4, 3, seed=seed)), nn.BatchNorm1d(2)])


def moved(
    optimizer: Optimizer, module: nn.Module, adapters: nn.ModuleList
) -> torch.optim.Optimizer:
    """Return an optimizer that has moved a student and adapters, and still holds both."""
    built = optimizer.build([*module.parameters(), *adapters.parameters()])
    for _ in range(3):
        for parameter in [*module.parameters(), *adapters.parameters()]:
            parameter.grad = parameter.detach().cos()
        built.step()
    return built


@every_optimizer
def test_adapters_and_their_state_come_back_beside_the_students(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    module, adapters = model(), beside()
    built = moved(optimizer, module, adapters)
    path = save_checkpoint(tmp_path, state(), module, built, adapters=adapters)
    other, others = model(1), beside(1)
    restored = optimizer.build([*other.parameters(), *others.parameters()])
    load_checkpoint(path, other, restored)
    load_adapters(path, others, restored)
    assert same(module, other)
    assert same(adapters, others)
    for each, its in (([module, adapters], built), ([other, others], restored)):
        for parameter in [one for part in each for one in part.parameters()]:
            parameter.grad = torch.full_like(parameter, 0.3)
        its.step()
    assert same(module, other)
    assert same(adapters, others)


def test_the_students_files_hold_nothing_of_the_adapters(tmp_path: Path) -> None:
    module, adapters = model(), beside()
    built = moved(OPTIMIZERS[2], module, adapters)
    with_them = save_checkpoint(tmp_path / "a", state(), module, built, adapters=adapters)
    without = save_checkpoint(tmp_path / "b", state(), module, built)
    for name in (STUDENT, OPTIMIZER):
        assert (with_them / name).read_bytes() == (without / name).read_bytes()
    assert {file.name for file in with_them.iterdir()} - {
        file.name for file in without.iterdir()
    } == {
        ADAPTERS,
        ADAPTERS_OPTIMIZER,
    }


def test_numbers_of_tensors_are_written_in_a_fixed_order(tmp_path: Path) -> None:
    module, adapters = model(), beside()
    built = moved(OPTIMIZERS[2], module, adapters)
    path = save_checkpoint(tmp_path, state(), module, built, adapters=adapters)
    assert [*json.loads((path / STATE).read_text())["tensors"]] == [OPTIMIZER, ADAPTERS_OPTIMIZER]


def test_no_adapters_leave_no_file(tmp_path: Path) -> None:
    module = model()
    built = stepped(OPTIMIZERS[0], module, 1)
    path = save_checkpoint(tmp_path, state(), module, built, adapters=nn.ModuleList())
    assert not (path / ADAPTERS).exists()


@pytest.mark.parametrize("name", [ADAPTERS, ADAPTERS_OPTIMIZER])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_adapters_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    module, adapters = model(), beside()
    built = moved(OPTIMIZERS[2], module, adapters)
    file = save_checkpoint(tmp_path, state(), module, built, adapters=adapters) / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match=name):
        load_adapters(file.parent, adapters, built)


def test_adapters_of_another_stage_are_refused(tmp_path: Path) -> None:
    module, adapters = model(), beside()
    built = moved(OPTIMIZERS[2], module, adapters)
    path = save_checkpoint(tmp_path, state(), module, built, adapters=adapters)
    with pytest.raises(CheckpointError, match=r"must hold this model's weights"):
        load_adapters(path, nn.ModuleList([LinearMap(drawn(5, 3))]), built)


# --- damage and mix-ups ---------------------------------------------------------------------------


def saved(folder: Path, *, steps: int = 7, seed: int = 0, kind: int = 2) -> Path:
    module = model(seed)
    return save_checkpoint(folder, state(steps), module, stepped(OPTIMIZERS[kind], module, 2))


def loaded(path: Path, kind: int = 2) -> None:
    module = model()
    load_checkpoint(path, module, OPTIMIZERS[kind].build(module.parameters()))


def read_and_loaded(path: Path) -> None:
    read_state(path)
    loaded(path)


@pytest.mark.parametrize("name", [STUDENT, OPTIMIZER, STATE, SEAL])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("bits", [0x01, 0x20])
def test_a_flipped_bit_is_noticed_in_every_file(
    tmp_path: Path, name: str, place: float, bits: int
) -> None:
    path = saved(tmp_path)
    content = bytearray((path / name).read_bytes())
    content[int(place * len(content))] ^= bits
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}.*; remove the folder '{path}': an unfini"):
        read_and_loaded(path)


@pytest.mark.parametrize("name", [STUDENT, OPTIMIZER, STATE, SEAL])
def test_another_runs_file_is_noticed(tmp_path: Path, name: str) -> None:
    path, other = saved(tmp_path / "a"), saved(tmp_path / "b", seed=1)
    (path / name).write_bytes((other / name).read_bytes() + b" " * (name == STATE))
    with pytest.raises(CheckpointError):
        read_and_loaded(path)


def test_a_folder_without_hashes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / SEAL).unlink()
    with pytest.raises(CheckpointError, match=r"must hold 'manifest.json' with .*; remove"):
        read_state(path)


def forty_steps() -> Timeline:
    return Timeline(plan_spans(one_shot(total="40 steps").stages, batch_size=1, tokens_per_batch=1))


@pytest.mark.parametrize("steps", [-7, 0, 10, 4000])
def test_a_number_of_steps_that_cannot_be_is_refused(tmp_path: Path, steps: int) -> None:
    path = saved(tmp_path, steps=20)
    content = json.loads((path / STATE).read_text())
    content["usage"]["steps"] = steps
    (path / STATE).write_text(json.dumps(content))
    seal_folder(path, sealed_names(path))
    with pytest.raises(CheckpointError, match=rf"'steps' in .* must be .*; got {steps}; rem"):
        read_state(path, timeline=forty_steps())


def test_a_checkpoint_after_the_runs_end_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, steps=4000)
    with pytest.raises(CheckpointError, match=r"at most the planned 40; got 4000; rem"):
        read_state(path, timeline=forty_steps())


@pytest.mark.parametrize("field", ["examples", "records_bytes"])
def test_a_negative_count_is_refused(tmp_path: Path, field: str) -> None:
    path = saved(tmp_path)
    content = json.loads((path / STATE).read_text())
    (content if field in content else content["usage"])[field] = -1
    (path / STATE).write_text(json.dumps(content))
    seal_folder(path, sealed_names(path))
    with pytest.raises(CheckpointError, match=rf"'{field}' in .* must not be neg.*; got -1; rem"):
        read_state(path)


def changed(path: Path, change: dict[str, Tensor | None]) -> None:
    tensors: dict[str, Tensor] = load((path / OPTIMIZER).read_bytes())
    kept = {**tensors, **change}
    forge(path, OPTIMIZER, save({name: one for name, one in kept.items() if one is not None}))


FORGED: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "one number": ({"0.weight/exp_avg": torch.zeros(1)}, r"must have shape \(4, 3\) .*got \(1,\)"),
    "transposed": ({"0.weight/exp_avg_sq": torch.zeros(3, 4)}, r"must have shape .*got \(3, 4\)"),
    "type": ({"0.bias/exp_avg": torch.zeros(4).half()}, r"type torch.float32; got .*float16; "),
    "counts": ({"0.bias/step": torch.ones(4)}, r"'step' of .* must have shape \(\) "),
    "missing": ({"0.bias/exp_avg_sq": None}, r"must be \['exp_avg', 'exp_avg_sq', 'step'\]; got"),
    "foreign": ({"0.bias/momentum_buffer": torch.zeros(4)}, r"must be .*; got .*momentum_buffer"),
}


@pytest.mark.parametrize(("change", "told"), FORGED.values(), ids=FORGED.keys())
def test_state_that_the_optimizer_does_not_keep_is_refused(
    tmp_path: Path, change: dict[str, Tensor | None], told: str
) -> None:
    path = saved(tmp_path)
    changed(path, change)
    with pytest.raises(CheckpointError, match=told):
        loaded(path)


def test_momentum_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, kind=1)
    changed(path, {"0.bias/momentum_buffer": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"must have shape \(4,\) .*; got \(2,\)"):
        loaded(path, kind=1)


def test_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be \['momentum_buffer'\]; got \['exp_avg'"):
        loaded(saved(tmp_path), kind=1)


def test_an_empty_optimizer_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / OPTIMIZER).write_bytes(save({}))
    seal_folder(path, sealed_names(path))
    with pytest.raises(CheckpointError, match=r"must hold the 12 tensors .*; got 0; rem"):
        loaded(path)


def test_adapters_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    module, adapters = model(), beside()
    built = moved(OPTIMIZERS[2], module, adapters)
    path = save_checkpoint(tmp_path, state(), module, built, adapters=adapters)
    tensors = load((path / ADAPTERS_OPTIMIZER).read_bytes())
    name = next(name for name in tensors if name.endswith("exp_avg"))
    forge(path, ADAPTERS_OPTIMIZER, save({**tensors, name: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"must have shape .*; got \(1,\)"):
        load_adapters(path, adapters, built)


# --- links, leftovers, folders in the way ---------------------------------------------------------


def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / STATE).write_text("{}")
    (folder / "thesis.tex").write_text("years of work")
    return folder


def test_nothing_is_removed_through_a_link_in_the_place_of_a_checkpoint(tmp_path: Path) -> None:
    folder, precious = tmp_path / "checkpoints", outside(tmp_path)
    folder.mkdir()
    (folder / "step-000000003").symlink_to(precious)
    with pytest.raises(CheckpointError, match=r"step-000000003' must be a folder of the run.*link"):
        saved(folder)
    assert (precious / "thesis.tex").read_text() == "years of work"
    assert latest_checkpoint(folder) is None


def test_nothing_is_removed_through_a_link_in_the_place_of_all_checkpoints(tmp_path: Path) -> None:
    precious = outside(tmp_path)
    saved(precious, steps=3)
    (tmp_path / "checkpoints").symlink_to(precious)
    with pytest.raises(CheckpointError, match=r"checkpoints' must be a folder of the run"):
        saved(tmp_path / "checkpoints")
    assert (precious / "step-000000003" / STUDENT).is_file()


def test_a_link_inside_an_old_checkpoint_goes_and_what_it_points_to_stays(tmp_path: Path) -> None:
    precious = outside(tmp_path)
    old = saved(tmp_path / "checkpoints", steps=3)
    (old / "notes").symlink_to(precious)
    (old / "folder").mkdir()
    (old / "folder" / "file").touch()
    new = saved(tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints").iterdir()) == [new]
    assert (precious / "thesis.tex").is_file()


def test_a_file_of_a_checkpoint_that_is_a_link_is_refused(tmp_path: Path) -> None:
    path, other = saved(tmp_path / "a"), saved(tmp_path / "b")
    (path / STUDENT).unlink()
    (path / STUDENT).symlink_to(other / STUDENT)
    with pytest.raises(CheckpointError, match=r"must be a file of its folder; it is a symbolic"):
        loaded(path)


def test_what_a_killed_writer_left_goes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".step-000000007-a1b2c3_9" / "new").mkdir(parents=True)
    (tmp_path / ".step-notes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".step-000000008-a1b2c3_9").symlink_to(tmp_path / "elsewhere")
    clear_leftovers(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".step-000000008-a1b2c3_9", ".step-notes", "elsewhere"]


def test_a_checkpoint_that_a_kill_left_set_aside_comes_back(tmp_path: Path) -> None:
    path = saved(tmp_path)
    hidden = tmp_path / f".{path.name}-a1b2c3_9"
    hidden.mkdir()
    path.rename(hidden / "old")
    clear_leftovers(tmp_path)
    assert latest_checkpoint(tmp_path) == path
    check_sealed(path, sealed_names(path))


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = saved(tmp_path, steps=3)

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("curricle.training.loop.checkpoints.save_file", full)
    with pytest.raises(CheckpointError, match=r"student.safetensors' cannot be written: .*space"):
        saved(tmp_path)
    assert list(tmp_path.iterdir()) == [good]
