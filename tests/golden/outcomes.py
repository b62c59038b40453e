"""Outcomes of runs as digests and numbers, and the comparison of two outcomes.

| digest | of |
|---|---|
| `weights` | names, types, shapes and bytes of all parameters and buffers, in order of names |
| `records` | all fields of all records but times, versions, device and notes |
| `notes` | the notes of the opening records, sentences that may be reworded on purpose |
| `files` | names and bytes of files: checkpoints, trajectories, stored targets |

Digests are equal bit by bit where the same kernels compute, see `Machine`. The numbers (losses and
metrics) are compared within a tolerance on every machine.
"""

import hashlib
import json
import math
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curricle.records import EndRecord, EvaluationRecord, Record, RunRecord, StepRecord
from curricle.values import plain

Numbers = dict[str, list[float]]
DIGESTS = ("weights", "records", "notes", "files")
DIGITS = 9
"""Significant digits of stored numbers; digests cover the others."""
ACCURACY = 0.1
"""Difference allowed in an accuracy, which jumps when two logits are nearly equal: 3 of 32
examples may fall on the other side."""
TOLERANCES = {"float32": (1e-3, 1e-4), "bfloat16": (5e-2, 1e-2)}
"""Relative and absolute difference allowed in other numbers. A float32 kernel that sums in another
order differs by about 1e-7 of the result, and a dozen steps multiply that. Kernels without vector
instructions (ATEN_CPU_CAPABILITY=default) moved no number of these cases by more than 7e-5; 1e-3
leaves room for other processors and still shows a lost step or term. A bfloat16 number has 8 bits,
so that each rounding may differ by 4e-3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """Trained modules, records and files of the runs of a case."""

    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """Trained students by name."""
    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    """Records by name of the run."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files by name, with contents that depend on nothing but the run."""
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Further numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Digests and numbers of a case."""

    weights: str
    records: str
    notes: str
    files: str
    numbers: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Fingerprint of the hardware and packages under which digests are equal bit by bit."""

    processor: str
    """Model name of the processor, with its family and model number."""
    capability: str
    """Vector instructions that torch uses."""
    torch: str
    transformers: str
    tokenizers: str
    compiler: str
    """First line of the version of the C++ compiler; empty without a compiler."""

    @classmethod
    def current(cls) -> "Machine":
        """Return the fingerprint of this machine."""
        return cls(
            processor=_processor(),
            capability=torch.backends.cpu.get_cpu_capability(),
            torch=torch.__version__,
            transformers=version("transformers"),
            tokenizers=version("tokenizers"),
            compiler=_compiler(),
        )

    def computes_as(self, machine: "Machine", *, is_compiled: bool) -> bool:
        """Return whether digests of two machines are comparable.

        Args:
            machine: The machine to compare with.
            is_compiled: Whether the case compiles its steps, so that the compiler counts.
        """
        ignored = {} if is_compiled else {"compiler": ""}
        return asdict(self) | ignored == asdict(machine) | ignored


def outcome_of(performance: Performance) -> Outcome:
    """Return the outcome of a case that was run."""
    records = performance.records.items()
    numbers: Numbers = {name: [*values] for name, values in performance.numbers.items()}
    for run, run_records in records:
        for name, number in _numbers(run_records):
            numbers.setdefault(f"{run} {name}".strip(), []).append(number)
    notes = {
        run: [list(record.notes) for record in run_records if isinstance(record, RunRecord)]
        for run, run_records in records
    }
    return Outcome(
        weights=_digest_modules(performance.modules),
        records=_digest_plain(
            {run: [*map(_plain_record, run_records)] for run, run_records in records}
        ),
        notes=_digest_plain(notes),
        files=_digest_files(performance.files),
        numbers={
            name: [float(f"{number:.{DIGITS}g}") for number in values]
            for name, values in numbers.items()
        },
    )


def differences(
    recorded: Outcome, present: Outcome, *, precision: str, compares_digests: bool
) -> list[str]:
    """Return the differences of two outcomes, a phrase for each; none if they agree.

    Args:
        recorded: The stored outcome.
        present: The outcome of this run.
        precision: Key of `TOLERANCES`.
        compares_digests: Whether both come from the same kind of machine.

    Raises:
        ValueError: If an outcome has no numbers, so that nothing would be compared.
    """
    for outcome in (recorded, present):
        if not any(outcome.numbers.values()):
            raise ValueError("an outcome must hold numbers to compare; got none")
    phrases = list(_number_differences(recorded.numbers, present.numbers, precision))
    if compares_digests:
        phrases += [
            f"{name}: digest {getattr(recorded, name)[:12]} became {getattr(present, name)[:12]}"
            for name in DIGESTS
            if getattr(recorded, name) != getattr(present, name)
        ]
    return phrases


def read_outcomes(path: Path) -> tuple[Machine, dict[str, Outcome]]:
    """Return the machine and the outcomes by case that a file holds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cases = {name: Outcome(**outcome) for name, outcome in content["cases"].items()}
    return Machine(**content["machine"]), cases


def write_outcomes(path: Path, machine: Machine, cases: Mapping[str, Outcome]) -> None:
    """Write outcomes by case, in order of names and with the numbers of a name on one line."""
    blocks = [f"  {json.dumps(name)}: {_block(cases[name])}" for name in sorted(cases)]
    text = f'{{\n "machine": {json.dumps(asdict(machine))},\n "cases": {{\n'
    path.write_text(text + ",\n".join(blocks) + "\n }\n}\n", encoding="utf-8")


def _block(outcome: Outcome) -> str:
    lines = [f'   "{name}": {json.dumps(getattr(outcome, name))}' for name in DIGESTS]
    numbers = [
        f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in outcome.numbers.items()
    ]
    lines.append('   "numbers": {\n' + ",\n".join(numbers) + "\n   }")
    return "{\n" + ",\n".join(lines) + "\n  }"


def _numbers(records: Iterable[Record]) -> Iterator[tuple[str, float]]:
    for record in records:
        if isinstance(record, StepRecord):
            yield "loss", record.loss
        elif isinstance(record, EvaluationRecord | EndRecord):
            yield from record.metrics.items()


def _number_differences(recorded: Numbers, present: Numbers, precision: str) -> Iterator[str]:
    if recorded.keys() != present.keys():
        yield f"numbers: {sorted(recorded)} became {sorted(present)}"
    relative, absolute = TOLERANCES[precision]
    for name in sorted(recorded.keys() & present.keys()):
        before, after = recorded[name], present[name]
        if len(before) != len(after):
            yield f"{name}: {len(before)} numbers became {len(after)}"
            continue
        allowed = max(absolute, ACCURACY) if name.endswith("accuracy") else absolute
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            if not math.isclose(old, new, rel_tol=relative, abs_tol=allowed):
                yield f"{name}[{place}]: {old} became {new}"
                break


def _plain_record(record: Record) -> dict[str, Any]:
    fields: dict[str, Any] = plain(record)
    for name in ("versions", "device", "notes"):
        fields.pop(name, None)
    fields.get("usage", {}).pop("seconds", None)
    return fields


def _digest_plain(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_modules(modules: Mapping[str, nn.Module]) -> str:
    digest = hashlib.sha256()
    for name in sorted(modules):
        for path, tensor in sorted(_tensors(modules[name]), key=itemgetter(0)):
            digest.update(f"{name}/{path} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if modules else ""


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _digest_files(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest() if files else ""


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor() or platform.machine()
    # Processors of several generations may share a name, on virtual machines above all.
    facts: dict[str, str] = {}
    for line in information.read_text(encoding="utf-8").splitlines():
        name, _, fact = line.partition(":")
        facts.setdefault(name.strip(), fact.strip())
    details = [f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    return ", ".join([facts.get("model name", platform.machine()), *details])


@cache
def _compiler() -> str:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return ""
    printed = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return printed.stdout.partition("\n")[0]
