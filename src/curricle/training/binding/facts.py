"""Facts that determine the result of a run, as plain data and as one digest.

A run goes on only as the run that it was. The digest decides, and the facts from which it is made
are kept beside the records, so that a refusal can name the changes.

Settings that change speed or logging are no facts; the interval between evaluations
is one only where a metric may end a stage.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from curricle.checksums import read_sealed, write_sealed
from curricle.curriculum.durations import UntilMetric
from curricle.errors import reason
from curricle.models.peft_adapters import tuner_settings
from curricle.models.tapped import TappedModel, tap_number
from curricle.models.weights import architecture
from curricle.objectives.hidden import MatchHidden
from curricle.renamed import RENAMED
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.values import Plain, changes, fingerprint, plain

FACTS = "run-facts.json"
"""File in the run folder that holds the facts."""
MOST_CHANGES = 3
"""Changes that are named; a run with more is another run altogether."""
DIGESTS: Mapping[str, str] = {
    "student": "the student has another architecture",
    "student_frozen": "other weights of the student are frozen",
    "student_adapters": "other adapters of the student are active, or with other factors",
    "teacher": "the teacher has other weights or adapters",
    "data": "the data differ",
    "batch": "the batch of step 0 has other numbers",
    "held_out": "held-out data differ",
}
"""Sentences about facts that are digests, which people cannot read."""


def run_facts(run: BoundRun) -> Plain:
    """Return everything on which the result of a run depends, as plain data with stable keys."""
    # Nothing is added for a run without a start, so that its digest is that of versions without
    # starts.
    start = [] if run.warm_start is None else [plain(run.warm_start.declared)]
    return {
        "curriculum": [*start, *(plain(stage.declared) for stage in run.stages)],
        # Left out for curricula that drop them, as those of earlier versions.
        **({} if run.saved == "drop" else {"saved": run.saved}),
        "optimizer": plain(run.optimizer),
        # Keys and values stay as they are if settings are renamed; 0 means no clipping. Any change
        # alters the digest, by which an unfinished run resumes.
        "settings": {
            "precisions": list(run.settings.precisions),
            "accumulation": run.settings.gradient_accumulation_steps,
            "clip_norm": run.settings.max_grad_norm or 0,
            **_rule_settings(run),
        },
        **_moved_pairs(run),
        "data": run.stream.fingerprint,
        "student": architecture(run.student.module),
        **_student_settings(run.student.module),
        "teacher": _teacher_digest(run),
        "seed": run.seed,
    }


def _rule_settings(run: BoundRun) -> dict[str, int]:
    """Return the interval at which metrics are evaluated if one may end a stage."""
    # Without such a rule the interval only decides when numbers are written, so a resumed run may
    # change it.
    has_metric = any(isinstance(stage.span.rule, UntilMetric) for stage in run.stages)
    return {"eval_every": run.settings.eval_every} if has_metric else {}


def _moved_pairs(run: BoundRun) -> dict[str, list[int]]:
    """Return the teacher's taps of pairs at one depth that earlier versions rounded otherwise."""
    # Only these, so that all other runs keep the digests that they had: a run that was begun with
    # another tap of the teacher must not go on with this one.
    teacher = run.teacher
    if teacher is None:
        return {}
    model: TappedModel = teacher.model
    pairs = [
        objective.pair
        for stage in run.stages
        for objective in stage.declared.objectives
        if isinstance(objective, MatchHidden)
    ]
    taps = [
        (pair.teacher_tap(run.student, model), tap_number(pair.teacher, model.depth))
        for pair in pairs
        if isinstance(pair.teacher, float) and model.depth
    ]
    is_moved = any(tap != earlier for tap, earlier in taps if isinstance(tap, int))
    return {"pairs": [int(tap) for tap, _ in taps if isinstance(tap, int)]} if is_moved else {}


def _student_settings(module: nn.Module) -> dict[str, str]:
    """Return digests of frozen parameters and active adapters, where there are any."""
    frozen = sorted(name for name, item in module.named_parameters() if not item.requires_grad)
    settings = {"student_frozen": frozen, "student_adapters": tuner_settings(module)}
    # Empty ones are left out: a student without them keeps the digest that it had before they were
    # facts.
    return {name: fingerprint(item) for name, item in settings.items() if item}


def _teacher_digest(run: BoundRun) -> str:
    if isinstance(run.teacher, StoredTeacher):
        # Only of the targets that are read, since others may be captured into the folder meanwhile.
        return run.teacher.fingerprint(term.stored for stage in run.stages for term in stage.terms)
    # A teacher that no stage reads has no effect, and to hash its weights takes time.
    if run.teacher is None or not run.teachers:
        return "none"
    return run.teacher.digest


def write_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Keep the facts of a run that begins in its folder."""
    # For people alone: the digest in the records decides, so a folder without this file resumes.
    write_sealed(folder / FACTS, facts)


def differences(folder: Path, facts: Mapping[str, object]) -> str:
    """Return in words the changes since a folder's run began; empty if unknown.

    Args:
        folder: The run folder.
        facts: Those of the run that would go on.
    """
    try:
        then = read_sealed(folder / FACTS, needs_check=False)
    except FileNotFoundError:
        # A folder of an older version: the digests still differ.
        return ""
    except (OSError, ValueError) as error:
        return f"{str(folder / FACTS)!r} cannot name the change: {reason(error)}"
    return "; ".join(changed_facts(then, facts))


def changed_facts(
    then: Mapping[str, object],
    now: Mapping[str, object],
    words: str = "{path} was {then} and is {now}",
) -> list[str]:
    """Return the changes of facts in words, at most `MOST_CHANGES` of them.

    Args:
        then: Facts of a run.
        now: Facts that should be the same.
        words: Sentence on a change of a fact that is no digest; see `changes`.
    """
    # Digests first: what a person cannot look up in a spec must not be cut off by the limit.
    changed = [name for name in DIGESTS if then.get(name) != now.get(name)]
    sentences = [DIGESTS[name] for name in changed]
    sentences += changes(_legible(then), _legible(now), words=words)
    more = len(sentences) - MOST_CHANGES
    return sentences if more <= 0 else [*sentences[:MOST_CHANGES], f"and {more} more"]


def _legible(facts: Mapping[str, object]) -> Plain:
    """Return the facts that are no digests, with the settings under their present names."""
    legible = {name: fact for name, fact in facts.items() if name not in DIGESTS}
    # Keys of facts stay for ever, since they enter the digest by which a run is resumed.
    settings = legible.get("settings")
    if isinstance(settings, dict):
        legible["settings"] = {RENAMED.get(name, name): fact for name, fact in settings.items()}
    return legible
