"""Command for models that leave curricle: export.

Design: as in `cli`, modules that need torch are imported when the command runs.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from curricle.errors import visible


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    *,
    to: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    strategy: Annotated[
        str | None, typer.Option(help="Of a comparison: the student's strategy.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of a comparison: the student's seed; by default the first.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="sentence-transformers, for a student with a pooling: checked first."),
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write an ONNX file and compare it with torch.")
    ] = False,
    onnx_tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of logits, relative to the largest.")
    ] = 1e-4,
) -> None:
    """Write a finished model with tokenizer and model card, for use without curricle."""
    from curricle.runs.finished import export_run

    exported = export_run(
        run,
        to,
        strategy=strategy,
        seed=seed,
        layout=layout,
        onnx=onnx,
        tolerance=onnx_tolerance,
    )
    console = Console(markup=False, emoji=False)
    for name in exported.files:
        console.print(visible(str(exported.folder / name)), soft_wrap=True)
    if exported.onnx is not None:
        console.print(f"ONNX: {exported.onnx}", soft_wrap=True)
