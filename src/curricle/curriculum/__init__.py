"""Durations, stages and the strategies that return curricula."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.curriculum.automatic import auto as auto
    from curricle.curriculum.durations import Duration as Duration
    from curricle.curriculum.durations import UnlessExplained as UnlessExplained
    from curricle.curriculum.durations import UntilMetric as UntilMetric
    from curricle.curriculum.durations import UntilPlateau as UntilPlateau
    from curricle.curriculum.hidden_layers import hidden_first as hidden_first
    from curricle.curriculum.hidden_layers import joint as joint
    from curricle.curriculum.initialization import AutoStart as AutoStart
    from curricle.curriculum.initialization import LeastSquaresStart as LeastSquaresStart
    from curricle.curriculum.initialization import PrincipalStart as PrincipalStart
    from curricle.curriculum.initialization import RandomStart as RandomStart
    from curricle.curriculum.initialization import SelectionStart as SelectionStart
    from curricle.curriculum.layer_pairs import evenly_spaced_pairs as evenly_spaced_pairs
    from curricle.curriculum.loss_transitions import Transition as Transition
    from curricle.curriculum.loss_transitions import find_transition as find_transition
    from curricle.curriculum.stages import Curriculum as Curriculum
    from curricle.curriculum.stages import PricedLabels as PricedLabels
    from curricle.curriculum.stages import Stage as Stage
    from curricle.curriculum.strategies import extraction as extraction
    from curricle.curriculum.strategies import from_labels as from_labels
    from curricle.curriculum.strategies import low_rank_clone as low_rank_clone
    from curricle.curriculum.strategies import one_shot as one_shot
    from curricle.curriculum.strategies import progressive as progressive
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "automatic": ("auto",),
            "durations": ("Duration", "UnlessExplained", "UntilMetric", "UntilPlateau"),
            "hidden_layers": ("hidden_first", "joint"),
            "layer_pairs": ("evenly_spaced_pairs",),
            "initialization": (
                "AutoStart",
                "LeastSquaresStart",
                "PrincipalStart",
                "RandomStart",
                "SelectionStart",
            ),
            "stages": ("Curriculum", "PricedLabels", "Stage"),
            "strategies": (
                "extraction",
                "from_labels",
                "low_rank_clone",
                "one_shot",
                "progressive",
            ),
            "loss_transitions": ("Transition", "find_transition"),
        },
    )
