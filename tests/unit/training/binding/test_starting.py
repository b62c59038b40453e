"""A start sets what it says from the teacher, exactly and once."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.parts
from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.initialization import (
    MappedStart,
    PrincipalStart,
    RandomStart,
    SelectionStart,
)
from curricle.curriculum.strategies import extraction, one_shot
from curricle.data.batch import Batch
from curricle.data.synthetic.parity import ParityStream
from curricle.errors import BindError
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.principal import principal_map
from curricle.objectives.projections import Gaussian, Sign
from curricle.records import RECORDS, EndRecord, Record, RunRecord, StepRecord, Usage, read_records
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.facts import run_facts
from curricle.training.binding.starting import BATCHES, bind_start
from curricle.training.distill import distill, execute
from curricle.training.loop.run_outputs import Observer, Outputs
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.placement import SingleDevice
from curricle.values import fingerprint
from tests.parts import INPUTS, Listed, mlp, parity

NUM_IDS, LENGTH, TEACHER, STUDENT = 20, 6, 12, 8
SHORT = Duration(number=8)
CAUSAL = ("gpt2",)


@cache
def drawn(family: str, width: int, num_ids: int, **fields: object) -> TappedModel:
    names = {"gpt2": ("n_embd", "n_layer", "n_head")}.get(
        family, ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    config: dict[str, Any] = dict(zip(names, (width, 2, 2), strict=True))
    config |= {} if family == "gpt2" else {"intermediate_size": 16}
    spec = HuggingFaceSpec(
        model_type=family,
        head="causal_lm" if family in CAUSAL else "masked_lm",
        config=config | fields,
    )
    with seeding.scoped(width, "test model"):
        model = spec.build(num_inputs=num_ids, num_classes=num_ids, num_positions=LENGTH)
        # As after training: nothing is zero, one or drawn like the student's.
        for parameter in model.module.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model


def language(family: str, width: int, num_ids: int = NUM_IDS, **fields: object) -> TappedModel:
    """Return a fresh model with the same weights each time."""
    return copy.deepcopy(drawn(family, width, num_ids, **fields))


def strings() -> Listed:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(5):
        ids = torch.randint(4, NUM_IDS, (3, LENGTH), generator=generator)
        selected = torch.tensor([1, 4, 9])
        batches.append(
            Batch(inputs={"input_ids": ids}, labels=ids.flatten()[selected], selected=selected)
        )
    return Listed(*batches)


def shared(*, seed: int = 0, law: Gaussian | Sign = Gaussian()) -> Tensor:
    """Return the projection that layers with a shared one are compared through."""
    return law.matrix(seed=seed, name="shared", student_width=STUDENT, teacher_width=TEACHER)


def weights(model: TappedModel) -> dict[str, Tensor]:
    named = model.module.named_parameters(remove_duplicate=False)
    return {name: one.detach().clone() for name, one in named}


def started(
    start: MappedStart,
    student: TappedModel,
    teacher: TappedModel,
    *,
    seed: int = 0,
    stream: Any = None,
) -> dict[str, Tensor]:
    """Return the student's weights after a start."""
    found = bind_start(
        start,
        student,
        LiveTeacher(teacher),
        stream=stream or strings(),
        seed=seed,
        placement=SingleDevice("cpu"),
    )
    assert found is not None
    found.apply()
    return weights(student)


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- language models ------------------------------------------------------------------------------

BERT = "bert.embeddings."
TABLES = {
    "bert": {
        f"{BERT}word_embeddings.weight",
        f"{BERT}position_embeddings.weight",
        f"{BERT}token_type_embeddings.weight",
        "cls.predictions.decoder.weight",
    },
    "modernbert": {"model.embeddings.tok_embeddings.weight", "decoder.weight"},
    "gpt2": {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"},
}
BIASES = {
    "bert": {"cls.predictions.bias", "cls.predictions.decoder.bias"},
    "modernbert": {"decoder.bias"},
    "gpt2": set[str](),
}
every_family = pytest.mark.parametrize("family", TABLES)


@every_family
@pytest.mark.parametrize("law", [Gaussian(), Sign()], ids=lambda law: law.kind)
def test_embeddings_are_exactly_the_shared_projection_of_the_teachers(
    family: str, law: Gaussian | Sign
) -> None:
    student, teacher = language(family, STUDENT), language(family, TEACHER)
    after = started(RandomStart(projection=law), student, teacher, seed=3)
    theirs = weights(teacher)
    for name in TABLES[family]:
        assert torch.equal(after[name], theirs[name] @ shared(seed=3, law=law).mT)
    for name in BIASES[family]:
        assert torch.equal(after[name], theirs[name])


@every_family
def test_everything_else_is_left_alone(family: str) -> None:
    student = language(family, STUDENT)
    before = weights(student)
    after = started(RandomStart(), student, language(family, TEACHER))
    assert changed(before, after) == TABLES[family] | BIASES[family]


@every_family
def test_ties_are_kept(family: str) -> None:
    student: Any = language(family, STUDENT)
    started(RandomStart(), student, language(family, TEACHER))
    module = student.module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


def test_an_untied_output_is_set_from_the_teachers_output() -> None:
    student, teacher = (
        language("gpt2", width, tie_word_embeddings=False) for width in (STUDENT, TEACHER)
    )
    after, theirs = started(RandomStart(), student, teacher), weights(teacher)
    assert torch.equal(after["lm_head.weight"], theirs["lm_head.weight"] @ shared().mT)
    assert torch.equal(
        after["transformer.wte.weight"], theirs["transformer.wte.weight"] @ shared().mT
    )


def test_a_tied_student_of_an_untied_teacher_has_its_token_table() -> None:
    student = language("gpt2", STUDENT)
    teacher = language("gpt2", TEACHER, tie_word_embeddings=False)
    after = started(RandomStart(), student, teacher)
    assert torch.equal(
        after["lm_head.weight"], weights(teacher)["transformer.wte.weight"] @ shared().mT
    )


def test_the_principal_map_is_that_of_the_token_table_for_all_tables() -> None:
    student, teacher = language("bert", STUDENT), language("bert", TEACHER)
    after, theirs = started(PrincipalStart(), student, teacher), weights(teacher)
    matrix = principal_map(theirs[f"{BERT}word_embeddings.weight"], STUDENT)
    for name in TABLES["bert"]:
        assert torch.equal(after[name], theirs[name] @ matrix.mT)


def test_models_of_two_families_have_in_common_what_has_as_many_rows() -> None:
    # Both have 14 positions; GPT-2 has no token types.
    student, teacher = language("bert", STUDENT), language("gpt2", TEACHER)
    before = weights(student)
    after, theirs = started(RandomStart(), student, teacher), weights(teacher)
    places = theirs["transformer.wpe.weight"] @ shared().mT
    assert torch.equal(after[f"{BERT}position_embeddings.weight"], places)
    assert changed(before, after) == TABLES["bert"] - {f"{BERT}token_type_embeddings.weight"}


@pytest.mark.parametrize("kind", [RandomStart(), PrincipalStart()], ids=lambda kind: kind.kind)
def test_the_seed_draws_the_random_map_and_nothing_else(kind: Any) -> None:
    first, second = (
        started(kind, language("modernbert", STUDENT), language("modernbert", TEACHER), seed=seed)
        for seed in (0, 1)
    )
    table = {"model.embeddings.tok_embeddings.weight", "decoder.weight"}
    assert changed(first, second) == (table if kind.kind == "random" else set())


def test_other_vocabularies_are_an_error() -> None:
    student, teacher = language("bert", STUDENT), language("bert", TEACHER, 24)
    with pytest.raises(
        BindError,
        match=r"^'init' must have a student with the teacher's vocabulary; got 20 and 24 entries$",
    ):
        started(RandomStart(), student, teacher)


def test_a_student_without_embeddings_is_an_error() -> None:
    with seeding.scoped(0, "test model"):
        student = tapped(nn.Sequential(nn.Linear(INPUTS, 4), nn.Linear(4, 2)))
    with pytest.raises(BindError, match=r"^'student' must have token embeddings.*got Sequential$"):
        started(RandomStart(), student, mlp(16))


def test_a_teacher_without_embeddings_is_an_error() -> None:
    with pytest.raises(BindError, match=r"^'teacher' must have token embeddings.*got MLP$"):
        started(RandomStart(), language("bert", STUDENT), mlp(16))


@pytest.mark.parametrize("name", ["word_embeddings", "position_embeddings"])
def test_a_frozen_table_is_not_overwritten(name: str) -> None:
    student = language("bert", 8)
    (frozen,) = [part for path, part in student.module.named_modules() if path.endswith(name)]
    frozen.requires_grad_(False)
    teacher = LiveTeacher(language("bert", 16))
    with pytest.raises(
        BindError,
        match=rf"^'init' must set weights that are trained, .*; got '[\w.]*{name}.weight' frozen; "
        r"set its requires_grad, or leave 'init' out, as for students with LoRA$",
    ):
        bind_start(
            RandomStart(),
            student,
            teacher,
            stream=strings(),
            seed=0,
            placement=SingleDevice("cpu"),
        )


def test_a_frozen_first_layer_is_not_overwritten() -> None:
    student = mlp(5, 4)
    student.module.get_submodule("blocks.0.0").requires_grad_(False)
    with pytest.raises(BindError, match=r"^'init' must .*; got 'blocks.0.0.weight' frozen;"):
        bound(RandomStart(), student=student)


def test_a_student_wider_than_its_teacher_has_no_principal_start() -> None:
    with pytest.raises(
        BindError,
        match=r"no wider than its teacher; got widths 12 and 8; take 'random'.*width 8 or less$",
    ):
        started(PrincipalStart(), language("bert", TEACHER), language("bert", STUDENT))


# --- channels chosen by activations ---------------------------------------------------------------


def hand_made_selection(teacher: TappedModel, num_batches: int) -> Tensor:
    """Return the channels with most energy: shares at each depth, summed over depths."""
    places = [teacher.place(tap) for tap in range(3)]
    energies = torch.zeros(3, TEACHER)
    with torch.no_grad(), teacher.open_taps(places, logits=False) as forward:
        for step in range(num_batches):
            hidden = forward(strings().batch(step).inputs).hidden
            energies += torch.stack([hidden[place].square().sum((0, 1)) for place in places])
    shares = (energies / energies.sum(1, keepdim=True)).sum(0)
    return torch.tensor(sorted(shares.argsort(descending=True)[:STUDENT].tolist()))


@every_family
def test_tables_have_the_channels_of_the_teacher_with_most_energy(family: str) -> None:
    student, teacher = language(family, STUDENT), language(family, TEACHER)
    teacher.module.eval()
    chosen = hand_made_selection(teacher, 3)
    after, theirs = started(SelectionStart(batches=3), student, teacher), weights(teacher)
    for name in TABLES[family]:
        assert torch.equal(after[name], theirs[name][:, chosen])


def test_a_student_as_wide_as_its_teacher_has_all_channels() -> None:
    student, teacher = language("gpt2", TEACHER), language("gpt2", TEACHER)
    nn.init.zeros_(student.module.get_parameter("transformer.wte.weight"))
    after, theirs = started(SelectionStart(), student, teacher), weights(teacher)
    assert all(torch.equal(after[name], theirs[name]) for name in TABLES["gpt2"])


def test_positions_that_do_not_count_have_no_energy() -> None:
    first, second = language("bert", STUDENT), language("bert", STUDENT)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[:, 4:] = False
    batches = [strings().batch(step) for step in range(2)]
    results = []
    for student, filling in ((first, 5), (second, 9)):
        masked = []
        for batch in batches:
            assert isinstance(batch.inputs, Mapping)
            ids = batch.inputs["input_ids"].clone()
            ids[:, 4:] = filling
            inputs = {"input_ids": ids, "attention_mask": mask.long()}
            masked.append(Batch(inputs=inputs, labels=torch.zeros(3), valid=mask))
        teacher = language("bert", TEACHER)
        results.append(started(SelectionStart(), student, teacher, stream=Listed(*masked)))
    assert not changed(*results)


def test_the_calibration_of_a_selection_is_counted() -> None:
    def usage(start: SelectionStart | None) -> Usage:
        run = tests.parts.bound(
            one_shot(total=SHORT, init=start),
            student=language("modernbert", STUDENT),
            teacher=LiveTeacher(language("modernbert", TEACHER)),
            stream=strings(),
        )
        return executed(run).usage

    plain, with_start = usage(None), usage(SelectionStart(batches=2))
    assert with_start.examples - plain.examples == 2 * 3
    assert with_start.teacher_flops > plain.teacher_flops
    assert with_start.steps == plain.steps


def test_a_student_wider_than_its_teacher_has_no_selection() -> None:
    with pytest.raises(
        BindError,
        match=r"^'init' by selection needs .* no wider .*; got widths 12 and 8; take 'random'",
    ):
        started(SelectionStart(), language("bert", TEACHER), language("bert", STUDENT))


def test_states_of_another_width_than_the_embeddings_have_no_selection() -> None:
    teacher = language("bert", TEACHER)
    with seeding.scoped(0, "narrow states"):
        wide = TableAndStates(teacher.module)
    with pytest.raises(
        BindError, match=r"states are as wide as its embeddings; got widths 2 and 12$"
    ):
        started(SelectionStart(), language("bert", STUDENT), tapped(wide, blocks=["narrow"]))


class TableAndStates(nn.Module):
    """A language model whose only block has narrow states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.narrow = model, nn.Linear(TEACHER, 2)

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        return table

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor) -> Tensor:
        states: Tensor = self.narrow(self.get_input_embeddings()(input_ids)[..., :TEACHER])
        return states


# --- fully connected networks ---------------------------------------------------------------------


def examples(stream: ParityStream) -> Tensor:
    batches = [stream.batch(step).inputs for step in range(BATCHES)]
    return torch.cat([one for one in batches if isinstance(one, Tensor)])


@pytest.mark.parametrize(
    "kind", [RandomStart(), PrincipalStart(), SelectionStart()], ids=lambda kind: kind.kind
)
def test_a_first_linear_map_is_the_least_squares_fit(kind: Any) -> None:
    student, teacher = mlp(5, 4), mlp(16, 12, seed=1)
    after = started(kind, student, teacher, stream=parity())
    inputs = examples(parity())
    assert isinstance(teacher.module, MLP)
    with torch.no_grad():
        states = teacher.module.blocks[0](inputs)
    matrix = kind.map(seed=0, student_width=5, teacher_width=16)(states)
    left = inputs @ after["blocks.0.0.weight"].mT + after["blocks.0.0.bias"] - states @ matrix.mT
    # What is left of a least-squares fit is orthogonal to all it was fitted with.
    assert torch.allclose(left.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(inputs.mT @ left / len(inputs), torch.zeros(INPUTS, 5), atol=1e-5)


def test_later_layers_are_left_alone() -> None:
    student = mlp(5, 4)
    before = weights(student)
    after = started(RandomStart(), student, mlp(16), stream=parity())
    assert changed(before, after) == {"blocks.0.0.weight", "blocks.0.0.bias"}


def test_inputs_that_are_always_alike_are_no_harm() -> None:
    batch = Batch(inputs=torch.ones(3, INPUTS), labels=torch.zeros(3, dtype=torch.int64))
    after = started(RandomStart(), mlp(5), mlp(16), stream=Listed(batch))
    assert bool(after["blocks.0.0.weight"].isfinite().all())


def test_other_inputs_are_an_error() -> None:
    with seeding.scoped(0, "test model"):
        teacher = MLP(INPUTS + 1, (16,), 2).tapped()
    with pytest.raises(
        BindError, match=r"^'init' must have a student with the teacher's inputs; got 6 and 7$"
    ):
        started(RandomStart(), mlp(5), teacher, stream=parity())


# --- runs -----------------------------------------------------------------------------------------


def bound(start: Any = PrincipalStart(), **parts: Any) -> BoundRun:  # noqa: B008
    every = {"log_every": 1, "save_every": 3} | parts.pop("settings", {})
    return tests.parts.bound(one_shot(total=SHORT, init=start), settings=every, **parts)


def texts(start: Any, **fields: Any) -> BoundRun:
    curriculum = extraction(total=SHORT, init=start, shared_projection=True, **fields)
    return tests.parts.bound(
        curriculum,
        student=language("modernbert", STUDENT),
        teacher=LiveTeacher(language("modernbert", TEACHER)),
        stream=strings(),
    )


def executed(
    run: BoundRun, folder: Path | None = None, *observers: Observer, resume: bool = False
) -> EndRecord:
    outputs = Outputs(folder=folder, observers=observers)
    return execute(
        run, lambda _: {"accuracy": 0.0}, metric="accuracy", outputs=outputs, resume=resume
    )


def test_binding_sets_nothing() -> None:
    student = mlp(5, 4)
    before = weights(student)
    bound(student=student)
    assert not changed(before, weights(student))


def test_a_run_begins_from_its_start() -> None:
    run, by_hand = bound(), bound(None, student=mlp(5, 4))
    started(PrincipalStart(), by_hand.student, mlp(16, 12, seed=1), stream=parity())
    executed(run)
    executed(by_hand)
    assert not changed(weights(run.student), weights(by_hand.student))


def test_the_start_and_the_layers_have_one_projection() -> None:
    run = texts(RandomStart())
    assert run.warm_start is not None
    (term,) = run.stages[0].terms
    assert torch.equal(term.objective.matrix, shared())  # type: ignore[attr-defined]
    run.warm_start.apply()
    table: Any = run.student.module.get_parameter("model.embeddings.tok_embeddings.weight")
    teacher = weights(language("modernbert", TEACHER))["model.embeddings.tok_embeddings.weight"]
    assert torch.equal(table, teacher @ shared().mT)


class Interrupted(Exception):  # noqa: N818 - not an error
    """Stops a run."""


def stopping_after(steps: int) -> Observer:
    """Return an observer that stops a run."""

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == steps:
            raise Interrupted

    return observe


# The first checkpoint is written after step 3: what stops before begins anew.
@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("kind", [RandomStart(), PrincipalStart()], ids=lambda kind: kind.kind)
def test_a_run_that_goes_on_is_bit_equal_and_does_not_start_again(
    tmp_path: Path, steps: int, kind: Any
) -> None:
    whole = bound(kind)
    end = executed(whole)
    with pytest.raises(Interrupted):
        executed(bound(kind), tmp_path, stopping_after(steps))
    again = bound(kind)
    resumed = executed(again, tmp_path, resume=True)
    assert not changed(weights(whole.student), weights(again.student))
    assert replace(resumed.usage, seconds=0) == replace(end.usage, seconds=0)


def test_one_call_starts_and_distills(tmp_path: Path) -> None:
    def distilled(start: RandomStart | None, folder: Path) -> nn.Module:
        student, teacher = language("modernbert", STUDENT), language("modernbert", TEACHER)
        curriculum = extraction(total=SHORT, shared_projection=True, init=start)
        return distill(
            student,
            teacher,
            curriculum,
            strings(),
            evaluation=[strings().batch(0)],
            optimizer=SGD(learning_rate=1e-30),
            output_dir=folder,
            resume=True,
            seed=5,
        ).student

    table = "model.embeddings.tok_embeddings.weight"
    theirs = weights(language("modernbert", TEACHER))[table]
    for _ in range(2):  # The second call finds the run complete.
        found = distilled(RandomStart(), tmp_path / "with").get_parameter(table)
        assert torch.equal(found, theirs @ shared(seed=5).mT)
    found = distilled(None, tmp_path / "without").get_parameter(table)
    assert torch.equal(found, weights(language("modernbert", STUDENT))[table])


def test_a_start_is_part_of_what_a_run_depends_on() -> None:
    starts = [
        None,
        RandomStart(),
        RandomStart(projection=Sign()),
        PrincipalStart(),
        SelectionStart(),
        SelectionStart(batches=2),
    ]
    assert len({fingerprint(run_facts(bound(start))) for start in starts}) == len(starts)


def test_what_is_set_is_told_as_a_stage_of_no_steps() -> None:
    first, *rest = texts(RandomStart()).plans
    assert (first.name, first.steps, first.teacher) == ("warm start", 0, "final")
    assert first.taps == "tok_embeddings, output bias"
    assert first.projection == "gaussian shared 8x12"
    assert first.widths == "8 <- 12"
    assert first.trained_parameters == NUM_IDS * STUDENT + NUM_IDS
    assert [plan.name for plan in rest] == ["layer 1", "logits"]


def test_the_records_tell_what_was_set(tmp_path: Path) -> None:
    executed(bound(RandomStart(), stream=parity()), tmp_path)
    opening = next(read_records(tmp_path / RECORDS))
    assert isinstance(opening, RunRecord)
    assert [plan.name for plan in opening.stages] == ["warm start", "logits"]
    assert opening.stages[0].objective == "least squares"


def test_pass_map_and_solution_over_the_examples_are_counted() -> None:
    plain, with_start = executed(bound(None)).usage, executed(bound(RandomStart())).usage
    num_examples = BATCHES * 8
    assert with_start.examples - plain.examples == num_examples
    assert with_start.tokens - plain.tokens == num_examples
    assert with_start.steps == plain.steps
    layer, projection = 2 * num_examples * INPUTS * 16, 2 * num_examples * 16 * 5
    assert with_start.teacher_flops - plain.teacher_flops == layer
    # By the singular value decomposition, with a column of ones for the bias.
    columns = INPUTS + 1
    solution = 4 * num_examples * columns**2 + 8 * columns**3
    assert with_start.student_flops - plain.student_flops == projection + solution


def test_tables_are_set_without_reading_data() -> None:
    stream = strings()
    found = bind_start(
        PrincipalStart(),
        language("modernbert", STUDENT),
        LiveTeacher(language("modernbert", TEACHER)),
        stream=stream,
        seed=0,
        placement=SingleDevice("cpu"),
    )
    assert found is not None
    assert found.apply() == Usage()
    assert not stream.read


def test_a_start_without_a_teacher_is_an_error() -> None:
    with pytest.raises(BindError, match=r"^'teacher' must be given to run 'one_shot'; got none$"):
        bound(teacher=None)
