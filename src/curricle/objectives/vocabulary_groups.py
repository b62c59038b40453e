"""Comparisons of the probabilities of two vocabularies.

`SortedProbabilities` compares by rank and needs nothing but the logits. `GroupedProbabilities`
compares by text: every token of either vocabulary belongs to one group, and the probabilities of a
group are added up on both sides. `token_groups` finds the groups from two tokenizers.

Axes: row (compared positions), class (of either vocabulary), group.

Design: each token of both vocabularies is a group. A token of only one vocabulary is split by the
other tokenizer, and belongs to the group of the first piece: where the student has `abc` and the
teacher `ab` and `c`, the teacher predicts `ab` where the student predicts `abc`, so `abc` belongs
to `ab`. If that piece is in only one vocabulary as well, the token belongs to group 0.
"""

from collections.abc import Container, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from curricle.colocation import beside
from curricle.errors import BindError, SpecError
from curricle.objectives import losses
from curricle.protocols import fast_backend
from curricle.values import value

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

FEWEST_GROUPED = 0.5
"""Least share of the tokens of a vocabulary that belong to a common token."""


@final
@value
class SortedProbabilities:
    """Probabilities in descending order, see `losses.sorted_distance`.

    Source:
        Boizard et al. 2024, universal logit distillation (arXiv 2402.12030).
    """

    kind: Literal["sorted"] = "sorted"
    num_largest: int | None = Field(default=None, gt=0)
    """Number of ranks to compare, since sorting a large vocabulary takes time; None for all."""

    def check(self, num_student: int, num_teacher: int) -> None:
        """Accept all numbers of classes."""

    def __call__(
        self,
        student_logits: Float[Tensor, "row student_class"],
        teacher_logits: Float[Tensor, "row teacher_class"],
        *,
        student_temperature: float,
        teacher_temperature: float,
    ) -> Float[Tensor, ""]:
        """Return the distance summed over rows, dimensionless."""
        return losses.sorted_distance(
            student_logits,
            teacher_logits,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            num_largest=self.num_largest,
        )


@final
@value
class GroupedProbabilities:
    """KL(teacher || student) of the probabilities of groups of tokens, see `token_groups`."""

    kind: Literal["grouped"] = "grouped"
    student: tuple[int, ...] = Field(min_length=1)
    """Group of each token of the student, by id; 0 for tokens without a common one."""
    teacher: tuple[int, ...] = Field(min_length=1)
    """Group of each token of the teacher, by id."""

    def __post_init__(self) -> None:
        """Check that groups are numbers from 0 on.

        Raises:
            SpecError: If one is negative.
        """
        lowest = min(*self.student, *self.teacher)
        if lowest < 0:
            raise SpecError(f"'student' and 'teacher' must be groups from 0 on; got {lowest}")

    def check(self, num_student: int, num_teacher: int) -> None:
        """Check that every token has a logit.

        Args:
            num_student: Number of the student's classes; those after the last token are padding.
            num_teacher: Number of the teacher's classes, likewise.

        Raises:
            BindError: If a model has fewer classes than tokens.
        """
        sides = (("student", self.student, num_student), ("teacher", self.teacher, num_teacher))
        for role, groups, number in sides:
            if number < len(groups):
                raise BindError(
                    f"'{role}' of GroupedProbabilities must have a group for each of at most "
                    f"{number} classes of the {role}; got {len(groups)}"
                )

    def __call__(
        self,
        student_logits: Float[Tensor, "row student_class"],
        teacher_logits: Float[Tensor, "row teacher_class"],
        *,
        student_temperature: float,
        teacher_temperature: float,
    ) -> Float[Tensor, ""]:
        """Return the divergence summed over rows, in nats."""
        number = max(*self.student, *self.teacher) + 1
        return losses.forward_kl(
            _group_logits(student_logits / student_temperature, self.student, number),
            _group_logits(teacher_logits.detach() / teacher_temperature, self.teacher, number),
            student_temperature=1.0,
            teacher_temperature=1.0,
        )


Comparison = Annotated[
    SortedProbabilities | GroupedProbabilities,
    Field(discriminator="kind"),
]
"""Field type of a comparison, selected by `kind`."""


@lru_cache(maxsize=4)
def _index(groups: tuple[int, ...]) -> Int[Tensor, " class"]:
    """Return groups as a tensor; cached, since a large vocabulary takes milliseconds a step."""
    return torch.tensor(groups)


def _group_logits(
    logits: Float[Tensor, "row class"], groups: tuple[int, ...], number: int
) -> Float[Tensor, "row group"]:
    """Return the logarithm of the probability of each group; logits of padding are left out."""
    wide = logits[..., : len(groups)]
    wide = wide if wide.dtype == torch.float64 else wide.float()
    index = beside(_index(groups), logits)
    probabilities = wide.softmax(-1)
    sums = probabilities.new_zeros((*probabilities.shape[:-1], number))
    sums = sums.index_add(-1, index, probabilities)
    # The floor keeps the gradient of an empty group finite.
    return sums.clamp_min(torch.finfo(sums.dtype).tiny).log()


def token_groups(student_tokenizer: object, teacher_tokenizer: object) -> GroupedProbabilities:
    """Return the groups of tokens of two tokenizers.

    Both must write their tokens alike, as byte-level tokenizers do.

    Args:
        student_tokenizer: The student's tokenizer: a fast one of transformers, or a `Tokenizer` of
            tokenizers.
        teacher_tokenizer: The teacher's tokenizer, likewise.

    Raises:
        BindError: If it is none of these, or fewer than half of the tokens of one of them belong
            to a common token.
    """
    student = fast_backend("student", student_tokenizer)
    teacher = fast_backend("teacher", teacher_tokenizer)
    vocabularies = student.get_vocab(), teacher.get_vocab()
    common = sorted(vocabularies[0].keys() & vocabularies[1].keys())
    numbers = {token: number for number, token in enumerate(common, start=1)}
    sides = []
    for role, ids, own, other in (
        ("student", vocabularies[0], student, teacher),
        ("teacher", vocabularies[1], teacher, student),
    ):
        added = own.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        groups = _groups(ids, numbers, other, special)
        share = sum(map(bool, groups)) / len(groups)
        if share < FEWEST_GROUPED:
            raise BindError(
                f"tokenizers must have common tokens with which most others begin; got {share:.0%} "
                f"of the {role}'s tokens; SortedProbabilities needs no common tokens"
            )
        sides.append(groups)
    return GroupedProbabilities(student=sides[0], teacher=sides[1])


def _groups(
    ids: Mapping[str, int],
    numbers: Mapping[str, int],
    other: "FastTokenizer",
    special: Container[str],
) -> tuple[int, ...]:
    """Return the group of each id of a vocabulary; ids without a token belong to group 0.

    So do special tokens of one vocabulary alone: their characters are no text.
    """
    groups = [0] * (max(ids.values()) + 1)
    for token, number in ids.items():
        group = numbers.get(token)
        if group is None and token in special:
            group = 0
        elif group is None:
            beginning = other.model.tokenize(token)
            group = numbers.get(beginning[0].value, 0) if beginning else 0
        groups[number] = group
    return tuple(groups)
