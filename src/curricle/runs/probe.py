"""Probes of the networks in a run folder.

The teacher is looked at at every checkpoint of its training and each finished student once, on
held-out data that are the same for all:

- `correlations` (parity): the output against monomials of the input bits;
- `ngrams` (masked tokens): how much predictions lean on the nearest tokens;
- `ranks` (all): the effective rank of the hidden states of each tap, for students beside those of
  the finished teacher and of the projected targets of their stages;
- `similarity` (all): the CKA of every student tap with every tap of the finished teacher.

Two more are themselves trained for every network, which takes longer, so they are optional:

- `linear` (parity, grammars): how well the task's labels can be read off each tap;
- `nonterminals` (grammars): how well the symbols above each token, level by level, can be read off
  the last tap.

Measurements go to `probes.jsonl` in the folder; tables and figures are made from that alone.

Design: nothing that the run has written is changed, and probing again gives the same numbers. The
labels of a text are left out of `linear`: its vocabulary has about as many entries as there are
places to read.

Source:
    Panigrahi et al. 2024 (arXiv 2410.05464) for the probe of nonterminals, which learns from 10,240
    sequences in 4 epochs with 16 heads and is judged by 4,096. Deviations: 640 and 256 by default,
    16 epochs in batches of 32, and 4 heads, so that small networks take seconds; strings are shown
    whole; the start symbol, which is above every token, is left out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

from curricle.data.batch import Batch
from curricle.data.synthetic.grammars import Grammar
from curricle.data.synthetic.pcfg import labeled_strings
from curricle.errors import BindError, SpecError, near_names
from curricle.models.tapped import TappedModel
from curricle.probes.correlations import output_correlations
from curricle.probes.forward_passes import Probe
from curricle.probes.ngrams import POSITIONS, ngram_reliance
from curricle.probes.nonterminals import NonterminalProbe, nonterminal_probe
from curricle.probes.ranks import Term, student_ranks, tap_ranks
from curricle.probes.representations import linear_probe, tap_similarity
from curricle.records import PROBES, ProbeRecord, write_probes
from curricle.runs.folder import TEACHER, end_of, read_origin, stored_spec
from curricle.runs.spec import RunSpec
from curricle.runs.train import (
    StudentRun,
    finished_student,
    finished_teacher,
    planned_student,
    single_run,
    student_runs,
)
from curricle.task_data import EVALUATION_SEED, TaskData
from curricle.tasks import PairedTextTask, ParityTask, PcfgTask, Task
from curricle.teachers.live import LiveTeacher
from curricle.training.setup.placement import place_model

FINAL: Final = 0
"""Step of a pretrained teacher without checkpoints."""
EXAMPLES: Final = MappingProxyType({"signs": 100_000, "tokens": 16_384, "sequences": 256})
"""Held-out examples by default: parity as in the paper, parity as tokens, and language."""
MOST_PLACES: Final = 16_384
"""Places at which taps are compared or labels read off them; more change no digit shown."""
LEARNED_FROM: Final = 2.5
"""Strings that a probe learns from for each held-out one."""
NONTERMINALS: Final = NonterminalProbe(num_heads=4, batch_size=32, epochs=16)
"""The paper's probe with a quarter of its heads, and more steps for the fewer strings."""

Watcher = Callable[[str], None]
"""Receives every network before it is measured."""


@final
@dataclass(frozen=True, slots=True)
class _Look:
    """A probe and its input."""

    probe: Probe
    batch: Batch


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """A network in the state in which it is looked at."""

    name: str
    seed: int
    step: int
    model: TappedModel
    run: StudentRun | None = None
    """Its run; None for the teacher."""

    @property
    def is_teacher(self) -> bool:
        """Return whether it is the teacher at a checkpoint."""
        return self.run is None

    def __str__(self) -> str:
        """Return its name for people."""
        seed = "" if self.is_teacher else f" seed {self.seed}"
        return f"{self.name}{seed} after {self.step} steps"


def probe_run(
    folder: Path,
    *,
    examples: int | None,
    watch: Watcher,
    trains_probes: bool = False,
    only: Sequence[str] = (),
) -> list[ProbeRecord]:
    """Return measurements of the probes that fit a run's task, after writing them to its folder.

    Args:
        folder: Run folder of `teach`, `distill` or `compare`; students that are not finished are
            left out.
        examples: Held-out examples that are read; None takes the default of the task.
        watch: Receives every network.
        trains_probes: Whether probes that are trained themselves look as well.
        only: Names of the probes to use; empty means all that fit the task.

    Raises:
        SpecError: If a name in `only` is none of these.
        BindError: If `only` names probes of students and there is none, or the models read the
            tokens of two tokenizers.
    """
    command, spec = read_origin(folder).command, stored_spec(folder)
    if isinstance(spec.task, PairedTextTask):
        raise BindError(
            "'task' must have one tokenizer for both models to be probed; got 'paired_text'"
        )
    with spec.engine.stated_threads():
        data, batch = _opened(spec, examples)
        teacher = finished_teacher(spec, data)
        looks = _fitting(spec, data, batch)
        if trains_probes:
            looks |= _trained(spec, data, batch)
        few = _shortened(batch, math.prod(batch.positions))
        looks["ranks"] = _Look(tap_ranks, few)
        similarity = _Look(partial(tap_similarity, teacher=teacher.model), few)
        _check_names(only, (*looks, "similarity"))
        records: list[ProbeRecord] = []
        for subject in _subjects(spec, command, data, teacher):
            watch(str(subject))
            selected = looks
            if subject.run is not None:
                ranks = partial(
                    student_ranks, teacher=teacher.model, terms=_terms(spec, subject.run)
                )
                selected = looks | {"ranks": _Look(ranks, few), "similarity": similarity}
            records += [
                _record(subject, name, look)
                for name, look in selected.items()
                if not only or name in only
            ]
    if not records:
        raise BindError(
            f"{str(folder)!r} must hold a finished student for the probes {list(only)}; got none"
        )
    write_probes(folder / PROBES, records)
    return records


def _opened(spec: RunSpec, examples: int | None) -> tuple[TaskData, Batch]:
    """Return the task, and one batch of held-out examples that no spec's sizes depend on."""
    task = spec.task
    kind = task.encoding if isinstance(task, ParityTask) else "sequences"
    count = EXAMPLES[kind] if examples is None else examples
    enlarged: Task = (
        replace(task, batch_size=count, evaluation_examples=count)
        if isinstance(task, ParityTask)
        else replace(task, batch_size=count, evaluation_batches=1)
    )
    data = enlarged.open(seed=EVALUATION_SEED, cache_dir=Path(spec.cache_dir))
    return data, data.evaluation[0]


def _fitting(spec: RunSpec, data: TaskData, batch: Batch) -> dict[str, _Look]:
    """Return the probes of single networks that fit the task and need no training."""
    task = spec.task
    if isinstance(task, ParityTask):
        # A tree has a parity for every node, and its labels follow none alone.
        probe = partial(output_correlations, support=range(task.degree))
        return {"correlations": _Look(probe, batch)} if task.depth == 1 else {}
    if data.mask_token is None:
        return {}
    length = batch.leading.shape[1]
    # Texts shorter than the paper's strings are looked at in their middle.
    positions = [position for position in POSITIONS if position < length] or [length // 2]
    probe = partial(
        ngram_reliance,
        mask_token=data.mask_token,
        positions=positions,
        # As in training: a network that never met a gap in its attention is thrown off by one.
        hides_attention=isinstance(task, PcfgTask) and task.masking_quirk,
    )
    return {"ngrams": _Look(probe, batch)}


def _trained(spec: RunSpec, data: TaskData, batch: Batch) -> dict[str, _Look]:
    """Return the probes of single networks that fit the task and are trained.

    Raises:
        BindError: If none does.
    """
    task = spec.task
    if not isinstance(task, ParityTask | PcfgTask):
        raise BindError(
            f"'--train-probes' must be left out but for parity and strings of a grammar; "
            f"got {data.name!r}"
        )
    looks = {"linear": _Look(linear_probe, _shortened(batch, batch.num_selected))}
    if isinstance(task, PcfgTask):
        looks["nonterminals"] = _nonterminals(task.rules, held_out=batch.num_examples)
    return looks


def _nonterminals(grammar: Grammar, *, held_out: int) -> _Look:
    judged, learned = (
        labeled_strings(grammar, number=number, seed=EVALUATION_SEED, purpose=purpose)
        for number, purpose in (
            (held_out, "probe evaluation"),
            (round(LEARNED_FROM * held_out), "probe"),
        )
    )
    probe = partial(
        nonterminal_probe,
        labels=judged.symbols,
        training_batch=learned.batch,
        training_labels=learned.symbols,
        settings=replace(NONTERMINALS, num_positions=judged.symbols.shape[1]),
    )
    return _Look(probe, judged.batch)


def _subjects(
    spec: RunSpec, command: str, data: TaskData, teacher: LiveTeacher
) -> Iterator[_Subject]:
    """Yield every network, the teacher's checkpoints first; while one is used it stays as it is."""
    place_model(spec.engine.placement, teacher.model)
    with teacher.teaching():
        for step in spec.trajectory_steps() or (FINAL,):
            model = teacher.at(step or "final")
            yield _Subject(name=TEACHER, seed=spec.seed, step=step, model=model)
        for run in _students(spec, command):
            end = end_of(run.folder)
            if end is not None:
                model = finished_student(spec, run, data)
                place_model(spec.engine.placement, model)
                steps = end.usage.steps
                yield _Subject(name=run.name, seed=run.seed, step=steps, model=model, run=run)


def _terms(spec: RunSpec, run: StudentRun) -> list[Term]:
    """Return the objectives of a student's stages, as declared and as they were bound.

    Projections are drawn from the seed of the run, so binding again gives those of its training.
    """
    return [
        (declared, term.objective)
        for stage in planned_student(spec, run).stages
        for declared, term in zip(stage.declared.objectives, stage.terms, strict=True)
    ]


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Check the names of probes.

    Raises:
        SpecError: If one is not among the known.
    """
    for name in names:
        if name not in known:
            raise SpecError(
                f"'--only' must name probes that fit the task; got {name!r}; "
                f"{near_names(name, known)}"
            )


def _students(spec: RunSpec, command: str) -> list[StudentRun]:
    if command == "compare":
        return student_runs(spec)
    return [single_run(spec)] if command == "distill" else []


def _shortened(batch: Batch, places: int) -> Batch:
    """Return no more examples than needed, if all together have so many places."""
    return batch.chunks(max(1, MOST_PLACES * batch.num_examples // places))[0]


def _record(subject: _Subject, name: str, look: _Look) -> ProbeRecord:
    return ProbeRecord(
        probe=name,
        model=subject.name,
        is_teacher=subject.is_teacher,
        seed=subject.seed,
        step=subject.step,
        examples=look.batch.num_examples,
        numbers=look.probe(subject.model, look.batch),
    )
