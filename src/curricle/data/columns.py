"""Columns of rows of tables, by the role that they have in a task.

Columns are found by the names that people give them (`text`, `label`, `sentence1` and `sentence2`,
`prompt` and `completion`), or named.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from curricle.data.table_files import Cell, Row
from curricle.errors import DataError, near_names

Columns = Mapping[str, str | tuple[str, ...]]
"""Names of columns by role."""
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("text1", "text2"),
)
"""Columns of two texts of one example."""
USUAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("text", "sentence", "content", "review", "question", "query"),
        "label": ("label", "labels", "target", "score", "stars", "intent"),
        "values": ("labels", "label", "score", "value", "values", "target", "stars"),
        "embedding": ("embedding", "embeddings", "label", "labels"),
        "question": ("question", "query"),
        "context": ("context", "passage", "document", "text"),
        "answers": ("answers", "answer"),
        "tokens": ("tokens", "words"),
        "tags": ("ner_tags", "pos_tags", "tags", "labels"),
        "source": ("source", "src", "input", "text", "document", "article"),
        "target": ("target", "tgt", "output", "summary", "highlights"),
        "prompt": ("prompt", "instruction", "question"),
        "completion": ("completion", "response", "output", "answer"),
        "messages": ("messages", "conversations"),
        "query": ("query", "anchor", "question"),
        "positive": ("positive", "pos", "passage"),
        "negative": ("negative", "neg", "hard_negative"),
    }
)
"""Names of columns by role, in the order in which they are looked for."""


def find_column(rows: Sequence[Row], role: str, columns: Columns) -> str:
    """Return the name of the column of a role.

    Args:
        rows: Rows of a table.
        role: Content of the column, as a key of `USUAL`.
        columns: Names of columns by role, where they are not among the usual ones.

    Raises:
        DataError: If there is none.
    """
    present = rows[0]
    name = columns.get(role)
    if isinstance(name, str):
        if name.partition(".")[0] not in present:
            near = near_names(name, present)
            raise DataError(f"'columns.{role}' must name a column; got {name!r}; {near}")
        return name
    usual = next((name for name in USUAL[role] if name in present), None)
    if usual is None:
        raise DataError(
            f"'data' must have a column for {role!r}, such as {', '.join(USUAL[role][:3])}, or "
            f"'columns.{role}' must name it; got columns {', '.join(present)}"
        )
    return usual


def read_column(rows: Sequence[Row], role: str, columns: Columns) -> list[Cell]:
    """Return the entries of the column of a role.

    Args:
        rows: Rows of a table.
        role: Content of the column, as a key of `USUAL`.
        columns: Names of columns by role, where they are not among the usual ones.
    """
    return read_values(rows, find_column(rows, role, columns))


def read_values(rows: Sequence[Row], name: str) -> list[Cell]:
    """Return a column, also one inside another, as in `translation.de`.

    Args:
        rows: Rows of a table.
        name: Name of the column.

    Raises:
        DataError: If a row does not have it.
    """
    values = []
    for number, row in enumerate(rows, start=1):
        entry: object = row
        for key in [name] if name in row else name.split("."):
            entry = entry.get(key) if isinstance(entry, Mapping) else None
        if entry is None:
            raise DataError(
                f"column {name!r} must have a value in every row; row {number} has none"
            )
        values.append(entry)
    return values


def read_texts(rows: Sequence[Row], name: str) -> list[str]:
    """Return a column of texts.

    Args:
        rows: Rows of a table.
        name: Name of the column.

    Raises:
        DataError: If an entry is none.
    """
    for number, text in enumerate(texts := read_values(rows, name), start=1):
        if not isinstance(text, str):
            raise DataError(f"column {name!r} must hold texts; got {text!r} in row {number}")
    return texts


def text_columns(rows: Sequence[Row], columns: Columns) -> tuple[str, ...]:
    """Return the column of the text, or those of two texts.

    Args:
        rows: Rows of a table.
        columns: Names of columns by role, where they are not among the usual ones.
    """
    stated = columns.get("text")
    if isinstance(stated, tuple):
        return tuple(find_column(rows, "text", {"text": name}) for name in stated)
    if stated is None:
        for pair in PAIRS:
            if all(name in rows[0] for name in pair):
                return pair
    return (find_column(rows, "text", columns),)
