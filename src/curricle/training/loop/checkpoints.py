"""Checkpoints from which an interrupted run goes on exactly where it stopped.

A checkpoint is a folder: the student's weights and the optimizer's tensors as safetensors, a
`state.json` with the step, the usage and the length of the records, and a `manifest.json` with
size and SHA-256 of each file. Adapters that the objectives of the stage train lie in
files of their own, with their part of the optimizer's state. A checkpoint is written beside its
final name, flushed and renamed. Random numbers need no room: they are functions of seed and step.

A save copies all tensors to host memory, then writes them. The second half can run in a background
thread (`SaveThread`) while the next steps change the weights. Host memory: 12 bytes a parameter for
AdamW in float32, until the files are written. Copies from a GPU take pinned memory, which torch
keeps for the next save, and are waited for once a file.

Design: nothing is read before its hash is checked, and nothing goes into an optimizer with a
shape or type other than that of its own state: fused kernels read past the end of short tensors.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from curricle.checksums import SEAL, check_sealed, folder_seal
from curricle.colocation import beside, processor_kind
from curricle.errors import CheckpointError
from curricle.files import new_folder, remove_folder, remove_leftovers
from curricle.models.shares import is_sharded, share_in_memory, share_of, whole_copies
from curricle.models.weights import host_copies, load_weights, serializing
from curricle.records import Usage
from curricle.training.binding.timeline import Timeline, TimelineState
from curricle.training.loop.best import BestPoint, BestWeights
from curricle.training.loop.recovery import RecoveryState
from curricle.training.loop.save_thread import SaveThread
from curricle.values import parse, plain
from curricle.yaml_specs import Document, from_json, kind_of

STUDENT, OPTIMIZER, STATE = "student.safetensors", "optimizer.safetensors", "state.json"
ADAPTERS, ADAPTERS_OPTIMIZER = "adapters.safetensors", "adapters-optimizer.safetensors"
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run folder."""
FOLDER = re.compile(r"step-(\d{9,})")
"""Name of a checkpoint: the number of steps done."""
Slots = dict[str, tuple[bool, torch.dtype]]
"""State of a parameter by name: whether it has the parameter's shape, else none, and its type."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands."""

    usage: Usage
    """Consumed so far; its steps are the next step to run."""
    records_bytes: int
    """Length of the records file, to which it is cut when resuming."""
    records_head: str = ""
    """Check of the last of those records, which covers all of them."""
    run: str
    """Digest of everything the run depends on."""
    timeline: TimelineState = field(default_factory=TimelineState)
    """Where the stages have ended, and the sums of the rule of the open one."""
    best: BestPoint | None = None
    """The evaluation with the best metric, if the run keeps its weights; they lie beside it."""
    recovery: RecoveryState = field(default_factory=RecoveryState)
    """Steps that were skipped or rolled back."""

    @property
    def content(self) -> Document:
        """Return the state as plain data, without the best evaluation."""
        content = {
            "usage": plain(self.usage),
            "records_bytes": self.records_bytes,
            "records_head": self.records_head,
            "run": self.run,
            "timeline": plain(self.timeline),
        }
        # Only where something has failed, so that other checkpoints are what they were.
        return content | (
            {} if self.recovery == RecoveryState() else {"recovery": plain(self.recovery)}
        )


def hand_shares(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Hand this process's shares of a checkpoint to the process that writes it.

    Args:
        module: The student, in shares or whole.
        optimizer: Optimizer of the state.
    """
    # In the order in which `save_checkpoint` gathers them.
    if is_sharded(module):
        host_copies(module, keeps=False)
        _optimizer_copies(optimizer, module, keeps=False)


def save_checkpoint(  # noqa: PLR0913 - everything but the first four has a name
    folder: Path,
    state: RunState,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    adapters: nn.ModuleList | None = None,
    best: BestWeights | None = None,
    keep: int = 1,
    thread: SaveThread | None = None,
) -> Path:
    """Write a checkpoint and remove older ones.

    Of a student in shares, every other process calls `hand_shares` at the same time. The files are
    those of whole weights, so a run goes on with another number of processes.

    Args:
        folder: Where the checkpoints of the run lie.
        state: Where the run stands.
        module: The student.
        optimizer: Optimizer of the state.
        adapters: Adapters that the stage trains beside the student.
        best: The best weights until now, if the run keeps them; their file must not change before
            the checkpoint is written.
        keep: Number of checkpoints that stay, this one included.
        thread: Thread that writes the files; None writes them within the call.

    Returns:
        The folder of the checkpoint; with a thread it is there after `thread.wait`.
    """
    path = folder / _name(state.usage.steps)
    check_layout(folder)
    files = {STUDENT: host_copies(module), OPTIMIZER: _optimizer_copies(optimizer, module)}
    if adapters is not None and len(adapters):
        # In files of their own: the student's weights load into a student alone, and after the
        # end of a stage a run goes on with other adapters or none.
        files[ADAPTERS] = host_copies(adapters)
        files[ADAPTERS_OPTIMIZER] = _optimizer_copies(optimizer, adapters)
    # A parameter may have no state, so a missing state shows in this number alone.
    states = (OPTIMIZER, ADAPTERS_OPTIMIZER)
    # In a fixed order, so that equal checkpoints have equal bytes.
    counts = {name: len(files[name]) for name in states if name in files}
    content = state.content | {"tensors": counts}
    if best is not None and best.point is not None:
        content["best"] = plain(best.point)

    def write() -> None:
        with new_folder(path) as temporary:
            for name, tensors in files.items():
                # The folder around them is flushed and renamed as a whole.
                with serializing(path / name):
                    save_file(tensors, temporary / name, metadata={"format": "pt"})
            if best is not None:
                best.copy_to(temporary)
            _write_state(temporary, content)
        # A kill before this line leaves a checkpoint more, and the newest is taken; the other order
        # might leave none.
        remove_older(folder, keep=keep, newest=path)

    if thread is None:
        write()
    else:
        thread.start(write)
    return path


def remove_older(folder: Path, *, keep: int, newest: Path) -> None:
    """Remove the oldest checkpoints of a run.

    Args:
        folder: Where they lie.
        keep: Number of checkpoints that stay.
        newest: One that stays and counts as the newest, whatever its step.
    """
    older = [path for path in checkpoints_in(folder) if path != newest]
    for path in older[: max(0, len(older) - keep + 1)]:
        remove_folder(path)


def _write_state(folder: Path, content: Document) -> None:
    """Write the state of a new checkpoint, and last the seal with the hash of every file."""
    (folder / STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    seal = folder_seal(folder, [file.name for file in folder.iterdir()])
    (folder / SEAL).write_text(seal, encoding="utf-8")


def replace_state(path: Path, state: RunState) -> None:
    """Give a checkpoint another state, in one step; its tensors stay.

    Args:
        path: The checkpoint, which was read and checked.
        state: The state.
    """
    content = _content(path) | state.content
    with new_folder(path) as temporary:
        for file in path.iterdir():
            if file.name not in {STATE, SEAL}:
                shutil.copyfile(file, temporary / file.name)
        _write_state(temporary, content)


def check_layout(folder: Path) -> None:
    """Check that checkpoints lie in the run folder itself.

    Args:
        folder: Where the checkpoints of the run lie.

    Raises:
        CheckpointError: If the folder or a checkpoint in it is a symbolic link: older checkpoints
            are removed, and nothing is removed through a link.
    """
    links = [path for path in (folder, *_named(folder)) if path.is_symlink()]
    if links:
        raise CheckpointError(
            f"{str(links[0])!r} must be a folder of the run, whose older checkpoints are removed; "
            f"it is a symbolic link to {str(links[0].readlink())!r}; move the folder itself here"
        )


def clear_leftovers(folder: Path) -> None:
    """Remove leftovers of a process that was killed while it wrote a checkpoint."""
    remove_leftovers(folder, FOLDER.pattern.replace("(", "(?:"))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint below a folder, if there is one."""
    checkpoints = checkpoints_in(folder)
    return checkpoints[-1] if checkpoints else None


def read_state(path: Path, *, timeline: Timeline | None = None) -> RunState:
    """Return where the run of a checkpoint stands.

    Args:
        path: The checkpoint.
        timeline: Timeline of the run before its first step, which goes on from the checkpoint.

    Raises:
        CheckpointError: If the state cannot be read, is damaged, or contradicts the folder's name
            or the stages of the run.
    """
    with _remedied(path):
        # Before the hash, so that an error names the fault of the content; nothing is used until
        # the hash is checked.
        state = _parsed_state(path)
        check_sealed(path, [STATE])
        _check_state(path, state, None if timeline is None else timeline.num_steps)
        if timeline is not None:
            _restore_timeline(path, state, timeline)
        return state


def _restore_timeline(path: Path, state: RunState, timeline: Timeline) -> None:
    """Let a timeline go on from a checkpoint.

    Raises:
        CheckpointError: If the state does not fit its stages.
    """
    try:
        timeline.restore(state.timeline, state.usage.steps)
    except ValueError as error:
        raise CheckpointError(
            f"'timeline' in {str(path / STATE)!r} must fit the stages of the run: {error}"
        ) from None


REMEDY = (
    "'curricle resume --fallback', in Python resume='fallback', sets a damaged checkpoint aside "
    "for an older one: "
)
"""Beginning of the sentence about a damaged checkpoint."""


@contextmanager
def _remedied(path: Path) -> Iterator[None]:
    """Add the remedy for a damaged checkpoint to an error inside the block.

    Yields:
        Nothing.

    Raises:
        CheckpointError: With the remedy, if one was raised inside.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"{REMEDY}{error}; remove the folder {str(path)!r}: an unfinished run goes on from an "
            f"older checkpoint if there is one, else anew"
        ) from None


def _parsed_state(path: Path) -> RunState:
    """Return the content of a state.

    Raises:
        CheckpointError: If it cannot be read.
    """
    content = _content(path)
    try:
        return RunState(
            usage=parse(Usage, content["usage"]),
            records_bytes=int(content["records_bytes"]),
            records_head=str(content.get("records_head", "")),
            run=str(content["run"]),
            # Checkpoints from before stages could end by a rule have no timeline.
            timeline=parse(TimelineState, content.get("timeline", {})),
            best=parse(BestPoint, content["best"]) if "best" in content else None,
            recovery=parse(RecoveryState, content.get("recovery", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{str(path / STATE)!r} must hold the state of a run: {error!r}"
        ) from None


def _content(path: Path) -> Document:
    try:
        content = from_json((path / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path / STATE)!r} must hold the state of a run: {error!r}"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{str(path / STATE)!r} must hold the state of a run: it must have named fields; got "
            f"{kind_of(content)}"
        )
    return content


def _check_state(path: Path, state: RunState, planned: int | None) -> None:
    """Check the numbers of a state.

    Raises:
        CheckpointError: If one cannot be.
    """
    # The seal detects damage, not the mistakes of another program that wrote the folder.
    steps, file = state.usage.steps, str(path / STATE)
    if steps <= 0 or (planned is not None and steps > planned):
        limit = "" if planned is None else f" and at most the planned {planned}"
        raise CheckpointError(f"'steps' in {file!r} must be positive{limit}; got {steps}")
    if path.name != _name(steps):
        raise CheckpointError(
            f"'steps' in {file!r} must be those of its folder {path.name!r}; got {steps}"
        )
    numbers = {**plain(state.usage), "records_bytes": state.records_bytes}
    for name, number in numbers.items():
        if number < 0 or not math.isfinite(number):
            raise CheckpointError(f"{name!r} in {file!r} must not be negative; got {number}")


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state into place.

    Raises:
        CheckpointError: If a file is missing, damaged or does not fit.
    """
    with _remedied(path):
        check_sealed(path, [STUDENT, OPTIMIZER])
        load_weights(module, path / STUDENT)
        # Restoring only adds, so that adapters can follow the student; a state that the checkpoint
        # lacks would otherwise stay.
        optimizer.state.clear()
        _restore_optimizer(optimizer, module, path / OPTIMIZER)


def load_adapters(path: Path, adapters: nn.ModuleList, optimizer: torch.optim.Optimizer) -> None:
    """Load a stage's adapters from a checkpoint.

    Args:
        path: The checkpoint.
        adapters: Those of the stage that it was written in.
        optimizer: Gets their part of the state; the student's is left as it is.

    Raises:
        CheckpointError: If a file is missing, damaged or does not fit.
    """
    with _remedied(path):
        check_sealed(path, [ADAPTERS, ADAPTERS_OPTIMIZER])
        load_weights(adapters, path / ADAPTERS)
        _restore_optimizer(optimizer, adapters, path / ADAPTERS_OPTIMIZER)


def _name(steps: int) -> str:
    return f"step-{steps:09d}"


def _named(folder: Path) -> list[Path]:
    """Return folders with the name of a checkpoint, in the order of steps."""
    paths = [path for path in folder.glob("step-*") if FOLDER.fullmatch(path.name)]
    # By number: as texts, steps of ten digits would precede those of nine.
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first; damaged ones are among them."""
    # A link may lead anywhere, so files behind it are neither read nor removed.
    # Either file marks a checkpoint: one that has lost the other is damaged, and has to be refused
    # instead of passed over for an older one.
    return [
        path
        for path in _named(folder)
        if not path.is_symlink() and any((path / name).is_file() for name in (STATE, SEAL))
    ]


def _optimizer_copies(
    optimizer: torch.optim.Optimizer, module: nn.Module, *, keeps: bool = True
) -> dict[str, Tensor]:
    """Return copies of a module's optimizer state in host memory, as `parameter name/state name`.

    Args:
        optimizer: The optimizer.
        module: The module; of one in shares every process calls this.
        keeps: Whether this process keeps the tensors; otherwise the result is empty.
    """
    slots = (
        (f"{name}/{key}", torch.as_tensor(slot))
        for name, parameter in module.named_parameters()
        for key, slot in optimizer.state.get(parameter, {}).items()
        if slot is not None
    )
    return whole_copies(slots, keeps=keeps)


def _restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, path: Path) -> None:
    """Add the state of a module's parameters to an optimizer.

    Raises:
        CheckpointError: If the file cannot be read, or its state is incomplete, of another shape or
            type, or of another model or optimizer.
    """
    try:
        tensors = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from None
    counts = _content(path.parent).get("tensors")
    # A wholly empty file is valid safetensors, and the state of a new optimizer.
    count = counts.get(path.name) if isinstance(counts, dict) else None
    if count != len(tensors):
        raise CheckpointError(
            f"{str(path)!r} must hold the {count} tensors that {STATE!r} counts; got {len(tensors)}"
        )
    named = dict(module.named_parameters())
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, state = key.rpartition("/")
        if name not in named:
            raise CheckpointError(f"'optimizer' state must be of this model; got {name!r}")
        states.setdefault(name, {})[state] = tensor
    # All states are checked before the first is set: no optimizer is left with half of them.
    slots = _SlotTable(optimizer)
    for name, state_of_one in states.items():
        _check_slots(f"{name!r} in {str(path)!r}", named[name], state_of_one, slots.of(named[name]))
    for name, state_of_one in states.items():
        # The step count too: the fused AdamW keeps it beside the parameter.
        optimizer.state[named[name]] = {
            key: share_of(beside(tensor, named[name]), named[name])
            if tensor.shape == named[name].shape
            else beside(tensor, named[name])
            for key, tensor in state_of_one.items()
        }


@final
class _SlotTable:
    """State that an optimizer keeps for a parameter, found by a step on a tiny one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = {
            parameter: number
            for number, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }
        self._known: dict[object, Slots] = {}

    def of(self, parameter: nn.Parameter) -> Slots:
        """Return the state of a parameter; none if the optimizer does not move it."""
        number = self._groups.get(parameter)
        if number is None:
            return {}
        # Options of the group decide which state there is, dtype and processor its form; so a model
        # needs a few trials and not one for each parameter.
        key = (number, parameter.dtype, processor_kind(parameter))
        if key not in self._known:
            self._known[key] = self._slots(parameter, self._optimizer.param_groups[number])
        return self._known[key]

    def _slots(self, parameter: nn.Parameter, group: dict[str, object]) -> Slots:
        # torch declares the state of an optimizer nowhere; a step creates it. Two axes of different
        # length distinguish a state in the parameter's shape from a count or a state of rows.
        sample = nn.Parameter(share_in_memory(parameter).new_zeros(2, 3))
        sample.grad = torch.zeros_like(sample)
        trial: Callable[..., torch.optim.Optimizer] = type(self._optimizer)
        optimizer = trial([sample], lr=0.0)
        optimizer.param_groups[0].update({k: v for k, v in group.items() if k != "params"})
        optimizer.step()
        return {
            name: (tensor.shape == sample.shape, tensor.dtype)
            for name, tensor in optimizer.state[sample].items()
            if isinstance(tensor, Tensor)
        }


def _check_slots(
    place: str, parameter: nn.Parameter, state: dict[str, Tensor], slots: Slots
) -> None:
    """Check the state of one parameter.

    Raises:
        CheckpointError: If something is missing or foreign, or has another shape or type.
    """
    if state.keys() != slots.keys():
        raise CheckpointError(
            f"'optimizer' state of {place} must be {sorted(slots)}; got {sorted(state)}"
        )
    for name, (is_shaped, dtype) in slots.items():
        shape = tuple(parameter.shape) if is_shaped else ()
        if tuple(state[name].shape) != shape or state[name].dtype != dtype:
            raise CheckpointError(
                f"'optimizer' state {name!r} of {place} must have shape {shape} and type {dtype}; "
                f"got {tuple(state[name].shape)} and {state[name].dtype}"
            )
