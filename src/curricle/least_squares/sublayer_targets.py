"""Targets of the maps that read a state, as linear functions of the teacher's values there.

A student with fewer or narrower heads, or fewer neurons, computes a share of its teacher's values:

- heads are chosen by the energy of their outputs in the student's stream;
- queries and keys of a head: the product of least error of the student's rank; with rotation, for
  each frequency of the student the product of rank one of the teacher's pairs of columns with the
  nearest frequencies;
- values of a head: the directions that write most;
- neurons are chosen one at a time, each the one whose output, with those chosen before, leaves the
  least squared error of the sum of all neurons (orthogonal matching pursuit).

Axes: column (of the maps that read), input (of the map that writes), pair (of rotating columns).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from curricle.least_squares.roles import Head, Roles
from curricle.least_squares.sublayers import Sublayer

PURSUIT_FLOOR = 1e-9
"""Remaining moment, relative to the mean, below which a neuron follows from those chosen."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Second moments of the values in a teacher's sublayer, summed over rows."""

    sublayer: Sublayer
    roles: Roles
    columns: Tensor
    """Of the outputs of the maps that read, with a 1 as last column; of a head's queries and of its
    keys only, the rest is 0."""
    inputs: Tensor
    """Of the input of the map that writes; of columns of one head, or of all neurons, the rest is
    0."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """Targets of a student's sublayer, for each of the teacher's sublayers that it stands for."""

    columns: tuple[Tensor, ...]
    """Targets of the columns are the sum of these matrices times the teacher's columns."""
    inputs: tuple[Tensor, ...]
    """The teacher's inputs of the map that writes are about these matrices times the student's."""
    is_set: Tensor
    """Which columns have a target."""


def encoding(
    student: Roles, sublayer: Sublayer, surveys: Sequence[Survey], stream: Tensor
) -> Encoding:
    """Return the targets of a student's sublayer.

    Args:
        student: Its roles.
        sublayer: The sublayer.
        surveys: The teacher's sublayers.
        stream: Map of the stream.
    """
    if student.neurons is not None:
        return _neurons(student, sublayer, surveys, stream)
    return _heads(student, sublayer, surveys, stream)


def _empty(sublayer: Sublayer, surveys: Sequence[Survey]) -> tuple[list[Tensor], list[Tensor]]:
    columns = [
        torch.zeros(sum(sublayer.widths), sum(survey.sublayer.widths), dtype=torch.float64)
        for survey in surveys
    ]
    inputs = [
        torch.zeros(survey.sublayer.output.sizes[1], sublayer.output.sizes[1], dtype=torch.float64)
        for survey in surveys
    ]
    return columns, inputs


def _written(survey: Survey, stream: Tensor) -> Tensor:
    """Return the map that writes, into the student's stream."""
    return stream @ survey.sublayer.output.affine.weight


def _neurons(
    student: Roles, sublayer: Sublayer, surveys: Sequence[Survey], stream: Tensor
) -> Encoding:
    neurons = student.neurons
    assert neurons is not None  # noqa: S101 - of this kind
    written = torch.cat([_written(survey, stream) for survey in surveys], dim=1)
    # Neurons of several sublayers are taken as independent.
    moment = torch.block_diag(*(survey.inputs for survey in surveys))
    places = [
        (number, neuron)
        for number, survey in enumerate(surveys)
        for neuron in range(len(survey.inputs))
    ]
    size = min(len(neurons.activated), len(moment))
    # In the teacher's order, so that a student of the same size is its teacher.
    indices = sorted(pursued(moment, written, size))
    columns, inputs = _empty(sublayer, surveys)
    is_set = torch.zeros(sum(sublayer.widths), dtype=torch.bool)
    for neuron, index in enumerate(indices):
        number, source = places[index]
        teacher_neurons = surveys[number].roles.neurons
        assert teacher_neurons is not None  # noqa: S101 - of this kind
        columns[number][neurons.activated[neuron], teacher_neurons.activated[source]] = 1
        is_set[neurons.activated[neuron]] = True
        if neurons.multiplied is not None and teacher_neurons.multiplied is not None:
            columns[number][neurons.multiplied[neuron], teacher_neurons.multiplied[source]] = 1
            is_set[neurons.multiplied[neuron]] = True
        inputs[number][source, neuron] = 1
    return Encoding(tuple(columns), tuple(inputs), is_set)


def pursued(
    moment: Float[Tensor, "neuron neuron"], written: Float[Tensor, "width neuron"], size: int
) -> list[int]:
    """Return neurons chosen by orthogonal matching pursuit.

    Each is the neuron that lowers the squared error most of the best linear map from the chosen
    neurons to the sum of all of them. One step eliminates it from both moments, as a step of a
    pivoted Cholesky decomposition does.

    Args:
        moment: Second moments of the neurons.
        written: Output of each neuron.
        size: Number of neurons to choose.

    Source:
        Y. Pati, R. Rezaiifar, P. Krishnaprasad, "Orthogonal matching pursuit", 1993; here on the
        moments of the data, with all neurons' sum as target.
    """
    sizes, shares = moment.diagonal().clone(), written @ moment
    smallest = PURSUIT_FLOOR * sizes.mean().clamp_min(1e-30)
    factors = moment.new_zeros(len(moment), size)
    neurons, is_free = list[int](), torch.ones(len(moment), dtype=torch.bool)
    for step in range(size):
        gains = torch.where(sizes > smallest, shares.square().sum(0) / sizes, 0.0)
        best = int(torch.where(is_free, gains, -1.0).argmax())
        neurons.append(best)
        is_free[best] = False
        if sizes[best] <= smallest:
            continue
        # The moments of the best neuron that do not follow from those chosen before.
        column = (moment[:, best] - factors @ factors[best]) / sizes[best].sqrt()
        shares -= torch.outer(shares[:, best] / sizes[best].sqrt(), column)
        factors[:, step] = column
        sizes -= column.square()
    return neurons


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Heads of a teacher that share their keys and values."""

    number: int
    """Number of their sublayer."""
    heads: tuple[Head, ...]
    energy: float
    """Energy of their outputs in the student's stream."""


def _heads(
    student: Roles, sublayer: Sublayer, surveys: Sequence[Survey], stream: Tensor
) -> Encoding:
    columns, inputs = _empty(sublayer, surveys)
    is_set = torch.zeros(sum(sublayer.widths), dtype=torch.bool)
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
        for head, source_head in zip(heads, source.heads, strict=False):
            matrix[head.queries[:, None], source_head.queries] = _product(
                head, source_head, survey
            )[0]
            is_set[head.queries] = True
            back[source_head.outputs[:, None], head.outputs] = decode
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


def _values(
    head: Head, source_head: Head, survey: Survey, written: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the student's values as a map of the teacher's, and the way back."""
    size, width = len(head.values), len(source_head.values)
    if size >= width:
        encode = torch.eye(size, width, dtype=torch.float64)
        return encode, encode.mT
    moment = survey.inputs[source_head.outputs][:, source_head.outputs]
    root, inverse = _roots(moment)
    _, _, directions = torch.linalg.svd(written[:, source_head.outputs] @ root, full_matrices=False)
    leading = directions[:size]
    scale = moment.diagonal().mean().sqrt()
    return scale * leading @ inverse, root @ leading.mT / scale


def _product(head: Head, source_head: Head, survey: Survey) -> tuple[Tensor, Tensor]:
    """Return the student's queries and keys as maps of the teacher's."""
    size, width = len(head.queries), len(source_head.queries)
    # The factor of the product belongs half to either side.
    factor = (source_head.scale / head.scale) ** 0.5
    queries = torch.zeros(size, width, dtype=torch.float64)
    keys = torch.zeros(size, width, dtype=torch.float64)
    rotary, groups = _pairs(head), defaultdict[int, list[tuple[int, int]]](list)
    source_rotary = _pairs(source_head)
    for number, pair in enumerate(source_rotary if rotary else ()):
        groups[_nearest(number, len(source_rotary), len(rotary))].append(pair)
    for number, group in groups.items():
        rows, source_columns = torch.tensor(rotary[number]), torch.tensor(group).mT
        for matrix, turned in zip(
            (queries, keys), _turned(source_head, survey, source_columns), strict=True
        ):
            matrix[rows[:, None, None], source_columns] = factor * turned
    plain_columns = torch.arange(head.num_rotary, size)
    source_columns = torch.arange(source_head.num_rotary, width)
    if len(plain_columns) and len(source_columns):
        if len(plain_columns) >= len(source_columns):
            unit = factor * torch.eye(len(plain_columns), len(source_columns), dtype=torch.float64)
            queries[plain_columns[:, None], source_columns] = unit
            keys[plain_columns[:, None], source_columns] = unit
        else:
            query_map, key_map = _low_rank(
                _covariance(survey, source_head.queries[source_columns], is_centered=False),
                _covariance(survey, source_head.keys[source_columns], is_centered=True),
                len(plain_columns),
            )
            queries[plain_columns[:, None], source_columns] = factor * query_map
            keys[plain_columns[:, None], source_columns] = factor * key_map
    return queries, keys


def _turned(source_head: Head, survey: Survey, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps of several pairs of columns of queries and keys to one pair.

    A pair (x, y) is the complex number x + iy, which a rotation multiplies. So a map that commutes
    with rotations is linear in complex numbers, and the best product of rank one is that of a
    singular value decomposition. The pairs are taken to turn alike.

    Args:
        source_head: The teacher's head.
        survey: Moments of its columns.
        pairs: First and second columns of the pairs.

    Returns:
        Maps with the axes: column of the pair, column of the source's pair, pair.
    """
    if pairs.shape[1] == 1:
        # As they are, without a rotation of either.
        unit = torch.eye(2, dtype=torch.float64)[:, :, None]
        return unit, unit
    query_map, key_map = _low_rank(
        _complex_moment(survey, source_head.queries[pairs]),
        _complex_moment(survey, source_head.keys[pairs]),
        1,
    )
    return _as_real(query_map[0]), _as_real(key_map[0])


def _complex_moment(survey: Survey, pairs: Tensor) -> Tensor:
    """Return the sum of z z* over rows, for pairs of columns z = x + iy."""
    both = pairs.flatten()
    rows = survey.columns[both][:, both].chunk(2)
    (first, mixed), (_, second) = (row.chunk(2, dim=1) for row in rows)
    return torch.complex(first + second, mixed.mT - mixed)


def _as_real(factors: Tensor) -> Tensor:
    """Return complex factors as products of pairs of numbers."""
    real, imaginary = factors.real, factors.imag
    return torch.stack(
        [torch.stack([real, -imaginary]), torch.stack([imaginary, real])],
    )


def _nearest(number: int, count: int, target_count: int) -> int:
    """Return the pair of as many as `target_count` whose frequency is nearest, the higher of two.

    Args:
        number: Number of a pair, from the highest frequency.
        count: Number of pairs of its head.
        target_count: Number of pairs of the other head.
    """
    # Frequencies of both fall in equal ratios over one range.
    nearest = -(-(2 * number * target_count - count) // (2 * count))
    return min(nearest, target_count - 1)


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
    query_directions, sizes, key_directions = torch.linalg.svd(root_q @ root_k)
    root = sizes[:rank].sqrt()[:, None]
    return root * (query_directions[:, :rank].mH @ inverse_q), root * (
        key_directions[:rank] @ inverse_k
    )


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square root of a moment and its inverse."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(1e-8 * values.max().clamp_min(1e-30))
    root = values.sqrt()
    return vectors * root @ vectors.mH, vectors / root @ vectors.mH
