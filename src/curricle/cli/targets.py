"""Commands for stored targets: capture, info, verify, import.

`curricle targets capture` runs the finished teacher of a spec, `info` lists the content of a
folder, `verify` checks that it is intact and equal to the teacher's, `import` reads files of other
programs.

Design: as in `cli`, modules that need torch are imported by the command that needs them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from curricle.cli.placing import CPUs, GPUs, Place, Placing
from curricle.errors import SpecError, visible

if TYPE_CHECKING:
    from curricle.teachers.store.importing import Missing
    from curricle.teachers.store.manifest import Manifest

app = typer.Typer(
    help="Store the targets of a teacher for any number of students.",
    no_args_is_help=True,
)
WIDE = 140
"""Columns of tables that do not go to a terminal."""
Folder = Annotated[Path, typer.Argument(help="Folder of stored targets.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the spec; repeatable."),
]


@app.command()
def capture(
    spec: Annotated[Path, typer.Argument(help="YAML file with `targets`.", show_default=False)],
    sets: Sets = None,
    *,
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Processes that run the teacher, one CPU thread each."),
    ] = 1,
    place: Place = "local",
    num_cpus: CPUs = 1.0,
    num_gpus: GPUs = 0.0,
) -> None:
    """Capture all targets that the students of a spec will read from its finished teacher.

    An interrupted capture is continued.
    """
    from curricle.runs.spec import load_spec
    from curricle.runs.target_folder import capture_targets_of

    console, placing = _console(), Placing(jobs, place, num_cpus, num_gpus)
    run_spec = load_spec(spec, sets)
    with console.status("running the teacher") as status:
        manifest = capture_targets_of(
            run_spec,
            lambda done, total: status.update(f"step {done} of {total}"),
            new_workers=None if placing.is_single else placing.workers,
        )
    _print_manifest(console, manifest)


@app.command()
def verify(
    folder: Folder,
    spec: Annotated[
        Path | None, typer.Option(help="Spec; its teacher is run again on some batches.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Read every file of a folder; with a spec, compare with its teacher."""
    from curricle.runs.spec import load_spec
    from curricle.runs.target_folder import verify_targets
    from curricle.teachers.store.manifest import read_manifest

    console = _console()
    agreements = verify_targets(folder, None if spec is None else load_spec(spec, sets))
    for agreement in agreements:
        console.print(
            f"{agreement.target_set.name}: {agreement.share:.1%} of {agreement.rows} rows agree"
        )
    console.print(visible(f"{folder}: all files intact"), soft_wrap=True)
    if not read_manifest(folder).is_complete:
        console.print("capture incomplete; run 'curricle targets capture' again to finish it")


@app.command()
def info(folder: Folder) -> None:
    """List the content of a folder, and missing files, without reading them."""
    from curricle.teachers.store.manifest import MANIFEST, missing_files, read_manifest

    console, manifest = _console(), read_manifest(folder)
    _print_manifest(console, manifest)
    missing = missing_files(folder, manifest)
    if missing:
        console.print(
            f"damaged: {len(missing)} of {len(manifest.shards)} files are missing or of another "
            f"size, the first is {missing[0]}; they or {MANIFEST} are of another store or damaged: "
            f"restore them, or capture into a new folder",
            soft_wrap=True,
            markup=False,
        )


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="DistillKit's Parquet files, or vLLM's JSON lines.", show_default=False
        ),
    ],
    folder: Folder,
    *,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Size of the vocabulary, if the source has none.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Temperature of the log-probabilities.")] = 1.0,
    missing: Annotated[
        str, typer.Option(help="Treatment of the mass of other classes: rest or renormalize.")
    ] = "rest",
) -> None:
    """Import top-k log-probabilities of another program as stored targets.

    Raises:
        SpecError: If there is no such policy of the missing mass.
    """
    from curricle.teachers.store.importing import import_targets

    if missing not in {"rest", "renormalize"}:
        raise SpecError(f"'--missing' must be 'rest' or 'renormalize'; got {missing!r}")
    manifest = import_targets(
        source,
        folder,
        num_classes=num_classes,
        temperature=temperature,
        missing=cast("Missing", missing),
    )
    _print_manifest(_console(), manifest)


def _print_manifest(console: Console, manifest: "Manifest") -> None:
    """Print teacher and form of the targets."""
    from curricle.runs.target_folder import describe_targets

    teacher, data = manifest.teacher, manifest.data
    state = "complete" if manifest.is_complete else "incomplete: capturing again continues"
    facts = {
        "state": state,
        "teacher": f"{teacher.weights.get('final', 'unknown')[:16]}, {teacher.parameters} "
        f"parameters, {teacher.precision or 'unknown precision'}",
        "data": f"{data.name or 'unknown'} {data.fingerprint}",
        "tokenizer": data.tokenizer[:16] or "none",
    }
    for name, text in facts.items():
        console.print(visible(f"{name}: {text}"), soft_wrap=True)
    table = Table("targets", "intact", "codec", "error", "examples", "rows", "bytes a row")
    for row in describe_targets(manifest):
        codec = row.target_set.codec
        sizes = (f"{row.examples}", f"{row.rows}", f"{row.bytes_a_row:.1f}")
        intact = "yes" if manifest.has_all(row.target_set) else "no"
        table.add_row(visible(str(row.target_set)), intact, codec.kind, codec.words, *sizes)
    console.print(table)


def _console() -> Console:
    # Names of files and tasks are no markup.
    console = Console(markup=False, emoji=False)
    # Tables in a file or a pipe need not fit a terminal.
    return console if console.is_terminal else Console(width=WIDE, markup=False, emoji=False)
