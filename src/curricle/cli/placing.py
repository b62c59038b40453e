"""Options of commands that work in parallel: processes here, or tasks of a Ray cluster."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, final

import typer

from curricle.errors import SpecError, near_names

if TYPE_CHECKING:
    from curricle.runs.workers import Workers

PLACES = ("local", "ray")
Jobs = Annotated[
    int, typer.Option(min=1, help="Students trained at the same time, one CPU thread each.")
]
Place = Annotated[
    str, typer.Option("--on", help="local, or ray: as many tasks as a Ray cluster has room for.")
]
CPUs = Annotated[float, typer.Option("--num-cpus", help="CPU cores of a task on ray.")]
GPUs = Annotated[float, typer.Option("--num-gpus", help="GPUs of a task on ray, as .25.")]


@final
@dataclass(frozen=True, slots=True)
class Placing:
    """Where the students of a comparison are trained, or the shares of targets captured."""

    jobs: int = 1
    """Processes at once on this machine."""
    place: str = "local"
    """`local` or `ray`."""
    num_cpus: float = 1.0
    """CPU cores of a task on `ray`."""
    num_gpus: float = 0.0
    """GPUs of a task on `ray`."""

    def __post_init__(self) -> None:
        """Check the place.

        Raises:
            SpecError: If there is none of that name, or it does not take an option.
        """
        if self.place not in PLACES:
            raise SpecError(
                f"'--on' must be 'local' or 'ray'; got {self.place!r}; "
                f"{near_names(self.place, PLACES)}"
            )
        if self.place == "local" and (self.num_cpus, self.num_gpus) != (1.0, 0.0):
            raise SpecError(
                f"'--num-cpus' and '--num-gpus' must be left out without '--on ray'; got "
                f"{self.num_cpus:g} and {self.num_gpus:g}"
            )
        if self.place == "ray" and self.jobs != 1:
            raise SpecError(
                f"'--jobs' must be left out with '--on ray', whose resources determine the "
                f"number of tasks at the same time; got {self.jobs}"
            )

    @property
    def is_single(self) -> bool:
        """Return whether this process works alone."""
        return self.place == "local" and self.jobs == 1

    def workers(self) -> "Workers":
        """Return new workers; a single process needs none."""
        from curricle.runs.workers import LocalWorkers

        if self.place == "local":
            return LocalWorkers(self.jobs)
        from curricle.runs.ray_cluster import RayCluster, RayWorkers

        return RayWorkers(RayCluster(num_cpus=self.num_cpus, num_gpus=self.num_gpus))
