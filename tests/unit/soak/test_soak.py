"""The soak trials themselves: would they notice a loss, and are they the same every time?"""

import json
from pathlib import Path

import pytest

from curricle.errors import SpecError
from curricle.seeding import numpy_generator
from tests.soak.contents import contents, differences
from tests.soak.damage import Damage, apply_damage, draw_damage
from tests.soak.flips import Forward, _judged
from tests.soak.fuzz import _judged_sentence
from tests.soak.mutations import finished_text, mutated_bytes, mutated_tree
from tests.soak.processes import Ending
from tests.soak.trials import Plan, Result, read_results, run_trials

READER = Forward(arguments=("resume", "run"), results=("run/model.safetensors",))
REFERENCE = (Ending(code=0, text="done"), {"run/model.safetensors": "1"})
DAMAGED = "run/checkpoints/step-000000008/state.json"


def record(seconds: float, loss: float) -> str:
    data = {"kind": "step", "loss": loss, "usage": {"seconds": seconds}, "check": str(seconds)}
    return json.dumps(data) + "\n"


def test_records_that_differ_in_seconds_alone_are_equal(tmp_path: Path) -> None:
    for name, seconds, loss in (("a", 1.0, 0.5), ("b", 2.0, 0.5), ("c", 1.0, 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.jsonl").write_text(record(seconds, loss))
    first, second, third = (contents(tmp_path / name) for name in "abc")
    assert not differences(second, first)
    assert differences(third, first) == {"different": ["records.jsonl"]}


def test_a_lost_file_and_a_left_one_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = contents(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / ".model.tmp")
    found = differences(contents(tmp_path), before)
    assert found == {"lost": ["model.safetensors"], "leftover": [".model.tmp"]}


@pytest.mark.parametrize(
    ("ending", "weights", "outcome"),
    [
        (Ending(code=0, text="done"), "1", "unread"),
        (Ending(code=0, text="done"), "2", "unnoticed"),
        (Ending(code=0, text="1 of 2 runs incomplete"), "2", "flagged"),
        (Ending(code=2, text=f"curricle: '{DAMAGED}' is damaged"), "1", "refused"),
        (Ending(code=2, text="curricle: 'run' is damaged"), "1", "vague"),
        (Ending(code=2, text=f"curricle: '{DAMAGED}'\ncurricle: again"), "1", "unclean"),
        (Ending(code=1, text="Traceback ...\nKeyError: 'steps'"), "1", "unclean"),
        (Ending(code=-9, text=""), "1", "unclean"),
        (Ending(code=-1, text=""), "1", "hang"),
    ],
)
def test_a_reader_of_a_damaged_file_is_judged_by_its_result(
    ending: Ending, weights: str, outcome: str
) -> None:
    found = (ending, {"run/model.safetensors": weights})
    assert _judged(READER, found, REFERENCE, DAMAGED) == outcome


def test_who_promises_to_read_everything_may_not_accept_damage() -> None:
    verify = Forward(arguments=("targets", "verify", "targets"), reads_all=True)
    assert _judged(verify, REFERENCE, REFERENCE, "targets/manifest.json") == "unnoticed"


@pytest.mark.parametrize(
    ("sentence", "outcome"),
    [
        ("'a' must be b; got 'c'", "refused"),
        # The error itself writes hidden characters as escapes.
        ("'a' must be b; got '\x1b[31m'", "refused"),
        ("'a' must be b; got '\ud800'", "refused"),
        ("'a' must be b; got '\u00ad'", "unprintable"),
        ("", "unprintable"),
    ],
)
def test_a_sentence_must_be_one_that_a_terminal_can_show(sentence: str, outcome: str) -> None:
    assert _judged_sentence(SpecError(sentence))[0] == outcome


@pytest.mark.parametrize("kind", ["bit", "end", "swap"])
def test_damage_changes_the_file_and_no_other(tmp_path: Path, kind: str) -> None:
    for name, content in (("ours", b"12345678"), ("other", b"87654321")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(content)
        (tmp_path / name / "b").write_bytes(content)
    damage = Damage(file="a", kind=kind, place=3, bit=2)
    apply_damage(damage, tmp_path / "ours", tmp_path / "other")
    expected = {"bit": b"1230" + b"5678", "end": b"123", "swap": b"87654321"}
    assert (tmp_path / "ours" / "a").read_bytes() == expected[kind]
    assert (tmp_path / "ours" / "b").read_bytes() == b"12345678"


def test_damage_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(100))
    drawn = [
        draw_damage(numpy_generator(0, "soak", number), tmp_path, tmp_path)
        for number in (*range(30), *range(30))
    ]
    assert drawn[:30] == drawn[30:]
    assert len({(damage.file, damage.place, damage.bit) for damage in drawn}) > 20


def test_mutations_are_a_function_of_the_generator_and_leave_their_source() -> None:
    data = {"kind": "sgd", "rates": [0.1, 0.2], "schedule": {"warmup": 0.1}}
    before = json.dumps(data)

    def mutated(number: int) -> bytes:
        generator = numpy_generator(0, "soak", number)
        tree = mutated_tree(data, generator, is_yaml=True)
        text = finished_text(json.dumps(tree), is_yaml=True)
        return mutated_bytes(text.encode("utf-8", "surrogatepass"), generator)

    first = [mutated(number) for number in range(100)]
    assert first == [mutated(number) for number in range(100)]
    assert len(set(first)) > 80
    assert json.dumps(data) == before


def test_a_series_goes_on_after_the_results_that_are_there(tmp_path: Path) -> None:
    path, run = tmp_path / "results.jsonl", list[int]()

    def trial(number: int) -> Result:
        run.append(number)
        return Result(seed=0, trial=number, group="g", outcome="equal", weight=number % 2)

    run_trials(trial, Plan(seed=0, count=1), path, lambda result: None)
    with path.open("a") as file:
        file.write('{"seed": 0, "tri')
    assert run == [0, 1]
    results = run_trials(trial, Plan(seed=0, count=2), path, lambda result: None)
    assert run == [0, 1, 2, 3]
    assert [result.trial for result in results] == [0, 1, 2, 3]
    assert read_results(path) == results
