from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import build
from curricle.objectives.hidden import MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle_papers.recipes.method_table import METHODS, Layers, Method
from curricle_papers.recipes.recipe import taps

LAYERS = Layers(pairs=tuple(taps(1, 2, 3)), share=0.3, shared=True)


def built(name: str) -> Curriculum:
    method = next(method for method in METHODS if method.name == name)
    return build(method.call(LAYERS), total=Duration(number=1000), trajectory=(10, 20, 30))


def test_methods_have_names_of_their_own_and_a_source() -> None:
    assert len({method.name for method in METHODS}) == len(METHODS)
    assert all(method.source for method in METHODS)


def test_layer_stages_have_the_share_of_the_task_in_all_methods() -> None:
    for name in ("extraction", "fitnets"):
        layers = [
            stage.duration.at_most.number
            for stage in built(name).stages
            if any(isinstance(term, MatchHidden) for term in stage.objectives)
        ]
        assert sum(layers) == 300


def test_fitnets_has_one_hint_in_the_middle_through_a_learned_map() -> None:
    hint, _ = built("fitnets").stages
    (term,) = hint.objectives
    assert isinstance(term, MatchHidden)
    assert term.projection.kind == "learned"
    assert (term.pair.student, term.pair.teacher) == (2, 2)


def test_the_middle_of_two_pairs_is_the_first() -> None:
    assert Layers(pairs=tuple(taps(1, 3)), share=0.1).middle == {"student": 1, "teacher": 1}


def test_hintons_method_has_labels_beside_softened_logits() -> None:
    (stage,) = built("hinton").stages
    assert {type(term) for term in stage.objectives} >= {LabelLoss}
    assert built("one_shot").stages[0].objectives != stage.objectives


def test_reasons_are_those_of_the_traits_of_a_task() -> None:
    method = Method("m", "ours", lambda _: {"kind": "one_shot"}, {"cnn": "why", "mlp": "because"})
    assert method.reason(frozenset({"cnn"})) == "why"
    assert method.reason(frozenset()) == ""
    assert method.reason(frozenset({"mlp", "cnn"})) == "why; because"
