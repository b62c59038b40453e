"""Lines and tables of the command line."""

import pytest

from curricle.cli import output


def test_tables_are_wide_where_there_is_no_terminal() -> None:
    assert output.console.is_terminal or output.console.width == output.WIDE


@pytest.mark.parametrize("name", ["a[red]b", "x[/bold]", ":smile:"])
def test_paths_are_printed_as_they_are(name: str) -> None:
    with output.console.capture() as captured:
        output.print_line(f"teacher in {name}")
    assert captured.get() == f"teacher in {name}\n"
