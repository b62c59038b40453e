"""Embedding tables and output maps of language models.

`embedding_tables` finds the tables of a model without a list of families. A Hugging Face model
names its token table and its output map itself; every other `nn.Embedding` of the token table's
width holds positions, token types or the like. Tables of another width, such as the biases of
relative positions inside the blocks, are none of these.

Axes: id (a token), row (of any table), width.

Design: modules are found, never changed, and nothing here imports transformers. Weights that two
roles share are the same parameter object in both, so that a caller can respect the tie.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, final

from torch import nn

from curricle.errors import BindError
from curricle.models.tuners import is_tuned
from curricle.protocols import conforms


class HasEmbeddings(Protocol):
    """The part of a Hugging Face model that names its tables."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that turns token ids into vectors."""
        ...

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the module that makes the logits, if the model has one."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTables:
    """The tables of one model."""

    path: str
    """Module path of the token table."""
    tokens: nn.Embedding
    """Token table: one row an id."""
    others: Mapping[str, nn.Embedding]
    """Tables of positions and the like, by module path, in the order of the modules."""
    output: nn.Linear | None
    """Output layer, if it is a linear map of the shape of the token table."""

    @property
    def is_tied(self) -> bool:
        """Return whether the output's weight is the token table."""
        return self.output is not None and self.output.weight is self.tokens.weight


def embedding_tables(model: nn.Module, role: str) -> EmbeddingTables:
    """Return the tables of a model.

    Args:
        model: A Hugging Face model, or one with its two methods.
        role: Role of the model, for the error sentence.

    Raises:
        BindError: If the model does not name the module of its token embeddings, that is no table,
            or PEFT has put an adapter around a table or the output.
    """
    named, output = _named_modules(model)
    if named is not None:
        _check_untuned(model, role, named, output)
    if not isinstance(named, nn.Embedding):
        kind = type(model).__name__
        addition = "" if named is None else f" with embeddings in a {type(named).__name__}"
        raise BindError(
            f"{role!r} must have token embeddings in an nn.Embedding and name it by "
            f"'get_input_embeddings', as Hugging Face models do; got {kind}{addition}"
        )
    tables = {
        path: table
        for path, table in model.named_modules()
        if isinstance(table, nn.Embedding) and table.embedding_dim == named.embedding_dim
    }
    path = next(path for path, table in tables.items() if table is named)
    if not isinstance(output, nn.Linear) or output.weight.shape != named.weight.shape:
        output = None
    return EmbeddingTables(
        path=path,
        tokens=named,
        others={table_path: table for table_path, table in tables.items() if table_path != path},
        output=output,
    )


def _check_untuned(model: nn.Module, role: str, named: nn.Module, output: nn.Module | None) -> None:
    """Check that no table has an adapter, since its own weights would be incomplete.

    Raises:
        BindError: If one has.
    """
    for path, submodule in model.named_modules():
        is_read = submodule is named or submodule is output
        holds = any(isinstance(inner, nn.Embedding) for inner in submodule.modules())
        if is_tuned(submodule) and (is_read or holds):
            raise BindError(
                f"{role!r} must have tables without adapters for a start; PEFT has wrapped "
                f"{path!r}; merge the adapter into it (merge_and_unload), or leave 'start' out"
            )


def _named_modules(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the token embeddings and the output that a model names, if it names any."""
    if not conforms(model, HasEmbeddings):
        return None, None
    try:
        return model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:
        # Families without tokens, such as those that read images, have the methods, too.
        return None, None


def matching_tables(
    student: EmbeddingTables, teacher: EmbeddingTables
) -> Iterator[tuple[str, nn.Embedding, nn.Embedding]]:
    """Yield a student's other tables with a teacher's of as many rows, each used once.

    Of several with as many rows the one of the same path is taken, or else the first. Tables
    without such a partner are left out.

    Args:
        student: Tables of the student.
        teacher: Tables of the teacher.

    Yields:
        Module path of the student's table, the table, and the teacher's.
    """
    unused = dict(teacher.others)
    for path, table in student.others.items():
        fitting = [
            candidate
            for candidate in unused
            if unused[candidate].num_embeddings == table.num_embeddings
        ]
        if fitting:
            yield path, table, unused.pop(path if path in fitting else fitting[0])
