"""Trainings of a `CurriculumTrainer`: the losses of the engine, and the habits of the Trainer."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

import curricle
from curricle import seeding
from curricle.curriculum import Curriculum, Stage
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.integrations.transformers import CurriculumConfig, CurriculumTrainer
from curricle.objectives import Learned
from curricle.records import Record, StepRecord
from curricle.training import staged_loss

pytestmark = pytest.mark.integration
NUM_IDS, LENGTH, EXAMPLES, SIZE = 24, 10, 24, 4
LAYER = curricle.MatchHidden(pair=curricle.LayerPair(student=1, teacher=1))


@pytest.fixture(autouse=True)
def generators_are_restored() -> Iterator[None]:
    """Seed what the Trainer seeds, and put the global generators back."""
    with seeding.scoped(0, "trainer test", beyond_torch=True):
        yield


def model(kind: str, width: int, seed: int) -> Any:
    """Return a tiny model without dropout."""
    common = {"vocab_size": NUM_IDS, "num_labels": 3}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with seeding.scoped(seed, "trainer model"):
        if kind == "next_token":
            gpt = transformers.GPT2Config(
                n_embd=width, n_layer=2, n_head=2, n_positions=LENGTH, **common,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )  # fmt: skip
            return transformers.GPT2LMHeadModel(gpt)
        bert = transformers.BertConfig(
            hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=2 * width, max_position_embeddings=LENGTH, **common, **no_dropout,
        )  # fmt: skip
        if kind == "masked":
            return transformers.BertForMaskedLM(bert)
        return transformers.BertForSequenceClassification(bert)


def examples(kind: str, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return examples of unequal numbers of labels and of padding."""
    generator = seeding.generator(seed, "trainer data")
    items: list[dict[str, Tensor]] = []
    for number in range(EXAMPLES):
        ids = torch.randint(2, NUM_IDS, (LENGTH,), generator=generator)
        mask = torch.ones(LENGTH, dtype=torch.long)
        mask[LENGTH - number % 4 :] = 0
        if kind == "classes":
            labels = ids[0] % 3
        else:
            labels = ids.masked_fill(mask == 0, -100)
            labels[: 1 + number % 3] = -100
        if kind == "masked":
            hidden = torch.rand(LENGTH, generator=generator) < 0.4
            labels = labels.masked_fill(~hidden, -100)
            labels[5] = ids[5]
            ids = ids.masked_fill(labels != -100, 1)
        items.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return items


def config(folder: Path, **fields: Any) -> CurriculumConfig:
    """Return arguments that keep the order of the data, and log every step."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": SIZE,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return CurriculumConfig(**(defaults | fields))


def trained(
    kind: str, folder: Path, *, teacher: Any = None, optimizer: Any = None, **fields: Any
) -> CurriculumTrainer:
    """Return a Trainer after its training."""
    student = model(kind, 8, 0)
    trainer = CurriculumTrainer(
        student,
        model(kind, 16, 1) if teacher is None else teacher,
        config(folder, **fields),
        examples(kind),
        examples(kind, seed=1),
    )
    if optimizer is not None:
        trainer.optimizer = optimizer(student.parameters())
    trainer.train()
    return trainer


def losses(trainer: CurriculumTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def engine(
    kind: str,
    curriculum: Curriculum,
    *,
    optimizer: Any,
    batch_size: int = SIZE,
    trajectory: Any = None,
    **settings: Any,
) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses and weights of the library's own loop on the same batches."""
    student, records = model(kind, 8, 0), list[Record]()
    data = curricle.stream(
        DataLoader(examples(kind), batch_size=batch_size),  # type: ignore[arg-type]
        next_token=kind == "next_token",
    )
    curricle.distill(
        student,
        model(kind, 16, 1),
        curriculum,
        data,
        evaluation=lambda _: {"score": 0.0},
        metric="score",
        optimizer=optimizer,
        trajectory=trajectory,
        # The clipping of the Trainer.
        settings=curricle.TrainingSettings(
            device="cpu", log_every=1, max_grad_norm=1.0, **settings
        ),
        seed=42,
        observers=[records.append],
    )
    return [record.loss for record in records if isinstance(record, StepRecord)], weights(student)


def same_as_engine(
    trainer: CurriculumTrainer, expected: tuple[list[float], dict[str, Tensor]]
) -> None:
    assert losses(trainer) == pytest.approx(expected[0], rel=2e-6)
    assert len(expected[0]) == trainer.state.global_step
    for name, weight in weights(trainer.model).items():
        assert torch.allclose(weight, expected[1][name], rtol=1e-5, atol=2e-7), name


def checkpoints(kind: str, folder: Path) -> curricle.Trajectory:
    """Return two checkpoints of the teacher, as the Trainer writes them."""
    for step in (10, 20):
        model(kind, 16, step).save_pretrained(folder / f"checkpoint-{step}")
    return curricle.hugging_face_trajectory(sorted(folder.glob("checkpoint-*")))


CURRICULA = {
    "one_shot": curricle.one_shot(total="5 steps"),
    "extraction": curricle.extraction(total="10 steps", pairs=2, layer_fraction=0.5),
    "centered": curricle.extraction(total="6 steps", layer_fraction=0.5, center=True),
    "frozen": curricle.extraction(total="9 steps", pairs=2, layer_fraction=0.6, trainable="new"),
    "from_labels": curricle.from_labels(total="5 steps"),
    "examples": curricle.extraction(total=f"{8 * SIZE} examples"),
    "initialized": curricle.one_shot(total="3 steps", init=curricle.PrincipalStart()),
    "both": Curriculum(
        name="both",
        stages=(
            Stage(
                name="both",
                duration="6 steps",
                objectives=(LAYER, curricle.MatchLogits(), curricle.LabelLoss(weight=0.5)),
            ),
        ),
    ),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("masked", name) for name in CURRICULA),
        *((kind, name) for kind in ("next_token", "classes") for name in ("extraction", "both")),
    ],
)
def test_losses_and_weights_are_those_of_the_engine(kind: str, name: str, tmp_path: Path) -> None:
    curriculum = CURRICULA[name]
    trainer = trained(kind, tmp_path, curriculum=curriculum, learning_rate=0.05)
    constant = curricle.SGD(learning_rate=0.05)
    same_as_engine(trainer, engine(kind, curriculum, optimizer=constant))


@pytest.mark.parametrize("kind", ["next_token", "classes"])
def test_progressive_follows_the_checkpoints_of_a_trainer(kind: str, tmp_path: Path) -> None:
    trajectory = checkpoints(kind, tmp_path / "teacher")
    trainer = trained(
        kind,
        tmp_path / "run",
        curriculum="progressive",
        teacher_checkpoints=str(tmp_path / "teacher"),
        max_steps=6,
        learning_rate=0.05,
    )
    curriculum = curricle.progressive(total="6 steps", trajectory=trajectory)
    constant = curricle.SGD(learning_rate=0.05)
    expected = engine(kind, curriculum, optimizer=constant, trajectory=trajectory)
    same_as_engine(trainer, expected)
    assert len({entry["stage"] for entry in trainer.state.log_history if "stage" in entry}) == 2


@pytest.mark.parametrize("kind", ["masked", "next_token", "classes"])
def test_accumulated_micro_batches_count_as_one_batch(kind: str, tmp_path: Path) -> None:
    curriculum = CURRICULA["both"]
    trainer = trained(
        kind,
        tmp_path,
        curriculum=curriculum,
        learning_rate=0.05,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    constant = curricle.SGD(learning_rate=0.05)
    expected = engine(
        kind, curriculum, optimizer=constant, batch_size=8, gradient_accumulation_steps=4
    )
    same_as_engine(trainer, expected)


def test_stages_reset_the_optimizer_and_have_their_own_rates(tmp_path: Path) -> None:
    logits = (curricle.MatchLogits(),)
    curriculum = Curriculum(
        name="rates",
        stages=(
            Stage(name="a", duration="4 steps", objectives=(LAYER,), learning_rate_scale=0.5),
            Stage(
                name="b", duration="4 steps", objectives=logits, schedule="own",
                optimizer_state="reset",
            ),
            Stage(name="c", duration="3 steps", objectives=logits),
        ),
    )  # fmt: skip
    declared = curricle.AdamW(
        learning_rate=3e-3, betas=(0.9, 0.999), schedule=curricle.Schedule(decay="linear")
    )
    trainer = trained(
        "masked",
        tmp_path,
        curriculum=curriculum,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
    )
    same_as_engine(trainer, engine("masked", curriculum, optimizer=declared))
    rates = [
        entry["learning_rate"] / 3e-3 for entry in trainer.state.log_history if "loss" in entry
    ]
    own, run = [1, 0.75, 0.5, 0.25], [1 - step / 11 for step in range(11)]
    assert rates == pytest.approx([*(0.5 * rate for rate in run[:4]), *own, *run[8:]])


@pytest.mark.parametrize("stop", [3, 6, 8])
def test_a_resumed_training_goes_on_in_its_stage(stop: int, tmp_path: Path) -> None:
    curriculum = curricle.extraction(
        total="10 steps", pairs=2, layer_fraction=0.6, schedule="own", optimizer_state="reset"
    )
    fields: dict[str, Any] = {
        "curriculum": curriculum,
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    trainer = trained("masked", tmp_path, **fields)
    second = CurriculumTrainer(
        model("masked", 8, 5),
        model("masked", 16, 1),
        config(tmp_path, **fields),
        examples("masked"),
    )
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert losses(second) == losses(trainer)
    for name, weight in weights(second.model).items():
        assert torch.equal(weight, weights(trainer.model)[name])
    first_log, second_log = (run.state.log_history[-2] for run in (trainer, second))
    assert first_log == second_log


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    trained("masked", tmp_path, curriculum=CURRICULA["one_shot"], **fields)
    again = CurriculumTrainer(
        model("masked", 8, 0),
        model("masked", 16, 1),
        config(tmp_path, curriculum=CURRICULA["both"], **fields),
        examples("masked"),
    )
    with pytest.raises(CheckpointError, match="'curriculum' must be that of the checkpoint"):
        again.train(resume_from_checkpoint=True)
    path = tmp_path / "checkpoint-4" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["_StageCallback"]
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="must be a checkpoint of a CurriculumTrainer"):
        again.train(resume_from_checkpoint=str(path.parent))


def test_rules_end_stages(tmp_path: Path) -> None:
    plateau = curricle.UntilPlateau(at_most="20 steps", window=2, patience=1, min_improvement=0.9)
    metric = curricle.UntilMetric(
        metric="accuracy", reaches=0.0, direction="above", at_most="20 steps"
    )
    curriculum = Curriculum(
        name="rules",
        stages=(
            Stage(name="plateau", duration=plateau, objectives=(LAYER,)),
            Stage(name="metric", duration=metric, objectives=(curricle.MatchLogits(),)),
        ),
    )
    trainer = CurriculumTrainer(
        model("classes", 8, 0),
        model("classes", 16, 1),
        config(tmp_path, curriculum=curriculum, eval_strategy="steps", eval_steps=5),
        examples("classes"),
        examples("classes", seed=1),
        compute_metrics=accuracy,
    )
    trainer.train()
    assert trainer.stages is not None
    # The second stage ends with the first evaluation that falls into it.
    assert [(end.done, end.why) for end in trainer.stages.timeline.ends] == [
        (4, "plateau"),
        (1, "metric"),
    ]
    assert trainer.state.global_step == 5


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_evaluation_gives_the_loss_on_labels_and_metrics(tmp_path: Path) -> None:
    trainer = CurriculumTrainer(
        model("classes", 8, 0),
        model("classes", 16, 1),
        config(tmp_path, curriculum=CURRICULA["extraction"], eval_strategy="steps", eval_steps=2),
        examples("classes"),
        examples("classes", seed=1),
        compute_metrics=accuracy,
    )
    trainer.train()
    metrics = trainer.evaluate()
    batch = torch.utils.data.default_collate(examples("classes", seed=1))
    with torch.no_grad():
        expected = trainer.model.eval()(**batch)
    assert metrics["eval_loss"] == pytest.approx(float(expected.loss), rel=1e-5)
    hits = (expected.logits.argmax(-1) == batch["labels"]).float().mean()
    assert metrics["eval_accuracy"] == pytest.approx(float(hits))
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4, 6, 8, 10, 10]


def test_early_stopping_and_the_best_weights(tmp_path: Path) -> None:
    trainer = CurriculumTrainer(
        model("classes", 8, 0),
        model("classes", 16, 1),
        config(
            tmp_path,
            curriculum={"kind": "extraction", "layer_fraction": 0.5},
            max_steps=12,
            # So large that the loss on labels does not get better for long.
            learning_rate=2.0,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
        ),
        examples("classes"),
        examples("classes", seed=1),
        callbacks=[transformers.EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = min(entries, key=lambda entry: entry["eval_loss"])
    assert len(entries) == best["step"] + 2 < 12
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-6)


def test_logs_have_objectives_stage_and_usage(tmp_path: Path) -> None:
    trainer = trained("masked", tmp_path, curriculum=CURRICULA["extraction"], logging_steps=5)
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert trainer.stages is not None
    plans = [stage.plan for stage in trainer.stages.run.stages]
    assert [plan.steps for plan in plans] == [3, 2, 5]
    layers = [name for name in first if name.startswith("loss/")]
    assert [name.split("/")[1] for name in layers] == ["layer 1", "layer 2"]
    assert first["loss"] == pytest.approx((3 * first[layers[0]] + 2 * first[layers[1]]) / 5)
    assert second["loss"] == pytest.approx(second["loss/logits/logits"])
    assert (first["stage"], second["stage"]) == (3, 3)
    assert (first["examples"], second["examples"]) == (5 * SIZE, 10 * SIZE)
    for name in ("student_flops", "teacher_flops"):
        flops = [getattr(plan, name) for plan in plans]
        assert first[name] == 3 * flops[0] + 2 * flops[1]
        assert second[name] == first[name] + 5 * flops[2]


def test_a_tracker_gets_the_arguments_and_the_logs(tmp_path: Path) -> None:
    received: list[Mapping[str, float]] = []

    class Tracker(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
            json.loads(args.to_json_string())

        def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
            received.append(dict(logs))

    trainer = CurriculumTrainer(
        model("masked", 8, 0),
        model("masked", 16, 1),
        config(tmp_path, curriculum=CURRICULA["one_shot"]),
        examples("masked"),
        callbacks=[Tracker()],
    )
    trainer.train()
    assert all(isinstance(number, (int, float)) for logs in received for number in logs.values())
    assert sum("loss/logits/logits" in logs for logs in received) == 5


def test_temperature_and_beta_are_those_of_trl(tmp_path: Path) -> None:
    objective = curricle.MatchLogits(
        divergence={"kind": "jsd", "beta": 0.3},  # type: ignore[arg-type]
        student_temperature=2.0,
        teacher_temperature=2.0,
    )
    trainer = trained("masked", tmp_path, max_steps=3, temperature=2.0, beta=0.3)
    explicit = curricle.one_shot(total="3 steps", objective=objective)
    assert losses(trainer) == losses(trained("masked", tmp_path, curriculum=explicit))
    assert losses(trainer) != losses(trained("masked", tmp_path, max_steps=3))


def test_a_teacher_is_loaded_by_its_folder(tmp_path: Path) -> None:
    model("masked", 16, 1).save_pretrained(tmp_path / "teacher")
    fields: dict[str, Any] = {"teacher_model_name_or_path": str(tmp_path / "teacher")}
    fields["teacher_model_init_kwargs"] = {"attn_implementation": "eager"}
    trainer = CurriculumTrainer(
        model("masked", 8, 0),
        args=config(tmp_path, max_steps=3, **fields),
        train_dataset=examples("masked"),
    )
    trainer.train()
    assert isinstance(trainer.teacher_model, transformers.BertForMaskedLM)
    assert trainer.teacher_model.config._attn_implementation == "eager"
    expected = losses(trained("masked", tmp_path, max_steps=3))
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)


def test_epochs_are_the_length_of_a_strategy(tmp_path: Path) -> None:
    trainer = trained("masked", tmp_path, curriculum="extraction", num_train_epochs=2)
    assert trainer.state.global_step == 2 * EXAMPLES // SIZE
    assert trainer.stages is not None
    assert [stage.span.most for stage in trainer.stages.run.stages] == [3, 9]


def test_training_leaves_flags_hooks_and_the_teacher_as_they_were(tmp_path: Path) -> None:
    teacher = model("masked", 16, 1).train()
    before = weights(teacher)
    trainer = trained("masked", tmp_path, teacher=teacher, curriculum=CURRICULA["frozen"])
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert not any(module._forward_hooks for module in trainer.model.modules())
    assert not any(module._forward_hooks for module in teacher.modules())
    assert teacher.training
    assert all(torch.equal(before[name], weight) for name, weight in weights(teacher).items())


def test_a_second_training_begins_anew(tmp_path: Path) -> None:
    trainer = trained("masked", tmp_path, curriculum="extraction", max_steps=4)
    first = trainer.state.global_step
    trainer.train()
    assert trainer.stages is not None
    assert first == trainer.state.global_step == trainer.stages.num_steps == 4
    assert [entry["stage"] for entry in trainer.state.log_history if "loss" in entry] == [
        2,
        2,
        2,
        2,
    ]


def test_dropout_is_switched_off_on_request(tmp_path: Path) -> None:
    def student() -> Any:
        with seeding.scoped(0, "dropout"):
            fields = {"vocab_size": NUM_IDS, "n_embd": 8, "n_layer": 1, "n_head": 2}
            return transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields))

    results = []
    for disable, seed in ((True, 1), (True, 2), (False, 1), (False, 2)):
        arguments = config(
            tmp_path, curriculum="from_labels", max_steps=2, seed=seed, disable_dropout=disable
        )
        trainer = CurriculumTrainer(student(), None, arguments, examples("next_token"))
        trainer.train()
        results.append(losses(trainer))
    assert results[0] == results[1]
    assert results[2] != results[3]


def test_bfloat16_trains(tmp_path: Path) -> None:
    plain = losses(trained("masked", tmp_path, curriculum=CURRICULA["extraction"]))
    short = losses(trained("masked", tmp_path, curriculum=CURRICULA["extraction"], bf16=True))
    assert short != plain
    assert short == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"curriculum": "one_shoot"}, "'curriculum' 'one_shoot' is not a strategy"),
        ({"curriculum": "from_labels", "temperature": 2.0}, "'temperature' must be None"),
        ({"curriculum": CURRICULA["one_shot"], "beta": 1.0}, "'beta' must be None"),
        ({"fp16": True}, "'fp16' must be False"),
        ({"label_smoothing_factor": 0.1}, "'label_smoothing_factor' must be 0.0"),
        ({"auto_find_batch_size": True}, "'auto_find_batch_size' must be False"),
    ],
)
def test_arguments_without_effect_are_refused(
    fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=sentence):
        config(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"curriculum": CURRICULA["one_shot"], "max_steps": 7}, "'max_steps' must be -1 or the 5"),
        ({"curriculum": "one_shot", "beta": 2.0}, "'beta' must lie between 0 and 1"),
        ({"curriculum": "progressive"}, "'teacher_checkpoints' must be given"),
        (
            {"curriculum": curricle.extraction(total="9 steps", projection=Learned())},
            "'objectives' of stage 'layer 1' must have no parameters of their own",
        ),
        (
            {
                "curriculum": curricle.one_shot(total="300 tokens"),
                "gradient_accumulation_steps": 2,
            },
            "'duration' of stage 'logits' must be in steps or examples",
        ),
    ],
)
def test_a_curriculum_that_does_not_fit_is_refused(
    fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises((BindError, SpecError), match=sentence):
        trained("masked", tmp_path, **fields)


def test_a_stage_by_a_metric_needs_evaluations(tmp_path: Path) -> None:
    rule = curricle.UntilMetric(metric="loss", reaches=1.0, direction="below", at_most="9 steps")
    curriculum = curricle.extraction(total="20 steps", durations=(rule,))
    with pytest.raises(BindError, match="'eval_strategy' must be 'steps' or 'epoch'"):
        trained("masked", tmp_path, curriculum=curriculum)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = config(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BindError, match="'WORLD_SIZE' must be 1"):
        CurriculumTrainer(model("masked", 8, 0), None, arguments)


def test_arguments_of_another_trainer_are_refused(tmp_path: Path) -> None:
    arguments: Any = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(BindError, match="'args' must be a CurriculumConfig"):
        CurriculumTrainer(model("masked", 8, 0), None, arguments)
    with pytest.raises(BindError, match="'compute_loss_func' must be left out"):
        CurriculumTrainer(model("masked", 8, 0), None, config(tmp_path), compute_loss_func=print)


def test_the_command_line_reads_the_arguments(tmp_path: Path) -> None:
    parser = transformers.HfArgumentParser(CurriculumConfig)  # type: ignore[arg-type]
    words = [
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
        "--debug",
        "underflow_overflow",
        "--temperature",
        "2",
    ]
    words += ["--curriculum", '{"kind": "extraction", "pairs": 2}', "--disable_dropout"]
    (arguments,) = parser.parse_args_into_dataclasses(words)
    assert arguments.curriculum == {"kind": "extraction", "pairs": 2}
    assert (arguments.temperature, arguments.disable_dropout) == (2.0, True)
    assert arguments.declared_curriculum(100, None).stages[-1].name == "logits"


def test_a_loop_of_ones_own_has_the_losses_of_the_engine() -> None:
    curriculum = curricle.extraction(
        total="9 steps", pairs=2, layer_fraction=0.6, trainable="new", optimizer_state="reset"
    )
    student = model("masked", 8, 0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    data = DataLoader(examples("masked"), batch_size=SIZE)  # type: ignore[arg-type]
    numbers = []
    with staged_loss(
        student, model("masked", 16, 1), curriculum, data, optimizer=optimizer, seed=42
    ) as staged:
        while not staged.is_over:
            loss = staged(staged.next_batch())
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            staged.advance()
            numbers.append(loss.item())
    declared = curricle.SGD(learning_rate=0.05, momentum=0.9)
    expected, final = engine("masked", curriculum, optimizer=declared)
    assert numbers == pytest.approx(expected, rel=2e-6)
    assert all(
        torch.allclose(weight, final[name], rtol=1e-5, atol=2e-7)
        for name, weight in weights(student).items()
    )


def test_a_loop_without_optimizer_cannot_reset_it() -> None:
    curriculum = curricle.extraction(total="4 steps", optimizer_state="reset")
    data = DataLoader(examples("masked"), batch_size=SIZE)  # type: ignore[arg-type]
    arguments = model("masked", 8, 0), model("masked", 16, 1), curriculum, data
    with staged_loss(*arguments) as staged:
        staged(staged.next_batch()).backward()
        staged.advance()
        batch = staged.next_batch()
        with pytest.raises(BindError, match="'optimizer' must be given, since stage 'logits' res"):
            staged(batch)


def test_notes_of_binding_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="curricle"):
        trainer = trained("masked", tmp_path, curriculum=CURRICULA["extraction"])
    assert trainer.stages is not None
    assert [f"curricle: {note}" for note in trainer.stages.run.notes] <= caplog.messages
    assert "curricle: stage 'layer 1' ends after 3 steps: length" in caplog.messages
