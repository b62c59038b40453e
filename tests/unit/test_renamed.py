"""Sentences about names that have changed, in every place where names are typed."""

import pytest

import curricle
from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import build
from curricle.errors import SpecError, near_names
from curricle.renamed import RENAMED, name_hint
from curricle.values import checked, override, parse, value


@value
class Layers:
    """A value with a field that had another name."""

    layer_fraction: float = 0.5


@checked
def layers(*, layer_fraction: float = 0.5) -> float:
    """Return the argument."""
    return layer_fraction


def test_a_renamed_name_is_answered_where_its_new_name_is_available() -> None:
    assert name_hint("share", ["total", "layer_fraction"]) == "it is now named 'layer_fraction'"


@pytest.mark.parametrize("name", ["share", "totl"])
def test_elsewhere_near_names_are_the_answer(name: str) -> None:
    assert name_hint(name, ["total"]) == near_names(name, ["total"])


def test_no_new_name_is_a_former_one() -> None:
    assert not RENAMED.keys() & set(RENAMED.values())


def test_fields_name_their_new_name() -> None:
    message = r"'Layers': 'share' is not a field; it is now named 'layer_fraction'$"
    with pytest.raises(SpecError, match=message):
        Layers(share=0.2)  # type: ignore[call-arg]
    with pytest.raises(SpecError, match=r"^'share' is not a field; it is now named"):
        parse(Layers, override({}, ["share=0.2"]))


def test_arguments_name_their_new_name() -> None:
    with pytest.raises(SpecError, match=r"^'share' is not an argument; it is now named"):
        layers(share=0.2)  # type: ignore[call-arg]


@pytest.mark.parametrize(("old", "new"), [("share", "layer_fraction"), ("last", "final_objective")])
def test_arguments_of_strategies_name_their_new_name(old: str, new: str) -> None:
    message = rf"^'{old}' is not an argument of extraction; it is now named '{new}'$"
    with pytest.raises(SpecError, match=message):
        build({"kind": "extraction", old: 0.2}, total=Duration(number=9), trajectory=None)


@pytest.mark.parametrize(
    ("old", "new"), [("FitLabels", "LabelLoss"), ("uniform", "evenly_spaced_pairs")]
)
def test_public_names_name_their_new_name(old: str, new: str) -> None:
    message = rf"^module 'curricle' has no attribute '{old}'; it is now named '{new}'$"
    with pytest.raises(AttributeError, match=message):
        getattr(curricle, old)
    assert new in dir(curricle)
