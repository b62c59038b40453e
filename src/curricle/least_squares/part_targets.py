"""Targets of the maps that read a state, as linear functions of what the teacher computes there.

A student with fewer or narrower heads, or fewer neurons, computes a part of what its teacher does:

- heads are chosen by the energy of what they write into the student's stream;
- queries and keys of a head: with rotation, the pairs of columns whose frequencies the student has,
  otherwise the product of least error of the student's rank;
- values of a head: the directions that write most;
- neurons are chosen by the energy of what they write.

Axes: column (of the maps that read), input (of the map that writes).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from curricle.least_squares.block_parts import Part
from curricle.least_squares.roles import Head, Roles


@final
@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Second moments of what a teacher's part computes, summed over rows."""

    part: Part
    roles: Roles
    columns: Tensor
    """Of the outputs of the maps that read, with a 1 as last column."""
    inputs: Tensor
    """Of the input of the map that writes."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """Targets of a student's part, for each of the teacher's parts that it stands for."""

    columns: tuple[Tensor, ...]
    """Targets of the columns are the sum of these matrices times the teacher's columns."""
    inputs: tuple[Tensor, ...]
    """The teacher's inputs of the map that writes are about these matrices times the student's."""
    is_set: Tensor
    """Which columns have a target."""


def encoding(student: Roles, part: Part, surveys: Sequence[Survey], stream: Tensor) -> Encoding:
    """Return the targets of a student's part.

    Args:
        student: Its roles.
        part: The part.
        surveys: The teacher's parts.
        stream: Map of the stream.
    """
    if student.neurons is not None:
        return _neurons(student, part, surveys, stream)
    return _heads(student, part, surveys, stream)


def _empty(part: Part, surveys: Sequence[Survey]) -> tuple[list[Tensor], list[Tensor]]:
    columns = [
        torch.zeros(sum(part.widths), sum(survey.part.widths), dtype=torch.float64)
        for survey in surveys
    ]
    inputs = [
        torch.zeros(survey.part.output.sizes[1], part.output.sizes[1], dtype=torch.float64)
        for survey in surveys
    ]
    return columns, inputs


def _written(survey: Survey, stream: Tensor) -> Tensor:
    """Return the map that writes, into the student's stream."""
    return stream @ survey.part.output.affine.weight


def _neurons(student: Roles, part: Part, surveys: Sequence[Survey], stream: Tensor) -> Encoding:
    own = student.neurons
    assert own is not None  # noqa: S101 - of this kind
    energies, places = [], []
    for number, survey in enumerate(surveys):
        written = _written(survey, stream).square().sum(0)
        energies.append(survey.inputs.diagonal() * written)
        places += [(number, neuron) for neuron in range(len(written))]
    energy = torch.cat(energies)
    size = min(len(own.activated), len(energy))
    # In the teacher's order, so that a student of the same size is its teacher.
    chosen = energy.topk(size).indices.sort().values.tolist()
    columns, inputs = _empty(part, surveys)
    is_set = torch.zeros(sum(part.widths), dtype=torch.bool)
    for neuron, index in enumerate(chosen):
        number, source = places[index]
        neurons = surveys[number].roles.neurons
        assert neurons is not None  # noqa: S101 - of this kind
        columns[number][own.activated[neuron], neurons.activated[source]] = 1
        is_set[own.activated[neuron]] = True
        if own.multiplied is not None and neurons.multiplied is not None:
            columns[number][own.multiplied[neuron], neurons.multiplied[source]] = 1
            is_set[own.multiplied[neuron]] = True
        inputs[number][source, neuron] = 1
    return Encoding(tuple(columns), tuple(inputs), is_set)


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Heads of a teacher that share their keys and values."""

    number: int
    """Number of their part."""
    heads: tuple[Head, ...]
    energy: float
    """Energy of what they write into the student's stream."""


def _heads(student: Roles, part: Part, surveys: Sequence[Survey], stream: Tensor) -> Encoding:
    columns, inputs = _empty(part, surveys)
    is_set = torch.zeros(sum(part.widths), dtype=torch.bool)
    groups = _groups(student.heads)
    sources = _sources(surveys, stream, size=len(groups[0]))
    best = sorted(range(len(sources)), key=lambda index: -sources[index].energy)[: len(groups)]
    # In the teacher's order, so that a student with as many heads is its teacher.
    for heads, index in zip(groups.values(), sorted(best), strict=False):
        source = sources[index]
        survey, first = surveys[source.number], source.heads[0]
        # Keys and values are those of all heads of the group.
        encode, decode = _values(heads[0], first, survey, _written(survey, stream))
        matrix, back = columns[source.number], inputs[source.number]
        matrix[heads[0].values[:, None], first.values] = encode
        matrix[heads[0].keys[:, None], first.keys] = _product(heads[0], first, survey)[1]
        is_set[heads[0].values] = is_set[heads[0].keys] = True
        for head, other in zip(heads, source.heads, strict=False):
            matrix[head.queries[:, None], other.queries] = _product(head, other, survey)[0]
            is_set[head.queries] = True
            back[other.outputs[:, None], head.outputs] = decode
    return Encoding(tuple(columns), tuple(inputs), is_set)


def _sources(surveys: Sequence[Survey], stream: Tensor, *, size: int) -> list[_Source]:
    """Return the teacher's groups of heads, each with its best heads, at most `size`."""
    sources = []
    for number, survey in enumerate(surveys):
        written = _written(survey, stream)
        for heads in _groups(survey.roles.heads).values():
            energies = [
                _energy(written[:, head.outputs], survey.inputs[head.outputs][:, head.outputs])
                for head in heads
            ]
            order = sorted(range(len(heads)), key=lambda index: -energies[index])[:size]
            best = tuple(heads[index] for index in sorted(order))
            sources.append(_Source(number, best, sum(energies[index] for index in order)))
    return sources


def _groups(heads: Sequence[Head]) -> dict[int, list[Head]]:
    groups: dict[int, list[Head]] = {}
    for head in heads:
        groups.setdefault(head.group, []).append(head)
    return groups


def _energy(written: Tensor, moment: Tensor) -> float:
    return float((written @ moment @ written.mT).diagonal().sum())


def _values(head: Head, other: Head, survey: Survey, written: Tensor) -> tuple[Tensor, Tensor]:
    """Return the student's values as a map of the teacher's, and the way back."""
    size, width = len(head.values), len(other.values)
    if size >= width:
        encode = torch.eye(size, width, dtype=torch.float64)
        return encode, encode.mT
    moment = survey.inputs[other.outputs][:, other.outputs]
    root, inverse = _roots(moment)
    _, _, directions = torch.linalg.svd(written[:, other.outputs] @ root, full_matrices=False)
    leading = directions[:size]
    scale = moment.diagonal().mean().sqrt()
    return scale * leading @ inverse, root @ leading.mT / scale


def _product(head: Head, other: Head, survey: Survey) -> tuple[Tensor, Tensor]:
    """Return the student's queries and keys as maps of the teacher's."""
    size, width = len(head.queries), len(other.queries)
    # The factor of the product belongs half to either side.
    factor = (other.scale / head.scale) ** 0.5
    queries = torch.zeros(size, width, dtype=torch.float64)
    keys = torch.zeros(size, width, dtype=torch.float64)
    rotary, other_rotary = _pairs(head), _pairs(other)
    number = min(len(rotary), len(other_rotary))
    for pair in range(number):
        source = round(pair * len(other_rotary) / len(rotary)) if len(rotary) else 0
        for own, theirs in zip(rotary[pair], other_rotary[source], strict=True):
            queries[own, theirs] = factor
            keys[own, theirs] = factor
    own_rest = torch.arange(head.num_rotary, size)
    their_rest = torch.arange(other.num_rotary, width)
    if len(own_rest) and len(their_rest):
        if len(own_rest) >= len(their_rest):
            unit = factor * torch.eye(len(own_rest), len(their_rest), dtype=torch.float64)
            queries[own_rest[:, None], their_rest] = unit
            keys[own_rest[:, None], their_rest] = unit
        else:
            left, right = _low_rank(
                _covariance(survey, other.queries[their_rest], is_centered=False),
                _covariance(survey, other.keys[their_rest], is_centered=True),
                len(own_rest),
            )
            queries[own_rest[:, None], their_rest] = factor * left
            keys[own_rest[:, None], their_rest] = factor * right
    return queries, keys


def _pairs(head: Head) -> list[tuple[int, int]]:
    """Return the columns that rotate together, from the highest frequency to the lowest."""
    half = head.num_rotary // 2
    if head.are_interleaved:
        return [(2 * pair, 2 * pair + 1) for pair in range(half)]
    return [(pair, pair + half) for pair in range(half)]


def _covariance(survey: Survey, columns: Tensor, *, is_centered: bool) -> Tensor:
    count = survey.columns[-1, -1]
    moment = survey.columns[columns][:, columns] / count
    if not is_centered:
        return moment
    # A constant in all keys changes no attention.
    mean = survey.columns[columns, -1] / count
    return moment - torch.outer(mean, mean)


def _low_rank(queries: Tensor, keys: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return maps of queries and keys whose product has the least squared error at a rank."""
    root_q, inverse_q = _roots(queries)
    root_k, inverse_k = _roots(keys)
    left, sizes, right = torch.linalg.svd(root_q @ root_k)
    root = sizes[:rank].sqrt()[:, None]
    return root * (left[:, :rank].mT @ inverse_q), root * (right[:rank] @ inverse_k)


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square root of a moment and its inverse."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(1e-8 * values.max().clamp_min(1e-30))
    root = values.sqrt()
    return vectors * root @ vectors.mT, vectors / root @ vectors.mT
