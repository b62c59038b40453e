"""Embedding tables and output maps of language models.

`embedding_tables` finds the tables of a model without a list of families. Hugging Face models have
methods for their token table and output map; every other `nn.Embedding` of the token table's width
is one of positions, token types or the like. Tables of another width, such as the biases of
relative positions inside the blocks, are not included.

Axes: id (a token), row (of any table), width.

Design: models are not modified, and nothing here imports transformers. Tied weights are the same
parameter in both roles, so that callers can respect the tie.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import nn

from curricle.errors import BindError
from curricle.models.peft_adapters import is_tuned


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTables:
    """The tables of a model."""

    path: str
    """Module path of the token table."""
    tokens: nn.Embedding
    """Token table with a row for each id."""
    extra: Mapping[str, nn.Embedding]
    """Tables of positions and the like, by module path, in the order of the modules."""
    output: nn.Linear | None
    """Output map of the logits, if it is a linear map of the shape of the token table."""

    @property
    def is_tied(self) -> bool:
        """Return whether the output's weight is the token table."""
        return self.output is not None and self.output.weight is self.tokens.weight


def embedding_tables(model: nn.Module, role: str) -> EmbeddingTables:
    """Return the tables of a model.

    Args:
        model: A Hugging Face model, or any model with its two methods.
        role: `student` or `teacher`, for error messages.

    Raises:
        BindError: If the model has no method for its token embeddings, they are not a table, or a
            table or the output has an adapter of PEFT or is offloaded.
    """
    named, output = _named_modules(model)
    if named is not None:
        _check_untuned(model, role, named, output)
    if not isinstance(named, nn.Embedding):
        kind = "" if named is None else f" with embeddings in a {type(named).__name__}"
        raise BindError(
            f"{role!r} must have token embeddings in an nn.Embedding and name it by "
            f"'get_input_embeddings', as Hugging Face models do; got {type(model).__name__}{kind}"
        )
    tables = {
        path: table
        for path, table in model.named_modules()
        if isinstance(table, nn.Embedding) and table.embedding_dim == named.embedding_dim
    }
    if any(table.weight.is_meta for table in tables.values()) or (
        isinstance(output, nn.Linear) and output.weight.is_meta
    ):
        raise BindError(
            f"{role!r} must have its tables in memory for a start; its 'device_map' offloads one; "
            f"load the model without offloading, or leave 'init' out"
        )
    path = next(path for path, table in tables.items() if table is named)
    if not isinstance(output, nn.Linear) or output.weight.shape != named.weight.shape:
        output = None
    return EmbeddingTables(
        path=path,
        tokens=named,
        extra={table_path: table for table_path, table in tables.items() if table_path != path},
        output=output,
    )


def _check_untuned(model: nn.Module, role: str, named: nn.Module, output: nn.Module | None) -> None:
    """Check that no table has an adapter, which would add to its weights.

    Raises:
        BindError: If one has.
    """
    for path, module in model.named_modules():
        is_read = module is named or module is output
        has_table = any(isinstance(inner, nn.Embedding) for inner in module.modules())
        if is_tuned(module) and (is_read or has_table):
            raise BindError(
                f"{role!r} must have tables without adapters for a start; PEFT has wrapped "
                f"{path!r}; merge the adapter into it (merge_and_unload), or leave 'init' out"
            )


def _named_modules(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the token embeddings and the output of a model according to its methods."""
    tokens = getattr(model, "get_input_embeddings", None)
    output = getattr(model, "get_output_embeddings", None)
    if tokens is None or output is None:
        return None, None
    try:
        return tokens(), output()
    except NotImplementedError:
        # Families without tokens, such as those of images, have the methods, too.
        return None, None


def matching_tables(
    student: EmbeddingTables, teacher: EmbeddingTables
) -> Iterator[tuple[str, nn.Embedding, nn.Embedding]]:
    """Yield a student's other tables with a teacher's of as many rows, each used once.

    Of several with as many rows the one with the same path is used, otherwise the first. Tables
    without a match are omitted.

    Args:
        student: Tables of the student.
        teacher: Tables of the teacher.

    Yields:
        Module path of the student's table, the table, and the teacher's.
    """
    unused = dict(teacher.extra)
    for path, table in student.extra.items():
        rows = table.num_embeddings
        matches = [candidate for candidate in unused if unused[candidate].num_embeddings == rows]
        if matches:
            yield path, table, unused.pop(path if path in matches else matches[0])
