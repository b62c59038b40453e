"""Methods that `curricle reproduce methods` compares, a line each.

A method is a name, its paper, a strategy of run specs as a function of the layers of a task, and
the reasons why it does not suit some tasks. Rates and lengths are those of the task, so that no
method is favored: layer stages have the same share of the steps in all methods that have some.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, final

from curricle.values import Plain

Trait = Literal["mlp", "cnn", "image to vector", "few tokens"]
"""Kind of models or data that some methods do not suit: two fully connected networks, two
convolutional networks, a convolutional teacher of a fully connected student, or a vocabulary of
fewer tokens than the student has dimensions."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Layer pairs of a task and the length of their stages."""

    pairs: tuple[Mapping[str, object], ...]
    """Layer pairs as specs write them, earliest first."""
    share: float
    """Part of the steps for all layer stages together."""
    shared: bool = False
    """Whether all pairs have one projection, as on a residual stream."""

    @property
    def middle(self) -> Mapping[str, object]:
        """Return the single pair of methods that have one, the middle or the first of two."""
        return self.pairs[(len(self.pairs) - 1) // 2]


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One method."""

    name: str
    """Name in the table."""
    source: str
    """Its paper, or `ours`."""
    call: Callable[[Layers], Plain]
    """Strategy of a run spec, `kind` and arguments."""
    unsuited: Mapping[Trait, str] = field(default_factory=dict)
    """Reasons against it by trait of a task."""

    def reason(self, traits: frozenset[Trait]) -> str:
        """Return why it is left out of a task with these traits; empty if it is not."""
        return "; ".join(self.unsuited[trait] for trait in sorted(traits & self.unsuited.keys()))


def _fixed(kind: str, **arguments: object) -> Callable[[Layers], Plain]:
    """Return a strategy that does not depend on the layers."""
    return lambda _: {"kind": kind, **arguments}


def _stages(layers: Layers) -> Plain:
    """Return the arguments of a strategy with layer stages."""
    return {"pairs": [dict(pair) for pair in layers.pairs], "layer_fraction": layers.share}


def _extraction(layers: Layers) -> Plain:
    return {"kind": "extraction", **_stages(layers), "shared_projection": layers.shared}


def _hidden_first(kind: str, **fields: object) -> Callable[[Layers], Plain]:
    """Return all layers at once and then logits, by an objective of layers."""
    return lambda layers: {
        "kind": "hidden_first",
        **_stages(layers),
        "layer_objective": {"kind": kind, **fields},
    }


def _joint(kind: str) -> Callable[[Layers], Plain]:
    """Return all layers and logits together, by an objective of layers."""
    return lambda layers: {
        "kind": "joint",
        "pairs": _stages(layers)["pairs"],
        "layer_objective": {"kind": kind},
    }


def _fitnets(layers: Layers) -> Plain:
    return {
        "kind": "extraction",
        "pairs": [dict(layers.middle)],
        "layer_fraction": layers.share,
        "projection": {"kind": "learned"},
    }


HINTON: Plain = {"kind": "logits", "teacher_temperature": 2.0, "student_temperature": 2.0,
                 "scale": "temperature_squared"}  # fmt: skip
"""Objective of the original distillation, whose gradients keep their size."""
SELECTION: Plain = {"kind": "selection"}
"""Projection to the channels with most energy."""
GRADIENTS: Plain = {"kind": "selection", "by": "gradients"}
"""Projection to the channels on which the teacher's predictions depend most."""
CTKD: Plain = {"kind": "learned_temperature"}
NO_EMBEDDING: Mapping[Trait, str] = dict.fromkeys(
    ("cnn", "image to vector"), "the start sets token tables, or the first map of two MLPs"
)
NO_TABLE: Mapping[Trait, str] = {
    **NO_EMBEDDING,
    "few tokens": "the token table has fewer components than the student has dimensions",
}
NO_POSITIONS: Mapping[Trait, str] = dict.fromkeys(
    ("mlp", "image to vector"), "the states have no positions to relate"
)
NO_GRADIENTS: Mapping[Trait, str] = dict.fromkeys(
    ("cnn", "image to vector"), "a tap of a convolution is a copy, which no output depends on"
)
NO_CLONE: Mapping[Trait, str] = {
    "cnn": "weights are projected in linear maps alone",
    "image to vector": "weights are projected between equal architectures",
}
NO_BLOCK: Mapping[Trait, str] = dict.fromkeys(
    ("mlp", "cnn", "image to vector"), "the start fits blocks whose states have positions"
)

METHODS: tuple[Method, ...] = (
    Method("labels", "no teacher", _fixed("from_labels")),
    Method("one_shot", "1503.02531, temperature 1", _fixed("one_shot")),
    Method("hinton", "1503.02531", _fixed("one_shot", objective=HINTON, label_weight=0.5)),
    Method("ctkd", "2211.16231", _fixed("one_shot", objective=CTKD)),
    Method("progressive", "2410.05464", _fixed("progressive")),
    Method("two_shot", "2410.05464", _fixed("progressive", select="transition")),
    Method("extraction", "2503.17494", _extraction),
    Method("fitnets", "1412.6550", _fitnets),
    Method("hidden_first", "2605.11513, HLDF", _hidden_first("hidden")),
    Method("joint", "2605.11513, HLDC", _joint("hidden")),
    Method("channels", "2605.29327", _hidden_first("hidden", projection=SELECTION)),
    Method("flex_kd", "2507.10155", _hidden_first("hidden", projection=GRADIENTS), NO_GRADIENTS),
    Method("minilm", "2012.15828", _hidden_first("relations"), NO_POSITIONS),
    Method("cka", "2503.21047", _hidden_first("cka")),
    Method("procrustes", "1610.05256", _hidden_first("procrustes")),
    Method("low_rank_clone", "2505.12781", _fixed("low_rank_clone"), NO_CLONE),
    Method("principal", "ours", _fixed("one_shot", init="principal"), NO_TABLE),
    Method("selection", "2605.29327", _fixed("one_shot", init="selection"), NO_EMBEDDING),
    Method("guide", "2510.06502", _fixed("one_shot", init="guide"), NO_BLOCK),
    Method("least_squares", "ours", _fixed("one_shot", init="least_squares")),
    Method("auto", "ours", _fixed("auto")),
)
"""The methods in the order of the table."""
