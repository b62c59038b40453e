"""Distillation with a temperature learned adversarially to the student.

The student minimizes the divergence to its teacher and a temperature module maximizes it: both get
the same gradient, with the opposite sign for the module by *gradient reversal*. The factor of the
reversal grows at the beginning of the stage, so that the targets become harder step by step: a
curriculum of difficulty, without checkpoints and without layers.

Axes: row (counted positions), class, inputs, hidden.

Unit: nats a counted position, the divergence times the squared temperature.

Design: the module counts the updates of its stage in a buffer, so the engine does not handle the
ramp and checkpoints contain it. It reads the student's output without gradient: the student
descends the loss at the current temperatures, without a gradient through them.

References:
    [L22] Li et al. 2022, Curriculum temperature for knowledge distillation, arXiv 2211.16231.
    [G14] Ganin and Lempitsky 2014, arXiv 1409.7495: the gradient reversal.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from curricle.colocation import beside
from curricle.data.batch import Batch
from curricle.data.label_checks import misplaced, require_classes
from curricle.errors import BindError, SpecError
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.adapters import LinearMap
from curricle.objectives.base import (
    MOST_WEIGHT,
    BoundObjective,
    Reads,
    Sample,
    logits_of,
    require,
)
from curricle.objectives.logits import BoundLogits, MatchLogits
from curricle.objectives.losses import cross_entropy, tempered_kl
from curricle.objectives.projections import Gaussian
from curricle.values import Plain, value

FIRST_RAW = 1.0
"""u before training, as in the code of [L22]; with its range the temperature starts at 15.6."""
HIDDEN = 64
"""Default number of hidden units of the instance variant."""


@final
@value
class LearnedTemperature:
    """Match the teacher's output at a temperature that is trained to maximize the loss.

    loss = label_weight * cross-entropy + divergence_weight * tau^2 KL(softmax(t / tau) || softmax(s
    / tau)), mean over counted positions, with tau = least_temperature + temperature_span *
    sigmoid(u). The student minimizes the loss and u maximizes it; the gradient of u is multiplied
    by -lambda. After n updates of the stage, of which the first E are the ramp, lambda =
    reversal_from + (reversal_to - reversal_from) / 2 * (1 + cos((1 + min(n, E) / E) pi)).

    Source:
        [L22]. Deviations: lambda changes at every step, not once an epoch; a ramp is a share of the
        stage. The public code has the global variant only, so the sizes and initial values of the
        instance variant, and its input (probabilities), are ours. With AdamW, which divides a
        gradient by its own size, lambda acts far less than with SGD.
    """

    kind: Literal["learned_temperature"] = "learned_temperature"
    variant: Literal["global", "instance"] = "global"
    """`global` learns one number u; `instance` computes u of each position from the probabilities
    of both models, by a network with one hidden layer."""
    hidden: int = Field(default=HIDDEN, gt=0)
    """Hidden units of that network; for `instance` only."""
    least_temperature: float = Field(default=1.0, gt=0)
    """Lower end of the temperature; dimensionless, positive."""
    temperature_span: float = Field(default=20.0, gt=0)
    """Upper end of the temperature minus its lower end; dimensionless, positive."""
    reversal_from: float = Field(default=0.0, ge=0)
    """lambda at the beginning of the stage."""
    reversal_to: float = Field(default=1.0, ge=0)
    """lambda from the end of the ramp on; not below `reversal_from`."""
    ramp: float = Field(default=1 / 24, gt=0, le=1)
    """Share of the stage in which lambda rises; in the paper 10 of 240 epochs."""
    label_weight: float = Field(default=0.1, ge=0, le=MOST_WEIGHT)
    """gamma, factor of the cross-entropy to the labels; at 0 the data need none."""
    divergence_weight: float = Field(default=0.9, gt=0, le=MOST_WEIGHT)
    """alpha, factor of the divergence to the teacher; positive."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    def __post_init__(self) -> None:
        """Check that the reversal does not fall, and that each field has an effect.

        Raises:
            SpecError: If the reversal falls, or `hidden` is set without a network.
        """
        if self.reversal_to < self.reversal_from:
            raise SpecError(
                f"'reversal_to' must not be below 'reversal_from'; "
                f"got {self.reversal_to} and {self.reversal_from}"
            )
        if self.variant == "global" and self.hidden != HIDDEN:
            raise SpecError(
                f"'hidden' has no effect with variant 'global', which has no network; remove it "
                f"(got {self.hidden})"
            )

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's distribution."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return both logits."""
        return MatchLogits().reads(student, teacher)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term with a temperature at its initial values.

        Raises:
            BindError: If the numbers of classes differ, or the number of labels is not the number
                of counted positions.
        """
        matched = MatchLogits().bind(reads, sample, is_residual=is_residual)
        logits = logits_of(sample.student)
        labels, rows = sample.batch.labels, logits.shape[:-1].numel()
        if self.label_weight and labels is not None:
            require_classes(labels)
        if self.label_weight and labels is not None and labels.numel() != rows:
            raise BindError(
                f"'labels' must have one label for each of the {rows} positions with logits; got "
                f"{labels.numel()}; set 'label_weight' to 0 to train without labels"
            )
        adapter = Temperature(self, num_classes=matched.num_classes, sample=sample)
        return _BoundTemperature(declared=self, matched=matched, adapter=beside(adapter, logits))


@final
class Temperature(nn.Module):
    """Computes the temperature of each row, with a reversed gradient."""

    steps: Tensor

    def __init__(self, declared: LearnedTemperature, *, num_classes: int, sample: Sample) -> None:
        """Set the initial values.

        Args:
            declared: Variant and ranges.
            num_classes: Number of classes of both models.
            sample: Source of the seed and the length of the stage.
        """
        super().__init__()
        self._declared = declared
        self._ramp = math.ceil(declared.ramp * sample.num_steps)
        self.raw = nn.Parameter(torch.tensor(FIRST_RAW, dtype=torch.float32))
        self.layers: nn.Module | None = None
        if declared.variant == "instance":
            sizes = (2 * num_classes, declared.hidden, 1)
            self.layers = nn.Sequential(
                _random_layer(sample.seed, *sizes[:2]),
                nn.ReLU(),
                _random_layer(sample.seed, *sizes[1:]),
            )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def advance(self) -> None:
        """Count one optimizer update."""
        self.steps += 1

    @property
    def reversal(self) -> Float[Tensor, ""]:
        """Return lambda after the updates counted so far."""
        declared = self._declared
        done = self.steps.clamp(max=self._ramp) / self._ramp
        rise = declared.reversal_to - declared.reversal_from
        return declared.reversal_from + rise / 2 * (1 + torch.cos((1 + done) * math.pi))

    def forward(
        self, student_logits: Float[Tensor, "row class"], teacher_logits: Float[Tensor, "row class"]
    ) -> Float[Tensor, "#row 1"]:
        """Return the temperature of each row, or a single temperature for all rows.

        Args:
            student_logits: Input of the instance variant, without gradient.
            teacher_logits: Likewise.
        """
        raw = self.raw.reshape(1, 1)
        if self.layers is not None:
            both = torch.cat([student_logits.detach(), teacher_logits.detach()], dim=-1)
            sides = both.unflatten(-1, (2, -1)).softmax(-1)
            raw = raw + self.layers(sides.flatten(-2))
        reversed_raw: Tensor = _Reversal.apply(raw, self.reversal)  # type: ignore[no-untyped-call]
        span = self._declared.temperature_span * torch.sigmoid(reversed_raw)
        return self._declared.least_temperature + span


def _random_layer(seed: int, inputs: int, outputs: int) -> LinearMap:
    """Return a layer with random initial values of variance 1 / inputs."""
    return LinearMap(
        Gaussian().matrix(
            seed=seed,
            name=f"temperature {inputs} to {outputs}",
            student_width=outputs,
            teacher_width=inputs,
        )
    )


@final
class _Reversal(torch.autograd.Function):
    """Identity with its gradient multiplied by -lambda [G14]."""

    @staticmethod
    def forward(ctx: BackwardCFunction, raw: Tensor, reversal: Tensor) -> Tensor:
        ctx.save_for_backward(reversal)
        return raw.view_as(raw)

    @staticmethod
    def backward(ctx: BackwardCFunction, *gradients: Tensor) -> tuple[Tensor, None]:
        (reversal,) = ctx.saved_tensors
        return -reversal * gradients[0], None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundTemperature:
    """`LearnedTemperature` with equal vocabularies and its module."""

    declared: LearnedTemperature
    matched: BoundLogits
    """Logits matched without a temperature; selects the counted rows."""
    adapter: Temperature

    def count(self, batch: Batch) -> int:
        """Return the number of counted positions.

        Raises:
            BindError: If `label_weight` is positive and the data have no labels.
        """
        if self.declared.label_weight and batch.labels is None:
            raise BindError(
                f"'labels' must be in the data for 'label_weight' {self.declared.label_weight:g}; "
                f"got batches without labels; set it to 0 to train without labels"
                f"{misplaced(batch.inputs)}"
            )
        return self.matched.count(batch)

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row class"]:
        """Return the teacher's logits."""
        return self.matched.logits(teacher, batch)

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss summed over counted positions, in nats."""
        declared, teacher = self.declared, require(target, "target")
        logits = self.matched.logits(student, batch)
        total = declared.divergence_weight * tempered_kl(
            logits, teacher, self.adapter(logits, teacher)
        )
        if not declared.label_weight:
            return total
        labels = require(batch.labels, "labels")
        return total + declared.label_weight * cross_entropy(logits, labels)

    @property
    def label_classes(self) -> int | None:
        """Return the number of classes of labels; None if labels are not fitted."""
        return self.matched.num_classes if self.declared.label_weight else None

    @property
    def target_facts(self) -> Plain:
        """Return the dependencies of the target besides the teacher and the data."""
        return self.matched.target_facts

    @property
    def reads_selected(self) -> bool:
        """Return whether only selected positions count."""
        return self.matched.reads_selected

    @property
    def sparse_temperature(self) -> float | None:
        """Return None: a learned temperature needs all classes."""
        return None

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        declared = self.declared
        lowest = declared.least_temperature
        terms = [
            f"{declared.weight * declared.divergence_weight:g} x tempered KL",
            f"{declared.variant} T={lowest:g} to {lowest + declared.temperature_span:g}",
        ]
        if declared.label_weight:
            terms.append(f"+ {declared.weight * declared.label_weight:g} x cross-entropy")
        return "logits", " ".join(terms), "-", "-"
