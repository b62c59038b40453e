"""Divergences between outputs of student and teacher, as spec values.

Each value stands for one function of `losses` together with its settings. The temperatures are not
fields: they belong to the objective, which passes the same two numbers to any divergence and calls
`check` at its declaration.

Axes: row (any number of axes), class (of logits).

Design: values with a literal `kind`, named after the function; formula, unit and limits are
documented at the function. All accept `overwrites`, which allows in-place use of the memory of the
logits; only `ForwardKL` makes use of it.
"""

from typing import Annotated, Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.errors import SpecError
from curricle.objectives import losses
from curricle.values import value


@final
@value
class ForwardKL:
    """KL(teacher || student), see `losses.forward_kl`; mass-covering."""

    kind: Literal["forward_kl"] = "forward_kl"

    def check(self, *, student_temperature: float, teacher_temperature: float) -> None:
        """Raise `SpecError` if the divergence is not defined for two temperatures."""
        losses.check_temperatures(student_temperature, teacher_temperature)

    def __call__(
        self,
        student_logits: Float[Tensor, "*row class"],
        teacher_logits: Float[Tensor, "*row class"],
        *,
        student_temperature: float,
        teacher_temperature: float,
        overwrites: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the divergence summed over rows, in nats."""
        forward_kl = losses.forward_kl_in_place if overwrites else losses.forward_kl
        return forward_kl(
            student_logits,
            teacher_logits,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        )


@final
@value
class ReverseKL:
    """KL(student || teacher), see `losses.reverse_kl`; mode-seeking.

    Infinite for a one-hot teacher, so teacher temperature 0 raises an error.
    """

    kind: Literal["reverse_kl"] = "reverse_kl"

    def check(self, *, student_temperature: float, teacher_temperature: float) -> None:
        """Raise `SpecError` if the divergence is not defined for two temperatures."""
        losses.check_temperatures(
            student_temperature, teacher_temperature, soft_teacher_for=self.kind
        )

    def __call__(
        self,
        student_logits: Float[Tensor, "*row class"],
        teacher_logits: Float[Tensor, "*row class"],
        *,
        student_temperature: float,
        teacher_temperature: float,
        overwrites: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the divergence summed over rows, in nats."""
        del overwrites
        return losses.reverse_kl(
            student_logits,
            teacher_logits,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        )


@final
@value
class JSD:
    """Generalized Jensen-Shannon divergence, see `losses.generalized_jsd`."""

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(gt=0, lt=1, default=0.5)
    """Weight of the teacher in the mixture, strictly between 0 and 1; small values behave like
    beta times forward KL, large values like 1 - beta times reverse KL."""

    def check(self, *, student_temperature: float, teacher_temperature: float) -> None:
        """Raise `SpecError` if the divergence is not defined for two temperatures."""
        losses.check_temperatures(student_temperature, teacher_temperature)

    def __call__(
        self,
        student_logits: Float[Tensor, "*row class"],
        teacher_logits: Float[Tensor, "*row class"],
        *,
        student_temperature: float,
        teacher_temperature: float,
        overwrites: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the divergence summed over rows, in nats."""
        del overwrites
        return losses.generalized_jsd(
            student_logits,
            teacher_logits,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            beta=self.beta,
        )


@final
@value
class TotalVariation:
    """Half the L1 distance of the distributions, see `losses.total_variation`."""

    kind: Literal["total_variation"] = "total_variation"

    def check(self, *, student_temperature: float, teacher_temperature: float) -> None:
        """Raise `SpecError` if the divergence is not defined for two temperatures."""
        losses.check_temperatures(student_temperature, teacher_temperature)

    def __call__(
        self,
        student_logits: Float[Tensor, "*row class"],
        teacher_logits: Float[Tensor, "*row class"],
        *,
        student_temperature: float,
        teacher_temperature: float,
        overwrites: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the divergence summed over rows, dimensionless."""
        del overwrites
        return losses.total_variation(
            student_logits,
            teacher_logits,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        )


@final
@value
class SquaredError:
    """Squared error of the outputs themselves, see `losses.squared_error`.

    For outputs that are no scores of classes, such as those of regression and of several labels;
    with classes it matches logits without a softmax.
    """

    kind: Literal["squared_error"] = "squared_error"

    def check(self, *, student_temperature: float, teacher_temperature: float) -> None:
        """Check that the outputs are not softened.

        Args:
            student_temperature: Temperature of the student; dimensionless.
            teacher_temperature: Temperature of the teacher; dimensionless.

        Raises:
            SpecError: If one of them is not 1.
        """
        if (student_temperature, teacher_temperature) != (1.0, 1.0):
            raise SpecError(
                f"'student_temperature' and 'teacher_temperature' must be 1 with divergence "
                f"{self.kind!r}, which compares outputs and no probabilities; got "
                f"{student_temperature:g} and {teacher_temperature:g}"
            )

    def __call__(
        self,
        student_logits: Float[Tensor, "*row class"],
        teacher_logits: Float[Tensor, "*row class"],
        *,
        student_temperature: float,
        teacher_temperature: float,
        overwrites: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the squared error summed over rows, in squared units of the outputs."""
        del student_temperature, teacher_temperature, overwrites
        return losses.squared_error(student_logits, teacher_logits)


Divergence = Annotated[
    ForwardKL | ReverseKL | JSD | TotalVariation | SquaredError,
    Field(discriminator="kind"),
]
"""Field type of a divergence, selected by `kind`."""
