"""Question of a comparison: metric, target and budget, kept beside its runs for the report."""

from pathlib import Path
from typing import Literal, final

from curricle.checksums import read_sealed, write_sealed
from curricle.errors import CheckpointError, reason
from curricle.runs.budget import AnyBudget
from curricle.runs.folder import SPEC, has_spec, stored_fields
from curricle.runs.spec import Target
from curricle.values import parse, plain, value

REQUEST = "comparison.json"
"""File in the folder of a comparison made from Python; one made from a spec has its `spec.yaml`."""


@final
@value
class Request:
    """Metric, target and budget of a comparison."""

    metric: str | None = None
    """Metric by which runs are judged; None takes that of the first run."""
    better: Literal["higher", "lower"] | None = None
    """Direction of the metric; None derives it from the name."""
    target: float | None = None
    """Value that counts as learned; None sets no target."""
    target_of: str | None = None
    """Strategy that sets the target by its mean final value."""
    budget: AnyBudget | None = None
    """Limit for each student."""


def write_request(folder: Path, request: Request, *, resume: bool) -> None:
    """Keep a request in the folder of its comparison.

    Args:
        folder: The comparison's folder.
        request: Metric, target and budget.
        resume: Whether a comparison is continued; its request must be the same.

    Raises:
        CheckpointError: If the folder holds another request, or any and `resume` is off.
    """
    path = folder / REQUEST
    if path.exists():
        stored = read_request(folder)
        if not resume:
            raise CheckpointError(
                f"'output_dir' {str(folder)!r} must not hold a comparison already; "
                f"'resume=True' continues it"
            )
        if stored != request:
            raise CheckpointError(
                f"{str(path)!r} must hold the metric, target and budget of this comparison; it "
                f"holds {plain(stored)}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(path, plain(request))


def read_request(folder: Path) -> Request:
    """Return the request of the runs in a folder; of a single run one that leaves all open.

    Args:
        folder: A run folder.

    Raises:
        CheckpointError: If its file is damaged.
    """
    if has_spec(folder):
        # Two fields and not the whole spec, so that folders of earlier versions are read.
        fields = stored_fields(folder)
        target: Target = parse(Target, fields.get("target") or {}, source=str(folder / SPEC))
        return Request(
            metric=target.metric,
            target=target.number,
            target_of=target.final_of,
            budget=parse(AnyBudget | None, fields.get("budget"), source=str(folder / SPEC)),
        )
    path = folder / REQUEST
    if not path.is_file():
        return Request()
    try:
        request: Request = parse(Request, read_sealed(path), source=str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} must be the file that curricle.compare wrote; {reason(error)}"
        ) from None
    return request
