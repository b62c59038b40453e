"""The tables of real families are found, and what has none is told."""

from typing import Any

import pytest
from torch import nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.embeddings import EmbeddingTables, embedding_tables, matching_tables
from curricle.models.huggingface import Head, HuggingFaceSpec
from curricle.models.mlp import MLP

TINY: dict[str, object] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
GPT2: dict[str, object] = {"n_embd": 8, "n_layer": 2, "n_head": 2}
CAUSAL = ("gpt2", "llama")


def tables(family: str, **fields: object) -> EmbeddingTables:
    config = (GPT2 if family == "gpt2" else TINY) | fields
    head: Head = "causal_lm" if family in CAUSAL else "masked_lm"
    spec = HuggingFaceSpec(model_type=family, head=head, config=config)
    with seeding.scoped(0, "test model"):
        model = spec.build(num_inputs=20, num_classes=20, num_positions=6)
    return embedding_tables(model.module, "student")


@pytest.mark.parametrize(
    ("family", "tokens", "others"),
    [
        ("bert", "word_embeddings", ["position_embeddings", "token_type_embeddings"]),
        ("megatron-bert", "word_embeddings", ["position_embeddings", "token_type_embeddings"]),
        ("gpt2", "wte", ["wpe"]),
        ("modernbert", "tok_embeddings", []),
        ("llama", "embed_tokens", []),
    ],
)
def test_the_tables_of_a_family_are_found(family: str, tokens: str, others: list[str]) -> None:
    found = tables(family)
    assert found.path.rpartition(".")[2] == tokens
    assert found.tokens.weight.shape == (20, 8)
    assert [path.rpartition(".")[2] for path in found.extra] == others
    assert found.output is not None


@pytest.mark.parametrize(
    ("family", "is_tied"), [("bert", True), ("modernbert", True), ("gpt2", True), ("llama", False)]
)
def test_a_tied_output_is_told(family: str, is_tied: bool) -> None:
    assert tables(family).is_tied is is_tied


def test_a_tie_can_be_undone_in_the_configuration() -> None:
    assert not tables("gpt2", tie_word_embeddings=False).is_tied


class Named(nn.Module):
    """Names its tables as a Hugging Face model does."""

    def __init__(self, tokens: nn.Module, output: nn.Module | None, **others: nn.Module) -> None:
        super().__init__()
        self.tokens, self.output = tokens, output
        for name, one in others.items():
            self.add_module(name, one)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module | None:
        return self.output


def named(output: nn.Module | None = None, **others: tuple[int, int]) -> EmbeddingTables:
    with seeding.scoped(0, "test model"):
        made = {name: nn.Embedding(*shape) for name, shape in others.items()}
        return embedding_tables(Named(nn.Embedding(5, 4), output, **made), "student")


def test_tables_of_another_width_are_none_of_these() -> None:
    assert list(named(positions=(7, 4), biases=(7, 2)).extra) == ["positions"]


def test_an_output_of_another_shape_is_left_out() -> None:
    with seeding.scoped(0, "test model"):
        outputs = [None, nn.Identity(), nn.Linear(4, 6), nn.Linear(3, 5)]
    assert [named(output).output for output in outputs] == [None] * 4
    assert not named().is_tied


def test_a_model_that_names_no_table_is_an_error() -> None:
    with seeding.scoped(0, "test model"):
        model = MLP(4, (5,), 3)
    with pytest.raises(
        BindError, match=r"^'teacher' must have token embeddings in an nn\.Embedding.*; got MLP$"
    ):
        embedding_tables(model, "teacher")


def test_embeddings_that_are_no_table_are_an_error() -> None:
    with seeding.scoped(0, "test model"):
        model = Named(nn.Linear(5, 4), None)
    with pytest.raises(BindError, match=r"got Named with embeddings in a Linear$"):
        embedding_tables(model, "student")


def matched(student: EmbeddingTables, teacher: EmbeddingTables) -> list[tuple[str, str]]:
    names = {id(table): path for path, table in teacher.extra.items()}
    return [(path, names[id(other)]) for path, _, other in matching_tables(student, teacher)]


def test_tables_of_equal_paths_are_matched_first() -> None:
    student = named(second=(7, 4), first=(7, 4))
    assert matched(student, named(first=(7, 4), second=(7, 4))) == [
        ("second", "second"),
        ("first", "first"),
    ]


def test_tables_of_other_paths_are_matched_by_their_rows() -> None:
    student = named(types=(2, 4), places=(7, 4))
    assert matched(student, named(wpe=(7, 4), wte=(2, 4))) == [("types", "wte"), ("places", "wpe")]


def test_each_table_of_the_teacher_is_used_once_and_the_rest_left_out() -> None:
    student = named(first=(7, 4), second=(7, 4), other=(9, 4))
    assert matched(student, named(places=(7, 4))) == [("first", "places")]


class Unnamed(Named):
    """A family without tokens: transformers has the method, which raises."""

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


def test_a_model_without_tokens_is_an_error_of_ours() -> None:
    with pytest.raises(BindError, match=r"^'student' must have token embeddings .*; got Unnamed$"):
        embedding_tables(Unnamed(nn.Identity(), None), "student")


class Forwards(nn.Module):
    """A wrapper, as PEFT's, whose methods are those of the model inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_a_wrapper_names_the_tables_of_the_model_inside() -> None:
    with seeding.scoped(0, "test model"):
        model = Forwards(Named(nn.Embedding(5, 4), None))
    assert embedding_tables(model, "student").path == "inner.tokens"


class Around(nn.Module):
    """A layer that PEFT has put around a table, which stays as it was."""

    disable_adapters = False

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.base_layer = table


@pytest.mark.parametrize("place", ["tokens", "positions", "output"])
def test_tables_with_adapters_are_refused(place: str) -> None:
    with seeding.scoped(0, "test model"):
        tables: dict[str, nn.Module] = {
            "tokens": nn.Embedding(5, 4),
            "positions": nn.Embedding(6, 4),
            "output": nn.Linear(4, 5),
        }
    tables[place] = Around(tables[place])
    model = Named(tables["tokens"], tables["output"])
    model.positions = tables["positions"]
    with pytest.raises(
        BindError, match=rf"^'teacher' must have tables without .* wrapped '{place}'"
    ):
        embedding_tables(model, "teacher")
