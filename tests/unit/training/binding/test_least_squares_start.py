"""A start by least squares in runs: what it costs, what it refuses, and that it resumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import curricle
from curricle.curriculum.initialization import warm_start
from curricle.errors import BindError, SpecError
from curricle.least_squares.fitting import ROWS_PER_CHANNEL
from curricle.models.wrapping import tapped
from curricle.records import EvaluationRecord, Record, RunRecord, Usage
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.least_squares_start import BoundLeastSquares
from curricle.training.binding.starting import apply_start, bind_start
from tests.parts import Listed
from tests.unit.least_squares import families
from tests.unit.least_squares.families import TOKENS, model
from tests.unit.least_squares.networks import EDGE, convolutional, images, perceptron, vectors

pytest.importorskip("transformers")
FINAL_NORM = "model.norm.weight"


def texts(number: int = 6) -> Listed:
    batches = []
    for seed in range(number):
        inputs = families.inputs("llama", seed)
        assert isinstance(inputs, dict)
        ids = inputs["input_ids"]
        positions = torch.arange(ids.numel()).view(ids.shape)[:, :-1].flatten()
        batches.append(
            curricle.Batch(inputs=inputs, labels=ids[:, 1:].flatten(), selected=positions)
        )
    return Listed(*batches)


def student(**fields: Any) -> nn.Module:
    return model("llama", seed=1, **{"hidden_size": 8, "intermediate_size": 16, **fields})


def run(
    network: nn.Module,
    init: Any,
    *,
    folder: Path | None = None,
    fails_at: int | None = None,
    resume: bool = False,
) -> tuple[curricle.Result, Sequence[Record]]:
    """Return a run of four steps and its records; it may fail after a step."""
    records: list[Record] = []

    def observe(record: Record) -> None:
        records.append(record)
        if isinstance(record, EvaluationRecord) and record.usage.steps == fails_at:
            raise RuntimeError("interrupted")

    result = curricle.distill(
        network,
        model("llama"),
        curricle.one_shot(total="4 steps", init=init),
        texts(),
        evaluation=list(texts(2).batches),
        metric="kl",
        optimizer=curricle.SGD(learning_rate=1e-4),
        settings=curricle.TrainingSettings(eval_every=1, save_every=2),
        output_dir=folder,
        resume=resume,
        observers=[observe],
    )
    return result, records


def first_kl(records: Sequence[Record]) -> float:
    return next(one.metrics["kl"] for one in records if isinstance(one, EvaluationRecord))


def test_a_student_starts_nearer_to_its_teacher_than_by_its_embeddings() -> None:
    random, embeddings, blocks = (
        first_kl(run(student(), init)[1]) for init in (None, "principal", "least_squares")
    )
    assert blocks < 0.9 * min(random, embeddings)


def test_a_student_of_the_teachers_size_starts_as_its_teacher() -> None:
    _, records = run(model("llama", seed=1), "least_squares")
    assert first_kl(records) < 1e-6


def test_calibration_counts_as_usage() -> None:
    plain, _ = run(student(), None)
    started, records = run(student(), curricle.LeastSquaresStart(batches=3))
    difference = started.usage.examples - plain.usage.examples
    assert difference == 3 * 8
    assert started.usage.tokens - plain.usage.tokens == 3 * texts().tokens_per_batch
    # Passes of the teacher, and passes, moments and solutions of the student.
    spent = [
        getattr(started.usage, name) - getattr(plain.usage, name)
        for name in ("student_flops", "teacher_flops")
    ]
    assert min(spent) > 0
    opening = next(one for one in records if isinstance(one, RunRecord))
    plan = opening.stages[0]
    assert (plan.name, plan.steps, plan.widths) == ("warm start", 0, "8 <- 16")
    assert plan.taps == "1 <- 1, 2 <- 2"
    # Without what does not grow with the batches, such as the solutions.
    assert 0 < plan.student_flops < spent[0]
    assert 0 < plan.teacher_flops < spent[1]


def test_a_run_that_goes_on_does_not_start_again(tmp_path: Path) -> None:
    whole, _ = run(student(), "least_squares")
    with pytest.raises(RuntimeError, match="interrupted"):
        run(student(), "least_squares", folder=tmp_path / "run", fails_at=3)
    resumed, _ = run(student(), "least_squares", folder=tmp_path / "run", resume=True)
    for name, weight in whole.student.state_dict().items():
        assert torch.equal(weight, resumed.student.state_dict()[name])
    assert resumed.usage.examples == whole.usage.examples


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 3}, "no deeper than its teacher; got 3 and 2 blocks"),
        (
            {"hidden_size": 32},
            "no wider than its teacher; got widths 32 and 16; leave 'init' out, or take a student",
        ),
    ],
)
def test_a_larger_student_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BindError, match=message):
        run(student(**fields), "least_squares")


def test_what_is_left_as_drawn_is_said_before_and_at_the_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result, _ = run(model("gpt2", seed=1), "least_squares")
    note = "'init' leaves as drawn 'transformer.h.0.mlp.c_fc': one of both has gates"
    assert note in result.notes
    # Tables of positions, which rotary positions have none of, show when they are looked for.
    assert "'init' has left as drawn 'transformer.wpe.weight'" in caplog.text
    assert "c_fc" not in caplog.text


def test_frozen_weights_are_refused() -> None:
    network = student()
    network.get_parameter("lm_head.weight").requires_grad = False
    with pytest.raises(BindError, match=r"got 'lm_head.weight' frozen"):
        run(network, "least_squares")


def test_models_without_a_common_part_are_refused() -> None:
    with pytest.raises(BindError, match=r"can fit no block of BertForMaskedLM: .* other sublayers"):
        run(model("bert", seed=1, vocab_size=TOKENS), "least_squares")


def test_a_name_that_no_start_has_is_refused() -> None:
    sentence = r"^'init' must be one of 'random' \(the embeddings alone\), .*; got 'least_square'$"
    with pytest.raises(SpecError, match=sentence):
        curricle.one_shot(total="4 steps", init="least_square")


def test_guide_sets_embeddings_output_and_first_block_alone() -> None:
    network = student(num_hidden_layers=2)
    drawn = {name: weight.clone() for name, weight in network.named_parameters()}
    teacher = model("llama")
    settings = curricle.TrainingSettings()
    start = warm_start("guide")
    assert isinstance(start, curricle.LeastSquaresStart)
    bound = bind_start(
        start,
        tapped(network),
        LiveTeacher(tapped(teacher)),
        stream=texts(),
        seed=0,
        placement=settings.placement,
    )
    assert isinstance(bound, BoundLeastSquares)
    assert bound.plan.taps == "1 <- 1"
    bound.apply()
    changed = {
        name for name, weight in network.named_parameters() if not torch.equal(weight, drawn[name])
    }
    assert changed == {name for name in drawn if "layers.1." not in name and name != FINAL_NORM}
    # Principal components in numpy: of the token vectors as often as the map's rows read them.
    table = teacher.get_parameter("model.embed_tokens.weight").detach().double().numpy()
    inputs = [families.inputs("llama", step % 6) for step in range(12)]
    ids = [torch.as_tensor(entry["input_ids"]) for entry in inputs if isinstance(entry, dict)]
    enough = -(-ROWS_PER_CHANNEL * table.shape[1] // ids[0].numel())
    ids = ids[:enough]
    counts = np.bincount(torch.cat(ids).flatten().numpy(), minlength=TOKENS)
    _, vectors = np.linalg.eigh(table.T @ (counts[:, None] * table))
    leading = vectors[:, -8:]
    actual = network.get_parameter("model.embed_tokens.weight").detach().double().numpy()
    np.testing.assert_allclose(actual @ actual.T, table @ leading @ leading.T @ table.T, atol=1e-4)
    head = network.get_parameter("lm_head.weight").detach().double().numpy()
    output = teacher.get_parameter("lm_head.weight").detach().double().numpy()
    np.testing.assert_allclose(head @ actual.T, output @ leading @ leading.T @ table.T, atol=1e-4)


def test_more_blocks_than_the_student_has_are_refused() -> None:
    with pytest.raises(BindError, match="'blocks' of 'init' must be at most the 2 blocks"):
        run(student(), curricle.LeastSquaresStart(blocks=3))


# --- networks without a stream of states ----------------------------------------------------------


def taught(network: Any, teacher: Any, batches: Sequence[torch.Tensor], *, number: int = 12) -> Any:
    """Return a run of two steps, by the first of which nothing has changed."""
    generator = torch.Generator().manual_seed(0)
    examples = [
        curricle.Batch(inputs=batch, labels=torch.randint(3, (len(batch),), generator=generator))
        for batch in batches
    ]
    records: list[Record] = []
    result = curricle.distill(
        network,
        teacher,
        curricle.one_shot(total="2 steps", init=curricle.LeastSquaresStart(batches=number)),
        Listed(*examples),
        evaluation=examples[:2],
        metric="kl",
        optimizer=curricle.SGD(learning_rate=1e-9),
        settings=curricle.TrainingSettings(eval_every=1),
        observers=[records.append],
    )
    return result, records


def test_a_perceptron_starts_from_its_teacher() -> None:
    with curricle.seeding.scoped(0, "perceptrons"):
        teacher, network = (curricle.MLP(8, widths, 3) for widths in ((12, 6), (12, 6)))
    result, records = taught(network, teacher, [vectors(seed) for seed in range(3)], number=2)
    assert first_kl(records) < 1e-8
    assert result.notes == ()
    opening = next(one for one in records if isinstance(one, RunRecord))
    plan = opening.stages[0]
    assert plan.taps == "1 <- 1, 2 <- 2, 3 <- 3"
    assert plan.objective == "least squares, map by map"
    assert plan.projection == "selection 12x12, selection 6x6, selection 3x3"
    assert plan.widths == "12 <- 12, 6 <- 6, 3 <- 3"
    assert result.usage.examples == 2 * 16 + 2 * 16


def test_the_plan_of_a_chain_is_what_its_start_costs() -> None:
    networks = perceptron(4, 3, seed=1), perceptron(8, 6)
    placement = curricle.TrainingSettings().placement
    bound = bind_start(
        curricle.LeastSquaresStart(batches=3),
        tapped(networks[0]),
        LiveTeacher(tapped(networks[1])),
        stream=Listed(*(curricle.Batch(inputs=vectors(seed)) for seed in range(3))),
        seed=0,
        placement=placement,
    )
    assert isinstance(bound, BoundLeastSquares)
    usage = apply_start(bound, Usage(), placement)
    assert (bound.plan.student_flops, bound.plan.teacher_flops) == (
        usage.student_flops,
        usage.teacher_flops,
    )


def test_a_network_of_ones_own_without_blocks_starts_from_its_teacher() -> None:
    _, records = taught(
        convolutional(5, 4, seed=1), convolutional(5, 4), [images(seed) for seed in range(3)]
    )
    # A step in training mode has moved the statistics.
    assert first_kl(records) < 1e-4


def test_what_a_chain_leaves_as_drawn_is_a_note() -> None:
    result, _ = taught(perceptron(4, 9, seed=1), perceptron(8, 8), [vectors(0), vectors(1)])
    assert (
        "'init' leaves as drawn '2': it is wider than the teacher's map, with 9 and 8 outputs"
        in result.notes
    )


def test_a_student_without_a_map_of_its_teachers_is_refused() -> None:
    teacher = nn.Sequential(nn.Flatten(), perceptron(20, num_inputs=2 * EDGE**2)).eval()
    with pytest.raises(
        BindError,
        match=r"'init' by least squares can fit no map of Sequential but the last: '0': the "
        r"teacher has no map for it whose outputs have the same places",
    ):
        taught(convolutional(4, seed=1), teacher, [images(0), images(1)])


def test_a_network_without_blocks_and_links_is_refused() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 3))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ self.weight

    with pytest.raises(
        BindError, match=r"needs a student with numbered blocks, or a chain of maps"
    ):
        taught(Opaque(), perceptron(8), [vectors(0), vectors(1)])
