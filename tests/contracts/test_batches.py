"""Properties of every batch: image, feature, token and float inputs, and a teacher's own inputs.

Each case is trained eagerly, in micro-batches, with prefetching, from stored targets and beside
another student of the same teacher; the weights must be those of the plain run. Expected targets
of aligned batches are gathered by hand.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, Stage
from curricle.data.batch import Batch, Inputs, named
from curricle.data.blocks import concatenate
from curricle.data.example_keys import example_keys
from curricle.errors import BindError, DataError
from curricle.models.tapped import Activations, TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.base import Reads, Sample
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.codecs import Exact
from curricle.teachers.stored import open_targets
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.stage_loss import open_stage_loss
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from curricle.training.targets.capture import TargetCompression, capture
from tests.parts import Listed, bound, drawn

STEPS, EXAMPLES, CLASSES = 3, 4, 5
HIDDEN = MatchHidden(pair=LayerPair(student=1, teacher=1))


class Net(nn.Module):
    """Sums what each named input is mapped to, and passes it through one block and a head."""

    def __init__(self, *parts: nn.Module, width: int, names: Sequence[str]) -> None:
        super().__init__()
        self.parts, self.names = nn.ModuleList(parts), names
        self.block, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, inputs: Tensor | None = None, **fields: Tensor) -> Tensor:
        tensors = [inputs] if inputs is not None else [fields[name] for name in self.names]
        states = sum(part(tensor) for part, tensor in zip(self.parts, tensors, strict=True))
        found: Tensor = self.head(self.block(states).tanh())
        return found


def images(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def patches(size: int) -> Callable[[int], nn.Module]:
    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, size, size), nn.Flatten(2), Transposed())

    return build


class Transposed(nn.Module):
    """Puts positions before features."""

    def forward(self, states: Tensor) -> Tensor:
        return states.mT


def ids(number: int, length: int) -> Tensor:
    return torch.randint(11, (EXAMPLES, length), generator=torch.Generator().manual_seed(number))


def places(number: int, length: int, longest: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(longest, (EXAMPLES, length), generator=generator).sort(dim=1).values


VALID = torch.arange(5) < torch.tensor([[5], [2], [4], [3]])
SELECTED = torch.tensor([0, 3, 5, 6, 10, 12, 16, 17])


# Compared by identity, so that a case can be a key.
@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A kind of batches, with the parts of models that read them."""

    batch: Callable[[int], Batch]
    """Returns the batch of a step."""
    student: Sequence[Callable[[int], nn.Module]]
    """The part for each input, by width."""
    teacher: Sequence[Callable[[int], nn.Module]] | None = None
    names: Sequence[str] = ("",)
    teacher_names: Sequence[str] | None = None
    objectives: Sequence[Any] = field(default=(HIDDEN, MatchLogits(weight=0.5)))

    def model(self, width: int, seed: int, *, teaches: bool = False) -> TappedModel:
        parts = (self.teacher if teaches else None) or self.student
        names = (self.teacher_names if teaches else None) or self.names
        with seeding.scoped(seed, "model"):
            built = [part(width) for part in parts]
            module = Net(*built, width=width, names=names)
        return tapped(module, blocks=["block"], head="head")

    def run(self, *, teacher: Any = None, seed: int = 0, **settings: Any) -> BoundRun:
        stage = Stage(
            name="only", duration=Duration(number=STEPS), objectives=tuple(self.objectives)
        )
        return bound(
            Curriculum(name="own", stages=(stage,)),
            student=self.model(4, 1 + seed),
            teacher=teacher or LiveTeacher(self.model(6, 0, teaches=True)),
            stream=Listed(*map(self.batch, range(STEPS))),
            settings=settings,
        )


def linear(size: int) -> Callable[[int], nn.Module]:
    return lambda width: nn.Linear(size, width)


def embedded(width: int) -> nn.Module:
    return nn.Embedding(11, width)


CASES = {
    "features": Case(batch=lambda n: Batch(inputs=drawn(4, 6, seed=n)), student=[linear(6)]),
    "images": Case(batch=lambda n: Batch(inputs=drawn(4, 3, 8, 8, seed=n)), student=[images]),
    "unnamed tokens": Case(batch=lambda n: Batch(inputs=ids(n, 5), length=5), student=[embedded]),
    "tokens": Case(
        batch=lambda n: Batch(inputs={"input_ids": ids(n, 5)}, selected=SELECTED, valid=VALID),
        student=[embedded],
        names=["input_ids"],
    ),
    "floats": Case(
        batch=lambda n: Batch(inputs={"inputs_embeds": drawn(4, 5, 3, seed=n)}, valid=VALID),
        student=[linear(3)],
        names=["inputs_embeds"],
    ),
    "two inputs": Case(
        batch=lambda n: Batch(
            inputs={"image": drawn(4, 3, 8, 8, seed=n), "flags": ids(n, 1)[:, 0]}
        ),
        student=[images, embedded],
        names=["image", "flags"],
    ),
    "another image size": Case(
        batch=lambda n: Batch(
            inputs=drawn(4, 3, 8, 8, seed=n), teacher_inputs=drawn(4, 3, 16, 16, seed=9 + n)
        ),
        student=[images],
    ),
    "other features by name": Case(
        batch=lambda n: Batch(
            inputs=drawn(4, 6, seed=n),
            teacher_inputs={"a": drawn(4, 2, seed=7 + n), "b": drawn(4, 3, seed=8 + n)},
        ),
        student=[linear(6)],
        teacher=[linear(2), linear(3)],
        teacher_names=["a", "b"],
    ),
    "another tokenization": Case(
        batch=lambda n: Batch(
            inputs={"input_ids": ids(n, 5)},
            teacher_inputs={"input_ids": ids(9 + n, 7)},
            alignment=places(n, 5, 7),
            valid=VALID,
            selected=SELECTED,
        ),
        student=[embedded],
        names=["input_ids"],
    ),
    "another tokenization, all positions": Case(
        batch=lambda n: Batch(
            inputs=ids(n, 5), teacher_inputs=ids(9 + n, 7), alignment=places(n, 5, 7), valid=VALID
        ),
        student=[embedded],
    ),
    "other patches of the same images": Case(
        batch=lambda n: Batch(inputs=drawn(4, 3, 8, 8, seed=n), alignment=places(n, 4, 16)),
        student=[patches(4)],
        teacher=[patches(2)],
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
apart = pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.batch(0).for_teacher is not case.batch(0)]
)


def evaluate(model: TappedModel) -> dict[str, float]:
    del model
    return {"accuracy": 0.5}


def trained(run: BoundRun) -> dict[str, Tensor]:
    """Return the weights of the student after the run."""
    execute(run, evaluate, metric="accuracy", outputs=Outputs(folder=None))
    return run.student.module.state_dict()


@cache
def trained_alone(case: Case, seed: int = 0, accumulation: int = 1) -> dict[str, Tensor]:
    """Return the weights after the plain run of a case, which many tests compare with."""
    return trained(case.run(seed=seed, gradient_accumulation_steps=accumulation))


def assert_equal(weights: dict[str, Tensor], expected: dict[str, Tensor], **options: Any) -> None:
    torch.testing.assert_close(weights, expected, **({"rtol": 0, "atol": 0} | options))


def tensors(batch: Batch) -> dict[str, Tensor]:
    """Return all tensors of a batch by field and name."""
    found: dict[str, Tensor] = {}
    for one in dataclasses.fields(batch):
        value: Inputs | int | None = getattr(batch, one.name)
        if value is not None and not isinstance(value, int):
            found |= {f"{one.name} {name}": tensor for name, tensor in named(value).items()}
    return found


@every_case
def test_parts_put_together_are_the_batch(case: Case) -> None:
    batch = replace(case.batch(0), labels=drawn(case.batch(0).num_selected, 2), step=3)
    parts = batch.split(2)
    assert [part.key for part in parts] == [(3, 0, 2), (3, 2, 2)]
    assert parts[1].split(2)[1].key == (3, 3, 1)
    whole = concatenate(parts)
    assert whole.key == batch.key == (3, 0, 4)
    assert_equal(tensors(whole), tensors(batch))


@every_case
def test_the_teacher_s_side_of_parts_are_the_parts_of_its_side(case: Case) -> None:
    batch = case.batch(0)
    whole, parts = batch.for_teacher, [part.for_teacher for part in batch.split(2)]
    assert_equal(tensors(concatenate(parts)), tensors(whole))


@every_case
def test_keys_do_not_depend_on_the_cut(case: Case) -> None:
    batch = case.batch(0)
    keys = example_keys(batch, selected=True)
    parts = [example_keys(part, selected=True) for part in batch.chunks(3)]
    assert (np.concatenate(parts) == keys).all()
    assert len(np.unique(keys)) == EXAMPLES


@apart
def test_keys_depend_on_the_inputs_of_both_models_and_on_their_alignment(case: Case) -> None:
    batch, other = case.batch(0), case.batch(1)
    keys = example_keys(batch, selected=False)
    changed = [replace(batch, inputs=other.inputs)]
    if batch.teacher_inputs is not None:
        changed.append(replace(batch, teacher_inputs=other.teacher_inputs))
    if batch.alignment is not None:
        changed.append(replace(batch, alignment=other.alignment))
    for one in changed:
        assert (example_keys(one, selected=False) != keys).all()


@every_case
def test_micro_batches_train_as_the_whole_batch(case: Case) -> None:
    weights = trained(case.run(gradient_accumulation_steps=2))
    assert_equal(weights, trained_alone(case), rtol=1e-4, atol=1e-6)


@every_case
@pytest.mark.parametrize("prefetch", ["batch", "targets"])
def test_prefetching_changes_nothing(case: Case, prefetch: str) -> None:
    assert_equal(trained(case.run(prefetch=prefetch)), trained_alone(case))


@every_case
def test_stored_targets_train_as_the_live_teacher(case: Case, tmp_path: Path) -> None:
    capture([case.run()], tmp_path, compression=TargetCompression(hidden=Exact(), logits=Exact()))
    assert_equal(trained(case.run(teacher=open_targets(tmp_path))), trained_alone(case))


@every_case
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_shared_teacher_runs_once_for_each_part_and_changes_nothing(
    case: Case, accumulation: int
) -> None:
    teacher = LiveTeacher(case.model(6, 0, teaches=True))
    runs = [
        case.run(teacher=teacher, seed=seed, gradient_accumulation_steps=accumulation)
        for seed in (0, 1)
    ]
    passes: list[int] = []
    block = teacher.model.module.get_submodule("block")
    block.register_forward_hook(lambda *_: passes.append(1))
    members = [SharedRun(run=run, evaluate=evaluate, outputs=Outputs(folder=None)) for run in runs]
    execute_shared(members, metric="accuracy")
    assert len(passes) == STEPS * accumulation
    for seed, run in enumerate(runs):
        assert_equal(run.student.module.state_dict(), trained_alone(case, seed, accumulation))


# --- alignment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["another tokenization", "another tokenization, all positions"])
def test_aligned_targets_are_the_states_and_logits_of_the_named_positions(name: str) -> None:
    case = CASES[name]
    run, batch = case.run(), case.batch(1)
    with open_stage_loss(run, run.stages[0]) as loss:
        states = loss.teacher_states(batch)
        targets = loss.targets(batch)
    assert run.teacher is not None
    assert states is not None
    assert batch.alignment is not None
    module = run.teacher.model.module
    (read,) = named(batch.teacher_inputs).values()
    with torch.no_grad():
        blocks = module.get_submodule("block")(module.get_submodule("parts.0")(read))
        logits = module.get_submodule("head")(blocks.tanh())
    rows = torch.arange(EXAMPLES)[:, None]
    (hidden,) = states.hidden.values()
    torch.testing.assert_close(hidden, blocks[rows, batch.alignment])
    wanted = logits[rows, batch.alignment]
    selected = VALID.flatten() if batch.selected is None else batch.selected
    torch.testing.assert_close(targets[1], wanted.flatten(0, 1)[selected])


def test_alignment_to_equal_positions_is_that_of_no_alignment() -> None:
    case = CASES["tokens"]
    same = torch.arange(5).expand(EXAMPLES, 5)
    aligned = replace(case, batch=lambda number: replace(case.batch(number), alignment=same))
    assert_equal(trained(aligned.run()), trained_alone(case))


@pytest.mark.parametrize("name", ["tokens", "features", "images"])
def test_the_student_s_inputs_given_to_the_teacher_again_change_nothing(name: str) -> None:
    case = CASES[name]

    def doubled(number: int) -> Batch:
        batch = case.batch(number)
        return replace(batch, teacher_inputs=batch.inputs)

    assert_equal(trained(replace(case, batch=doubled).run()), trained_alone(case))


def test_the_teacher_of_images_has_the_positions_of_the_labels() -> None:
    case = Case(
        batch=lambda n: Batch(
            inputs=drawn(4, 3, 8, 8, seed=n),
            teacher_inputs=drawn(4, 3, 16, 16, seed=9 + n),
            selected=torch.tensor([0, 5, 6, 15]),
            length=4,
        ),
        student=[patches(4)],
        teacher=[patches(8)],
    )
    assert case.batch(0).for_teacher.positions == (4, 4)
    assert_equal(trained(case.run(prefetch="targets")), trained(case.run()))


IDS = {"input_ids": ids(0, 5)}
OTHER = {"input_ids": ids(1, 7)}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"teacher_inputs": drawn(3, 2)},
            r"^'teacher_inputs' must have the 4 examples .*; got shape \(3, 2\)",
        ),
        ({"teacher_inputs": OTHER}, r"^'alignment' must be given where the positions \(4, 7\) of"),
        (
            {"alignment": places(0, 7, 5)},
            r"^'alignment' must have the .* \(4, 5\); got .*\(4, 7\)",
        ),
        (
            {"teacher_inputs": drawn(4), "alignment": places(0, 5, 5), "selected": SELECTED},
            r"^'teacher_inputs' must have positions where 'alignment' and 'selected' .*\(4,\)$",
        ),
    ],
    ids=["examples", "positions", "alignment", "no positions"],
)
def test_a_teacher_s_side_that_does_not_fit_is_refused(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        Batch(inputs=IDS, **fields)


def aligned_case(alignment: Tensor) -> Case:
    case = CASES["another tokenization, all positions"]
    return replace(case, batch=lambda number: replace(case.batch(number), alignment=alignment))


@pytest.mark.parametrize("wrong", [7, -1])
def test_an_alignment_beyond_the_teacher_s_positions_is_refused(wrong: int) -> None:
    alignment = places(0, 5, 7)
    alignment[2, 1] = wrong
    sentence = rf"'alignment' must lie between 0 and 6, the last position of the .*; got {wrong}$"
    with pytest.raises(BindError, match=sentence):
        aligned_case(alignment).run()


def test_maps_of_a_teacher_cannot_be_aligned() -> None:
    case = CASES["other patches of the same images"]
    with pytest.raises(BindError, match=r"of the teacher must have the axes example and position"):
        replace(case, teacher=[Maps]).run()


class Maps(nn.Module):
    """Makes maps with the features last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, width, 2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.map(inputs).movedim(1, -1)
        return found


# --- labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitValues:
    """Objective of a user: squared error of the outputs against float labels."""

    weight: float = 1.0
    needs_teacher: bool = False

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        return Reads(student_logits=True)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "FitValues":
        return self

    def count(self, batch: Batch) -> int:
        return batch.num_selected

    def target(self, teacher: Activations, batch: Batch) -> Tensor:
        raise NotImplementedError

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Tensor:
        assert student.logits is not None
        assert batch.labels is not None
        values = student.logits if batch.labels.ndim > 1 else student.logits[..., 0]
        assert values.shape == batch.labels.shape
        return (values - batch.labels).square().sum()

    def describe(self) -> tuple[str, str, str, str]:
        return "logits", "squared error", "-", "-"


def labeled(case: Case, shape: tuple[int, ...]) -> Case:
    def batch(number: int) -> Batch:
        return replace(case.batch(number), labels=drawn(*shape, seed=50 + number))

    return replace(case, batch=batch, objectives=(FitValues(), *case.objectives))


LABELED = [
    labeled(CASES["features"], (4,)),
    labeled(CASES["another image size"], (4, CLASSES)),
    labeled(CASES["another tokenization"], (8,)),
    labeled(CASES["tokens"], (8, CLASSES)),
]


@pytest.mark.parametrize("case", LABELED, ids=["one", "several", "of tokens", "several of tokens"])
def test_float_labels_are_the_same_in_every_way_to_train(case: Case, tmp_path: Path) -> None:
    expected = trained(case.run())
    assert_equal(trained(case.run(gradient_accumulation_steps=2)), expected, rtol=1e-4, atol=1e-6)
    assert_equal(trained(case.run(prefetch="targets")), expected)
    capture([case.run()], tmp_path, compression=TargetCompression(hidden=Exact(), logits=Exact()))
    assert_equal(trained(case.run(teacher=open_targets(tmp_path))), expected)
