"""Trainings of a `CurriculumTrainer`: the losses of the engine, and the habits of the Trainer."""

import inspect
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import IterableDataset

import curricle
from curricle import seeding
from curricle.curriculum import Curriculum, Stage
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.integrations.transformers import CurriculumTrainer
from curricle.objectives import Learned
from tests.trainers import (
    EXAMPLES,
    NUM_IDS,
    SIZE,
    config,
    engine,
    examples,
    losses,
    model,
    same_as_engine,
    student_of,
    trained,
    weights,
)

pytestmark = pytest.mark.integration
LAYER = curricle.MatchHidden(pair=curricle.LayerPair(student=1, teacher=1))


@pytest.fixture(autouse=True)
def generators_are_restored() -> Iterator[None]:
    """Seed what the Trainer seeds, and put the global generators back."""
    with seeding.scoped(0, "trainer test", beyond_torch=True):
        yield


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
    for name, weight in weights(student_of(second)).items():
        assert torch.equal(weight, weights(student_of(trainer))[name])
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
    predictions: Any = prediction.predictions
    return {"accuracy": float((predictions.argmax(-1) == prediction.label_ids).mean())}


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
        expected = student_of(trainer).eval()(**batch)
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

        def on_log(self, *_: Any, **keywords: Any) -> None:
            received.append(dict(keywords["logs"]))

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


def test_tensorboard_gets_objectives_stage_and_usage(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(
        "masked", tmp_path, curriculum=CURRICULA["one_shot"], report_to=["tensorboard"],
        eval_strategy="steps", eval_steps=5,
    )  # fmt: skip
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = reading.EventAccumulator(str(file)).Reload()
    assert {"train/loss/logits/logits", "train/stage", "eval/loss"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("train/examples")] == [
        SIZE * step for step in range(1, 6)
    ]


def test_temperature_and_beta_are_those_of_trl(tmp_path: Path) -> None:
    objective = curricle.MatchLogits(
        divergence={"kind": "jsd", "beta": 0.3},  # type: ignore[arg-type]
        student_temperature=2.0,
        teacher_temperature=2.0,
    )
    trainer = trained("masked", tmp_path, max_steps=3, temperature=2.0, beta=0.3)
    explicit = curricle.one_shot(total="3 steps", objective=objective)
    declared = trained("masked", tmp_path, curriculum=explicit)
    assert losses(trainer) == losses(declared)
    # The length of the curriculum is not left in the user's arguments.
    assert (trainer.args.max_steps, declared.args.max_steps) == (3, -1)
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


def broken_folder(folder: Path) -> str:
    model("masked", 16, 1).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"x")
    return str(folder)


@pytest.mark.parametrize("argument", ["teacher_model", "teacher_model_name_or_path"])
@pytest.mark.parametrize(
    ("make", "place"),
    [(lambda folder: str(folder / "none"), "no folder of that"), (broken_folder, "is a folder")],
    ids=["missing", "broken"],
)
def test_a_teacher_that_cannot_be_loaded_is_named_with_its_argument(
    make: Callable[[Path], str],
    place: str,
    argument: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The name is asked for on the Hub, too.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = make(tmp_path / "teacher")
    of_trainer: dict[str, Any] = {"teacher_model": name} if argument == "teacher_model" else {}
    fields: dict[str, Any] = {} if of_trainer else {argument: name}
    sentence = (
        rf"^'{argument}' must be a folder or a name of the Hub that AutoModelForMaskedLM loads; "
        rf"got '{name}' \({place}.*\); transformers says: "
    )
    with pytest.raises(BindError, match=sentence):
        CurriculumTrainer(model("masked", 8, 0), args=config(tmp_path, **fields), **of_trainer)


def test_models_of_a_trainer_are_modules_or_names_of_a_teacher(tmp_path: Path) -> None:
    # The shape checks of the tests would refuse them first.
    construct: Any = inspect.unwrap(CurriculumTrainer.__init__)
    trainer = object.__new__(CurriculumTrainer)
    with pytest.raises(BindError, match=r"^'teacher_model' must be a torch.nn.Module, .*got 'int'"):
        construct(trainer, model("masked", 8, 0), args=config(tmp_path), teacher_model=3)
    with pytest.raises(BindError, match=r"^'model' .*; a folder .*\.from_pretrained\('bert'\)"):
        construct(trainer, "bert", args=config(tmp_path))


def test_epochs_are_the_length_of_a_strategy(tmp_path: Path) -> None:
    trainer = trained("masked", tmp_path, curriculum="extraction", num_train_epochs=2)
    assert trainer.state.global_step == 2 * EXAMPLES // SIZE
    assert trainer.stages is not None
    assert [stage.span.most for stage in trainer.stages.run.stages] == [3, 9]


@pytest.mark.parametrize(("size", "accumulation", "steps"), [(SIZE, 1, 6), (5, 1, 5), (5, 2, 3)])
def test_a_curriculum_may_last_epochs(
    size: int, accumulation: int, steps: int, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
    }
    curriculum = curricle.extraction(total="2 epochs", durations=("0.5 epochs",))
    trainer = trained("masked", tmp_path / "staged", curriculum=curriculum, **arguments)
    # As many steps as the Trainer itself takes for so many epochs.
    plain = trained(
        "masked", tmp_path / "plain", curriculum="one_shot", num_train_epochs=2, **arguments
    )
    assert trainer.state.global_step == plain.state.global_step == 2 * steps
    assert trainer.stages is not None
    first, _ = trainer.stages.run.stages
    assert first.span.most == math.ceil(steps / 2)
    assert any(f"are {2 * steps} steps" in note for note in trainer.stages.run.notes)


def test_epochs_of_data_without_a_length_are_refused(tmp_path: Path) -> None:
    class Unending(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from examples("masked")

    trainer = CurriculumTrainer(
        model("masked", 8, 0),
        model("masked", 16, 1),
        config(tmp_path, curriculum=curricle.one_shot(total="2 epochs"), max_steps=2),
        Unending(),
    )
    with pytest.raises(BindError, match="'duration' of stage 'logits' must be in steps or"):
        trainer.train()


def test_training_leaves_flags_hooks_and_the_teacher_as_they_were(tmp_path: Path) -> None:
    teacher = model("masked", 16, 1).train()
    before = weights(teacher)
    trainer = trained("masked", tmp_path, teacher=teacher, curriculum=CURRICULA["frozen"])
    assert all(parameter.requires_grad for parameter in student_of(trainer).parameters())
    assert not own_hooks(student_of(trainer)) | own_hooks(teacher)
    assert teacher.training
    assert all(torch.equal(before[name], weight) for name, weight in weights(teacher).items())


def own_hooks(model: Any) -> set[Any]:
    """Return the hooks of a model but those that transformers never takes away again."""
    hooks = {hook for module in model.modules() for hook in module._forward_hooks.values()}
    return {hook for hook in hooks if not hook.__module__.startswith("transformers.")}


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
            fields: dict[str, Any] = {"vocab_size": NUM_IDS, "n_embd": 8, "n_layer": 1, "n_head": 2}
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
        (
            {
                "curriculum": curricle.one_shot(
                    total="2 steps", objective=curricle.MatchSimilarities()
                ),
                "gradient_accumulation_steps": 2,
            },
            "'gradient_accumulation_steps' must be 1 for MatchSimilarities in stage",
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


def test_other_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = config(tmp_path)
    monkeypatch.setattr(transformers.TrainingArguments, "device", torch.device("mps"))
    with pytest.raises(BindError, match="'use_cpu' must be True where there is no CUDA device"):
        CurriculumTrainer(model("masked", 8, 0), None, arguments)


def test_arguments_of_another_trainer_are_refused(tmp_path: Path) -> None:
    arguments: Any = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(BindError, match="'args' must be a CurriculumConfig"):
        CurriculumTrainer(model("masked", 8, 0), None, arguments)
    with pytest.raises(BindError, match="'compute_loss_func' must be left out"):
        CurriculumTrainer(model("masked", 8, 0), None, config(tmp_path), compute_loss_func=print)


def test_notes_of_binding_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="curricle"):
        trainer = trained("masked", tmp_path, curriculum=CURRICULA["extraction"])
    assert trainer.stages is not None
    assert [f"curricle: {note}" for note in trainer.stages.run.notes] <= caplog.messages
    assert "curricle: stage 'layer 1' ends after 3 steps: length" in caplog.messages
