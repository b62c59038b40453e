"""How modules of any kind become tapped models."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.mlp import MLP
from curricle.models.tapped import Place
from curricle.models.wrapping import tapped


class Transformer(nn.Module):
    """What is looked at in a Hugging Face model, without transformers."""

    def __init__(self, lists: dict[str, int], *, num_layers: int = 2) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="tiny", num_hidden_layers=num_layers)
        self.body = nn.Module()
        for name, length in lists.items():
            self.body.add_module(name, nn.ModuleList(nn.Identity() for _ in range(length)))
        self.top = nn.Sequential(nn.Identity(), nn.Identity())
        self.seen: list[object] = []

    @property
    def base_model(self) -> nn.Module:
        return self.body

    def get_output_embeddings(self) -> nn.Module | None:
        return self.top[1]

    def forward(self, inputs: Tensor, use_cache: bool = True) -> Tensor:
        self.seen.append(use_cache)
        for block in self.body.get_submodule("layer").children():
            inputs = block(inputs)
        found: Tensor = self.top(inputs)
        return found


class WithoutHead(Transformer):
    def get_output_embeddings(self) -> nn.Module | None:
        return None


def mlp() -> MLP:
    with seeding.scoped(0, "test model"):
        return MLP(4, (5, 6), 3)


def test_a_tapped_model_is_returned_as_it_is() -> None:
    model = mlp().tapped()
    assert tapped(model) is model


@pytest.mark.parametrize(
    "setting",
    [{"blocks": ["blocks.0"]}, {"head": "head"}, {"is_residual": False}, {"width_axis": 1}],
    ids=str,
)
def test_a_tapped_model_cannot_be_described_again(setting: dict[str, Any]) -> None:
    with pytest.raises(
        BindError, match=r"^'model' must not be tapped already to be described; got a tapped one$"
    ):
        tapped(mlp().tapped(), **setting)


def test_what_is_said_of_an_mlp_holds() -> None:
    model = tapped(mlp(), is_residual=True, width_axis=1, head="head")
    assert (model.depth, model.is_residual) == (2, True)
    assert model.place(2) == Place("blocks.1")
    with (
        model.open_taps([], logits=True) as forward,
        pytest.raises(BindError, match=r"^'width_axis' must be -1 for logits without pos"),
    ):
        forward(torch.zeros(2, 4), torch.tensor([1]))


def test_an_mlp_is_recognized() -> None:
    module = mlp()
    model = tapped(module)
    assert model.module is module
    assert (model.depth, model.is_residual) == (2, False)


def test_an_mlp_may_be_given_other_blocks() -> None:
    model = tapped(mlp(), blocks=["blocks.0.0", "blocks.1.0"])
    assert model.place(2) == Place("blocks.1.0")


def test_any_module_is_read_at_paths() -> None:
    model = tapped(nn.Sequential(nn.Identity(), nn.Identity()))
    assert (model.depth, model.is_residual) == (0, False)
    assert model.place("1") == Place("1")


def test_any_module_may_be_declared_residual() -> None:
    assert tapped(nn.Sequential(nn.Identity()), blocks=["0"], is_residual=True).is_residual


def test_the_width_axis_is_passed_on() -> None:
    model = tapped(nn.Sequential(nn.Identity()), blocks=["0"], width_axis=1)
    with model.open_taps([model.place(1)], logits=False) as forward:
        assert forward(torch.zeros(2, 3, 5, 7)).hidden[model.place(1)].shape == (2, 5, 7, 3)


def test_a_transformer_is_recognized_by_its_configuration() -> None:
    model = tapped(Transformer({"layer": 2, "other": 5}))
    assert (model.depth, model.is_residual) == (2, True)
    assert model.place(2) == Place("body.layer.1")


class Attributes:
    """A configuration that forwards names, as `attribute_map` of transformers does."""

    model_type = "gpt2"
    n_layer = 2

    def __getattr__(self, name: str) -> int:
        if name == "num_hidden_layers":
            return self.n_layer
        raise AttributeError(name)


class Wrapper(nn.Module):
    """A wrapper that forwards what it lacks to the model inside, as PEFT's does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, inputs: Tensor, use_cache: bool = True) -> Tensor:
        found: Tensor = self.inner(inputs, use_cache=use_cache)
        return found


class Held(Transformer):
    """A model whose base is a submodule and no property, as with DistilBERT."""

    def __init__(self) -> None:
        super().__init__({"layer": 2})
        self.config = Attributes()  # type: ignore[assignment]


@pytest.mark.parametrize(
    "module", [Held(), Wrapper(Transformer({"layer": 2}))], ids=["config", "PEFT"]
)
def test_a_transformer_is_recognized_by_what_it_forwards(module: nn.Module) -> None:
    model = tapped(module)
    assert (model.depth, model.is_residual) == (2, True)
    with model.open_taps([model.place(2)], logits=False) as forward:
        forward(torch.zeros(2, 4))
    seen = module.inner.seen if isinstance(module, Wrapper) else module.seen
    assert seen == [False]


def test_a_tapped_model_may_be_a_wrapper_that_forwards() -> None:
    class Logged:
        def __init__(self, model: Any) -> None:
            self.wrapped = model

        def __getattr__(self, name: str) -> Any:
            return getattr(self.wrapped, name)

    model: Any = Logged(mlp().tapped())
    # The shape checks of the tests would refuse it under Python 3.12 and later.
    assert inspect.unwrap(tapped)(model) is model


class Tupled(Transformer):
    """A model whose configuration asks for tuples."""

    def __init__(self, **config: Any) -> None:
        super().__init__({"layer": 2})
        vars(self.config).update(config)

    def forward(self, inputs: Tensor, **keywords: Any) -> Any:  # type: ignore[override]
        self.seen.append(keywords)
        return {"logits": self.top(inputs), "last_hidden_state": inputs}


@pytest.mark.parametrize(
    ("config", "keywords"), [({"return_dict": False}, {"return_dict": True}), ({}, {})]
)
def test_a_transformer_names_its_outputs(config: dict[str, Any], keywords: dict[str, Any]) -> None:
    module = Tupled(**config)
    with tapped(module).open_taps([], logits=True) as forward:
        assert forward(torch.zeros(2, 4)).logits is not None
    assert module.seen == [keywords]


class WithoutVocabulary(Transformer):
    """A family without a vocabulary, whose method transformers leaves to subclasses."""

    def get_output_embeddings(self) -> nn.Module | None:
        raise NotImplementedError


def test_a_transformer_without_a_vocabulary_is_read_too() -> None:
    assert tapped(WithoutVocabulary({"layer": 2})).depth == 2


def test_a_configuration_of_several_models_gives_no_numbers() -> None:
    module = Transformer({"layer": 2})
    module.config = SimpleNamespace(model_type="clip")
    model = tapped(module)
    assert (model.depth, model.is_residual) == (0, False)
    with pytest.raises(BindError, match=r"^'blocks' must .*: its configuration has no 'num_hidden"):
        model.place(1)


def test_the_width_axis_of_a_transformer_is_passed_on() -> None:
    model = tapped(Transformer({"layer": 2}), width_axis=1)
    with model.open_taps([model.place(1)], logits=False) as forward:
        assert forward(torch.zeros(2, 3, 5)).hidden[model.place(1)].shape == (2, 5, 3)


def test_a_transformer_may_be_declared_not_residual() -> None:
    assert not tapped(Transformer({"layer": 2}), is_residual=False).is_residual


def test_the_head_is_the_child_that_holds_the_output_embeddings() -> None:
    module = Transformer({"layer": 2})
    model = tapped(module)
    seen: list[int] = []
    module.top.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    with model.open_taps([], logits=True) as forward:
        forward(torch.zeros(2, 3, 4), torch.tensor([5]))
    assert seen == [1]


class Scaling(Transformer):
    """A model that does something before and after its last linear map."""

    def __init__(self, paths: str) -> None:
        super().__init__({"layer": 2})
        known = {"body": self.body, "top": self.top}
        del self.body, self.top
        for path in paths.split():
            self.add_module(path, known.get(path, nn.Identity()))

    def forward(self, inputs: Tensor, use_cache: bool = True) -> Tensor:
        for path in ("before", "between"):
            inputs = self.get_submodule(path)(inputs) if hasattr(self, path) else inputs
        found: Tensor = self.top(inputs)
        return found / 2


@pytest.mark.parametrize(
    ("paths", "rows"),
    [
        ("before body between top after", {"before": 6, "between": 1, "top": 1}),
        ("before top body", {"before": 6, "top": 1}),
    ],
)
def test_all_between_the_base_and_the_output_embeddings_runs_at_selected_positions(
    paths: str, rows: dict[str, int]
) -> None:
    module = Scaling(paths)
    seen: dict[str, int] = {}
    for path in rows:
        module.get_submodule(path).register_forward_hook(
            lambda _, args, __, path=path: seen.update({path: args[0].shape[:-1].numel()})
        )
    with tapped(module).open_taps([], logits=True) as forward:
        shown = forward(torch.ones(2, 3, 4), torch.tensor([5])).logits
    assert seen == rows
    assert shown is not None
    assert shown.tolist() == [[0.5] * 4]


def test_a_transformer_without_a_head_is_read_too() -> None:
    model = tapped(WithoutHead({"layer": 2}))
    with model.open_taps([model.place(2)], logits=True) as forward:
        shown = forward(torch.ones(2, 3, 4), torch.tensor([5]))
    assert shown.logits is not None
    assert shown.logits.shape == (1, 4)


def test_no_cache_is_built() -> None:
    module = Transformer({"layer": 2})
    with tapped(module).open_taps([], logits=False) as forward:
        forward(torch.zeros(2, 4))
    assert module.seen == [False]


def test_blocks_and_head_may_be_named_where_they_are_not_found() -> None:
    module = Transformer({"layer": 2, "other": 2})
    model = tapped(module, blocks=["body.layer.0", "body.layer.1"], head="top.1")
    assert model.place(1) == Place("body.layer.0")


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        ({"layer": 3}, r"\[\]"),
        ({"layer": 2, "other": 2}, r"\['body.layer', 'body.other'\]"),
    ],
)
@pytest.mark.parametrize("tap", [1, 0.5])
def test_blocks_that_are_not_unique_must_be_named_to_have_numbers(
    lists: dict[str, int], found: str, tap: float
) -> None:
    model = tapped(Transformer(lists))
    assert model.place("body.layer.0") == Place("body.layer.0")
    with pytest.raises(
        BindError,
        match=rf"^'blocks' must be given for Transformer: one list of 2 modules is expected; "
        rf"got {found}; lists of blocks: none; curricle.tapped\(model, blocks=\[...\]\) names",
    ):
        model.place(tap)


def test_a_wrong_path_is_refused() -> None:
    with pytest.raises(BindError, match=r"^tap '7' must be a module path of Sequential"):
        tapped(nn.Sequential(nn.Identity()), blocks=["7"])


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(BindError, match=r"^'model' must be a torch.nn.Mod.*got 'str'; .*targets"):
        # The shape checks of the tests would refuse it first.
        inspect.unwrap(tapped)("runs/targets")


class Adapted(nn.Module):
    """A wrapper as PEFT's: it takes what the model inside takes, without naming it."""

    def __init__(self, inner: Transformer) -> None:
        super().__init__()
        self.base_model, self.config = nn.ModuleDict({"model": inner}), inner.config

    def get_base_model(self) -> nn.Module:
        return self.base_model["model"]

    def get_output_embeddings(self) -> nn.Module | None:
        found: nn.Module | None = self.get_base_model().get_output_embeddings()  # type: ignore[operator]
        return found

    def forward(self, inputs: Tensor, **keywords: Any) -> Tensor:
        found: Tensor = self.get_base_model()(inputs, **keywords)
        return found


def test_behind_a_wrapper_no_cache_is_built_and_the_head_runs_at_selected_positions() -> None:
    inner = Transformer({"layer": 2})
    seen: list[torch.Size] = []
    inner.top.register_forward_hook(lambda _, args, _output: seen.append(args[0].shape))
    with tapped(Adapted(inner)).open_taps([], logits=True) as forward:
        shown = forward(torch.arange(24.0).view(2, 3, 4), torch.tensor([1, 4]))
    assert shown.logits is not None
    assert shown.logits.tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert (inner.seen, seen) == ([False], [(2, 4)])
    assert shown.positions == (2, 3)


def test_an_unknown_argument_is_a_sentence() -> None:
    sentence = r"'widthaxis' is not an argument of 'tapped'; did you mean 'width_axis'"
    with pytest.raises(BindError, match=sentence):
        tapped(nn.Identity(), widthaxis=1)  # type: ignore[call-arg]
    with pytest.raises(BindError, match=r"^'tapped' must be called with 'model'; help"):
        tapped()  # type: ignore[call-arg]


def test_a_path_in_the_place_of_a_list_of_paths_is_refused() -> None:
    sentence = r"^'blocks' must be a list of module paths, as blocks=\['0'\]; got '0'$"
    with pytest.raises(BindError, match=sentence):
        tapped(nn.Sequential(nn.Identity()), blocks="0")
