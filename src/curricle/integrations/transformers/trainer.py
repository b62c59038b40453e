"""Trainer of transformers that trains a student by a curriculum.

The Trainer keeps the data, the optimizer, the schedule, evaluations, checkpoints, trackers and
callbacks; the loss of each step and the borders of the stages are those of `StagedLoss`. Stages
last as many optimizer steps as in the engine, and a resumed training goes on in its stage.

Design: a step is begun where the Trainer fetches its micro-batches, so that every share of the loss
is divided by the counts of all of them. A step is counted as taken after its evaluation, if there
is one, since a stage may end by a metric. The state of the stages lies in `trainer_state.json`,
where transformers writes that of callbacks.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, final

import torch
import transformers
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_callback import ExportableState

from curricle.curriculum.durations import UntilMetric, length_or_rule
from curricle.curriculum.stages import Curriculum
from curricle.errors import BindError, CheckpointError
from curricle.integrations.transformers.config import CurriculumConfig
from curricle.integrations.transformers.models import (
    disable_dropout,
    load_teacher,
    shifts_labels,
)
from curricle.integrations.transformers.schedule import Factor, StageRates
from curricle.integrations.transformers.trainer_batches import BatchReader, FirstBatches
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.records import Usage
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.binding.timeline import TimelineState, plan_spans
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.loop.staged import PLANNED_OPTIMIZER, StagedLoss, check_parts
from curricle.training.setup.arguments import require_model
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import check_single_process
from curricle.values import fingerprint, parse, plain
from curricle.yaml_specs import Document

LOGGER = logging.getLogger("curricle")
NEVER = 10**12
"""Interval of evaluations where there are none."""


@final
class CurriculumTrainer(transformers.Trainer):
    """Trainer that distils a teacher into a student, stage by stage.

    Everything but `teacher_model` and the arguments of `CurriculumConfig` is as in the Trainer.
    Evaluations give the student's own loss on the labels, not that of the stage.
    """

    # Steps are begun with all their micro-batches, by whose counts each loss is divided.
    loss_is_scaled_for_ga = True

    def __init__(  # noqa: PLR0913, PLR0917 - the arguments of the Trainer
        self,
        model: nn.Module,
        teacher_model: nn.Module | TappedModel | str | None = None,
        args: transformers.TrainingArguments | None = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        processing_class: Any = None,  # noqa: ANN401 - as in the Trainer
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        compute_metrics: Callable[[transformers.EvalPrediction], dict[str, Any]] | None = None,
        callbacks: Sequence[transformers.TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, LambdaLR | None] = (None, None),
        **keywords: Any,  # noqa: ANN401 - as in the Trainer
    ) -> None:
        """Take the arguments of the Trainer, and a teacher.

        Args:
            model: The student.
            teacher_model: The finished teacher, or its name or folder; None takes
                `teacher_model_name_or_path`, and without that curricula must need no teacher.
            args: A `CurriculumConfig`.
            train_dataset: Training examples.
            eval_dataset: Held-out examples.
            processing_class: Tokenizer or processor.
            data_collator: Function that makes micro-batches of examples.
            compute_metrics: Function of the predictions for metrics beside the loss.
            callbacks: Further callbacks.
            optimizers: Optimizer and scheduler; None makes those of the arguments.
            **keywords: Further arguments of the Trainer.

        Raises:
            BindError: If there are several processes or GPUs, or an argument does not go with a
                curriculum.
        """
        require_model("model", model)
        if teacher_model is not None and not isinstance(teacher_model, str):
            require_model("teacher_model", teacher_model)
        args = _checked(args or CurriculumConfig(output_dir="tmp_trainer"), keywords)
        if args.disable_dropout:
            disable_dropout(model)
        name = args.teacher_model_name_or_path if teacher_model is None else teacher_model
        argument = "teacher_model_name_or_path" if teacher_model is None else "teacher_model"
        self.teacher_model = _teacher(name, model, args, argument)
        """The finished teacher, if there is one."""
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=None if callbacks is None else list(callbacks),
            optimizers=optimizers,
            **keywords,
        )
        self.args: CurriculumConfig = args
        self._student = model
        self.stages: StagedLoss | None = None
        """Loss and stages of the training at hand, and after it of the last one."""
        next_token = shifts_labels(model) if args.next_token is None else args.next_token
        self._reader = BatchReader(next_token=next_token)
        self._means: dict[str, tuple[Tensor, int]] = {}
        self._metrics: dict[str, float] = {}
        # Whether the step that was taken last is not counted yet.
        self._is_pending = False
        self.add_callback(_StageCallback(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,  # noqa: FBT001 - as in the Trainer
        *args: Any,  # noqa: ANN401 - as in the Trainer
        **keywords: Any,  # noqa: ANN401 - as in the Trainer
    ) -> Any:  # noqa: ANN401 - as in the Trainer
        """Train the student through all stages; see `Trainer.train`.

        Args:
            resume_from_checkpoint: Folder of a checkpoint, or True for the newest.
            *args: Further arguments of `Trainer.train`.
            **keywords: Further arguments of `Trainer.train`.

        Returns:
            Steps, mean loss and speed, as of the Trainer.
        """
        self._means, self._metrics, self._is_pending = {}, {}, False
        declared = self.args.max_steps
        try:
            with StagedLoss(self._bind(), read=self._reader) as self.stages:
                for note in self.stages.run.notes:
                    LOGGER.info("curricle: %s", note)
                output = super().train(resume_from_checkpoint, *args, **keywords)
                self.settle()
        finally:
            # The arguments are the user's and may serve another Trainer with other data.
            self.args.max_steps = declared
        return output

    def _bind(self) -> BoundRun:
        """Return the curriculum bound to models and data; its length becomes `max_steps`.

        Raises:
            BindError: If the curriculum does not fit the arguments, models or data.
        """
        args = self.args
        accumulation = args.gradient_accumulation_steps
        batches = FirstBatches(
            self.get_train_dataloader,
            self._reader,
            batch_size=args.train_batch_size * accumulation,
            accumulation=accumulation,
            seed=args.seed,
        )
        trajectory = args.trajectory()
        curriculum = args.declared_curriculum(self._planned_steps(), trajectory)
        _check_durations(curriculum, args, batches)
        spans = plan_spans(
            curriculum.stages,
            batch_size=batches.batch_size,
            tokens_per_batch=batches.tokens_per_batch,
            examples_per_epoch=batches.examples_per_epoch,
        )
        num_steps = spans[-1].end
        if args.max_steps not in {-1, num_steps}:
            raise BindError(
                f"'max_steps' must be -1 or the {num_steps} steps of the curriculum; got "
                f"{args.max_steps}"
            )
        args.max_steps = num_steps
        teacher = self.teacher_model
        run = bind(
            curriculum,
            student=tapped(self._student),
            teacher=None if teacher is None else LiveTeacher(tapped(teacher), trajectory),
            stream=batches,
            optimizer=PLANNED_OPTIMIZER,
            settings=TrainingSettings(
                device="cuda" if args.device.type == "cuda" else "cpu",
                precision="bfloat16" if args.bf16 else "float32",
                eval_every=self._evaluation_interval(num_steps),
            ),
            seed=args.seed,
        )
        # Binding reads micro-batches and does not know into how many a step is cut.
        for stage in run.stages:
            check_parts(stage, accumulation, "'gradient_accumulation_steps' must be 1")
        return run

    def _planned_steps(self) -> int:
        """Return the number of steps by the arguments of the Trainer; 1 where it is not needed."""
        args = self.args
        if isinstance(args.curriculum, Curriculum):
            return 1
        if args.max_steps > 0:
            return args.max_steps
        loader = self.get_train_dataloader()
        steps: int = self.set_initial_training_values(args, loader)[-1]
        return steps

    def _evaluation_interval(self, num_steps: int) -> int:
        """Return the number of steps between evaluations; very many where there are none."""
        args = self.args
        if args.eval_strategy == "steps":
            every = args.eval_steps or args.logging_steps
            return max(int(every if every >= 1 else every * num_steps), 1)
        if args.eval_strategy == "epoch":
            loader = self.get_train_dataloader()
            return max(len(loader) // args.gradient_accumulation_steps, 1)
        return NEVER

    def _opened(self) -> StagedLoss:
        if self.stages is None:
            raise BindError("'train' must be running for a loss of a stage; it is not")
        return self.stages

    def get_batch_samples(
        self, epoch_iterator: Iterator[object], num_batches: int, device: torch.device
    ) -> tuple[list[object], Tensor | int | None]:
        """Fetch the micro-batches of a step, and begin it.

        Args:
            epoch_iterator: Iterator of the epoch.
            num_batches: Number of micro-batches.
            device: Device of the count.

        Returns:
            The micro-batches, and the number of labels as the Trainer counts them.
        """
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        stages = self._opened()
        self.settle()
        # A rule may have ended the last stage before its maximum, to which the Trainer goes on.
        if stages.is_over:
            self.control.should_training_stop = True
            return [], None
        if samples:
            stages.optimizer = self.optimizer
            if isinstance(self.lr_scheduler, StageRates):
                self.lr_scheduler.refresh()
            stages.begin_step(*samples)
        return samples, count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, object],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - as in the Trainer
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401 - as in the Trainer
        """Return the loss of the open stage in training, and the student's own in evaluations.

        Args:
            model: The student, as the Trainer calls it.
            inputs: A micro-batch.
            return_outputs: Whether the outputs are returned, too; only in evaluations.
            num_items_in_batch: Number of labels of the step, which the loss of a stage counts
                itself.
        """
        if not model.training:
            return super().compute_loss(
                model,
                cast("dict[str, object]", inputs),
                return_outputs=return_outputs,
                num_items_in_batch=num_items_in_batch,
            )
        loss = self._opened()(inputs)
        return (loss, {}) if return_outputs else loss

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:  # noqa: ANN401 - as in the Trainer
        """Return the scheduler of the arguments, with the schedules and factors of the stages.

        Args:
            num_training_steps: Length of the training.
            optimizer: The optimizer; None takes that of the Trainer.

        Raises:
            BindError: If stages have a schedule of their own, and the scheduler is no function of
                the step.
        """
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        declared = [stage.declared for stage in self._opened().run.stages]
        if all(stage.schedule == "global" and stage.learning_rate_scale == 1 for stage in declared):
            return scheduler
        if not isinstance(scheduler, LambdaLR):
            raise BindError(
                f"'lr_scheduler_type' must be a function of the step, as 'linear' is, for stages "
                f"with 'schedule' or 'learning_rate_scale'; got {type(scheduler).__name__!r}"
            )
        self.lr_scheduler = self._stage_rates(scheduler)
        # Made anew by the next call of `train`, as the Trainer does with its own.
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _stage_rates(self, scheduler: LambdaLR) -> StageRates:
        """Return a scheduler that follows the stages, made of one over the whole run."""
        run_factor = scheduler.lr_lambdas[0]
        optimizer = scheduler.optimizer
        for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            # Both are set by the scheduler that is replaced.
            group["lr"] = group["initial_lr"] = rate
        stages, factors = self._opened(), dict[int, Factor]()

        def factor(step: int) -> float:
            stage = stages.stage
            number = stages.run.stages.index(stage)
            if stage.declared.schedule == "global":
                return float(run_factor(step)) * stage.declared.learning_rate_scale
            if number not in factors:
                factors[number] = self._own_factor(stage.span.most)
            scale = factors[number](step - stages.timeline.start)
            return scale * stage.declared.learning_rate_scale

        return StageRates(optimizer, factor)

    def _own_factor(self, num_steps: int) -> Factor:
        """Return the schedule of the arguments over a number of steps."""
        args, keywords = self.args, self.args.lr_scheduler_kwargs
        trial = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = transformers.get_scheduler(
            args.lr_scheduler_type,
            optimizer=trial,
            num_warmup_steps=args.get_warmup_steps(num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=keywords if isinstance(keywords, dict) else None,
        )
        factor: Factor = scheduler.lr_lambdas[0]
        return factor

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log numbers, and beside those of training steps the objectives, the stage and the usage.

        Args:
            logs: The numbers.
            start_time: Start of the training, for speeds.
        """
        if self._means and "loss" in logs:
            stages = self._opened()
            means = {name: total.item() / number for name, (total, number) in self._means.items()}
            self._means = {}
            usage = stages.usage
            logs |= {
                **means,
                "stage": stages.run.stages.index(stages.stage) + 1,
                "examples": usage.examples,
                "student_flops": usage.student_flops,
                "teacher_flops": usage.teacher_flops,
            }
        super().log(logs, start_time)

    def note_step(self) -> None:
        """Add the losses of the step that was taken to those of the next record."""
        stages = self._opened()
        self._is_pending = True
        name, loss = stages.stage.declared.name, stages.step_loss
        for key, mean in _named_terms(name, loss, stages).items():
            total, number = self._means.get(key, (torch.zeros_like(mean), 0))
            self._means[key] = total + mean, number + 1

    def note_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add metrics of an evaluation, by which a stage may end, to those since the last step.

        Args:
            metrics: The metrics; their names begin with `eval_`.
        """
        self._metrics |= metrics

    def settle(self) -> None:
        """Count the step that was taken, if it is not counted yet, and end the stage if it ends."""
        stages = self._opened()
        if not self._is_pending:
            return
        self._is_pending = False
        metrics, self._metrics = self._metrics, {}
        names = {name.removeprefix("eval_"): number for name, number in metrics.items()}
        end = stages.advance(metrics | names)
        if end is not None:
            LOGGER.info("curricle: stage %r ends after %d steps: %s", end.stage, end.done, end.why)
        if stages.is_over:
            self.control.should_training_stop = True

    @property
    def stage_facts(self) -> dict[str, object]:
        """Return the state of the stages as plain data, for a checkpoint."""
        stages = self._opened()
        return {
            "curriculum": _digest(stages),
            "timeline": plain(stages.timeline.state()),
            "usage": plain(stages.usage),
        }

    def resume_stages(self, facts: Mapping[str, object]) -> None:
        """Go on in the stage of a checkpoint.

        Args:
            facts: State that `stage_facts` has returned; empty if the checkpoint has none.

        Raises:
            CheckpointError: If it is of another curriculum, or of a training without one.
        """
        stages = self._opened()
        if not facts:
            raise CheckpointError(
                "'resume_from_checkpoint' must be a checkpoint of a CurriculumTrainer; got one "
                "without the state of a curriculum"
            )
        if facts["curriculum"] != _digest(stages):
            raise CheckpointError(
                "'curriculum' must be that of the checkpoint to resume from; got another one"
            )
        stages.restore(parse(TimelineState, facts["timeline"]), parse(Usage, facts["usage"]))


@final
class _StageCallback(transformers.TrainerCallback, ExportableState):
    """Counts the steps of a Trainer, and puts the state of its stages into checkpoints."""

    def __init__(self, trainer: CurriculumTrainer | None = None) -> None:
        """Take the Trainer; None where transformers makes a callback of its state."""
        self._trainer = trainer

    def on_train_begin(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **keywords: object,
    ) -> None:
        """Restore the stages of a checkpoint, or initialize the student."""
        if self._trainer is None:
            return
        if state.global_step:
            # By name, once transformers has read a checkpoint; a list of callbacks otherwise.
            states = state.stateful_callbacks
            saved: Document = (
                states.get(type(self).__name__, {}) if isinstance(states, dict) else {}
            )
            self._trainer.resume_stages(saved.get("attributes", {}).get("stages", {}))
        elif self._trainer.stages is not None:
            self._trainer.stages.start()

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **keywords: object,
    ) -> None:
        """Note the losses of the step, and count it unless an evaluation follows."""
        if self._trainer is not None:
            self._trainer.note_step()
            if not control.should_evaluate:
                self._trainer.settle()

    def on_evaluate(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **keywords: object,
    ) -> None:
        """Note the metrics; the step before them is counted when all are there."""
        if self._trainer is not None and self._trainer.is_in_train:
            self._trainer.note_metrics(metrics or {})

    def state(self) -> dict[str, object]:
        """Return the state for `trainer_state.json`."""
        trainer = self._trainer
        if trainer is None or trainer.stages is None:
            return {"args": {}, "attributes": {}}
        trainer.settle()
        return {"args": {}, "attributes": {"stages": trainer.stage_facts}}


def _checked(args: transformers.TrainingArguments, keywords: Iterable[str]) -> CurriculumConfig:
    """Return the arguments after checking that there is one device and none of them is in vain.

    Raises:
        BindError: If not.
    """
    if not isinstance(args, CurriculumConfig):
        raise BindError(f"'args' must be a CurriculumConfig; got {type(args).__name__!r}")
    check_single_process()
    if args.n_gpu > 1:
        raise BindError(
            f"'n_gpu' must be at most 1, since a curriculum runs on one GPU for now; got "
            f"{args.n_gpu}; CUDA_VISIBLE_DEVICES=0 shows the process one"
        )
    if args.device.type not in {"cpu", "cuda"}:
        raise BindError(
            f"'use_cpu' must be True where there is no CUDA device, as a curriculum runs on CPU or "
            f"CUDA; got {args.device.type!r}"
        )
    refused = {"model_init", "compute_loss_func"} & set(keywords)
    if refused:
        raise BindError(
            f"{min(refused)!r} must be left out: the stages of a curriculum have the losses, and "
            f"train the model that is given; got a function"
        )
    return args


def _teacher(
    teacher: nn.Module | TappedModel | str | None,
    student: nn.Module,
    args: CurriculumConfig,
    argument: str,
) -> nn.Module | TappedModel | None:
    if not isinstance(teacher, str):
        return teacher
    keywords = args.teacher_model_init_kwargs or {}
    if isinstance(keywords, str):
        raise BindError(
            f"'teacher_model_init_kwargs' must be a dictionary, or one as JSON; got {keywords!r}"
        )
    return load_teacher(
        teacher,
        student,
        revision=args.teacher_model_revision,
        keywords=keywords,
        argument=argument,
    )


def _check_durations(curriculum: Curriculum, args: CurriculumConfig, batches: FirstBatches) -> None:
    """Check that the Trainer fits the durations of stages.

    Raises:
        BindError: If a rule reads metrics and there are none, or tokens or epochs are no number of
            steps.
    """
    for stage in curriculum.stages:
        rule = length_or_rule(stage.duration)
        if isinstance(rule, UntilMetric) and args.eval_strategy == "no":
            raise BindError(
                f"'eval_strategy' must be 'steps' or 'epoch' for stage {stage.name!r}, which ends "
                f"by the metric {rule.metric!r}; got 'no'"
            )
        if stage.duration.at_most.unit == "tokens" and args.gradient_accumulation_steps > 1:
            raise BindError(
                f"'duration' of stage {stage.name!r} must be in steps or examples with "
                f"'gradient_accumulation_steps'; got {stage.duration.at_most}"
            )
        if stage.duration.at_most.unit == "epochs" and batches.examples_per_epoch is None:
            raise BindError(
                f"'duration' of stage {stage.name!r} must be in steps or examples for a "
                f"'train_dataset' without a length; got {stage.duration.at_most}"
            )


def _named_terms(stage: str, loss: StepLoss, stages: StagedLoss) -> dict[str, Tensor]:
    """Return the mean of each objective under the stage and the taps that it reads."""
    terms: dict[str, Tensor] = {}
    for term, mean in zip(stages.stage.terms, loss.terms, strict=True):
        name = f"loss/{stage}/{term.objective.describe()[0]}"
        number = sum(key.partition(" #")[0] == name for key in terms)
        # Two objectives may read the same taps.
        terms[f"{name} #{number + 1}" if number else name] = mean
    return terms


def _digest(stages: StagedLoss) -> str:
    return fingerprint([plain(stage.declared) for stage in stages.run.stages])
