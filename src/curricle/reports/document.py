"""Frame of every page.

One HTML file with everything inside: it can be opened without a network, mailed, or put beside a
paper. A page forbids itself to load anything (Content-Security-Policy), so this does not rest on
good intentions. All text is escaped; nothing depends on the clock.
"""

import html
from collections.abc import Iterable, Sequence

from plotly.offline import get_plotlyjs

from curricle.errors import visible
from curricle.reports.style import SCRIPT, STYLE
from curricle.reports.tables import Grid

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def document(title: str, elements: Sequence[str], *, plots: bool = False) -> str:
    """Return a page.

    Args:
        title: Its title; escaped here.
        elements: Its sections as HTML; empty ones are left out.
        plots: Whether it holds figures of plotly, which embeds its library.
    """
    library = f"<script>{get_plotlyjs()}</script>" if plots else ""
    script = f"<script>{SCRIPT}</script>" if plots else ""
    return "\n".join((
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(visible(title))}</title>",
        f"<style>{STYLE}</style>",
        *filter(None, (library,)),
        "</head><body><main>",
        *(visible(element, keep="\n\t") for element in elements if element),
        f"</main>{script}</body></html>",
        "",
    ))  # fmt: skip


def section(title: str, *elements: str) -> str:
    """Return a section under a heading."""
    return f"<section><h2>{title}</h2>{''.join(elements)}</section>"


def note(text: str) -> str:
    """Return a paragraph of small print."""
    return f'<p class="note">{html.escape(text)}</p>'


def table(grid: Grid) -> str:
    """Return a grid as HTML that scrolls sideways on a narrow screen."""
    head = _row("th", grid.columns, grid.numeric)
    body = [_row("td", row, grid.numeric) for row in grid.rows]
    if grid.total:
        body[-1] = body[-1].replace("<tr>", '<tr class="total">')
    inside = f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll">{inside}</div>'


def _row(tag: str, cells: Iterable[str], numeric: Iterable[bool]) -> str:
    filled = (
        f"<{tag}{' class=number' if right else ''}>{html.escape(cell)}</{tag}>"
        for cell, right in zip(cells, numeric, strict=True)
    )
    return f"<tr>{''.join(filled)}</tr>"


def again(command: str) -> str:
    """Return how to make something again; nothing if that is not known.

    Args:
        command: Lines for a shell; those of `curricle report` only draw a page of finished runs.
    """
    if not command:
        return ""
    is_drawing = all(line.startswith("curricle report ") for line in command.splitlines())
    heading = "Draw this page of the same runs again" if is_drawing else "Run it again"
    return f"<h3>{heading}</h3><pre><code>{html.escape(command)}</code></pre>"
