"""Arguments of an export: names of classes, a sample for ONNX, a tokenizer."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from curricle.data.batch import Batch
from curricle.data.label_checks import LABEL_ALIASES
from curricle.errors import BindError
from curricle.files import write_text
from curricle.models.tapped import Inputs
from curricle.runs.onnx_files import OnnxCheck

NO_NAMES: Mapping[int, str] = MappingProxyType({})
"""Names of no class."""
WriteTokenizer = Callable[[Path], object]
"""Writes a tokenizer into a folder."""
LABELS = ("labels", *LABEL_ALIASES)
"""Names of labels in the items of a loader."""
HEADS = ("classifier", "fc", "head")
"""Usual names of the layer whose output is that of the model, if it is the last with weights."""
AFTER_HEAD = (nn.Dropout, nn.Identity, nn.LogSoftmax, nn.Softmax)
"""Layers after a head that keep the number of outputs."""


def names_of_classes(model: nn.Module) -> Mapping[int, str]:
    """Return the names of classes in the configuration of a model, by id; empty without names.

    Args:
        model: The model.
    """
    names = _labels(model)
    # A configuration numbers classes without names itself.
    is_numbered = all(name == f"LABEL_{number}" for number, name in names.items())
    return NO_NAMES if is_numbered else names


def _labels(model: nn.Module) -> Mapping[int, str]:
    """Return the `id2label` of a model in the order of the ids; empty without one."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(labels, Mapping):
        return NO_NAMES
    try:
        # Ids are texts where JSON was read; as texts, "10" would come before "2".
        names = {int(number): str(name) for number, name in labels.items()}
    except (TypeError, ValueError):
        return NO_NAMES
    return dict(sorted(names.items()))


def checked_names(
    model: nn.Module,
    class_names: Sequence[object] | Mapping[int, object],
    *,
    has_default_output: bool = True,
) -> Mapping[int, str]:
    """Return stated names of classes by number; empty without any.

    Args:
        model: The model.
        class_names: The names, in the order of their numbers or by number.
        has_default_output: Whether they name the output of its head, and not a declared one.

    Raises:
        BindError: If they are not different texts numbered from 0, or not as many as the classes of
            the model.
    """
    names = class_names
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise BindError(
                f"'class_names' must number the classes from 0 without gaps; got {sorted(names)}"
            )
        names = [names[number] for number in range(len(names))]
    texts = tuple(name for name in names if isinstance(name, str))
    if isinstance(names, str) or len(texts) < len(names):
        raise BindError(f"'class_names' must be a list of texts; got {names!r}")
    if len(set(texts)) < len(texts):
        raise BindError(f"'class_names' must be different names; got {list(texts)}")
    num_classes = len(_labels(model))
    if not num_classes and has_default_output:
        num_classes = _num_outputs(model)
    _require_as_many(len(texts), num_classes, f"classes of {type(model).__name__}")
    return dict(enumerate(texts))


def check_outputs(names: Mapping[int, str], check: OnnxCheck) -> None:
    """Check that names of classes are as many as the logits of an example.

    Args:
        names: The names; empty checks nothing.
        check: The comparison with torch, whose shapes are those of the outputs.
    """
    shapes = [shape for shape in check.shapes if len(shape) == len(("example", "class"))]
    if shapes and len(check.outputs) == 1:
        _require_as_many(len(names), shapes[0][-1], f"outputs {check.outputs[0]!r} of the model")


def _require_as_many(num_names: int, num_classes: int, place: str) -> None:
    """Check the number of names.

    Raises:
        BindError: If there are names, and not as many as classes; a single logit has two classes.
    """
    is_binary = num_classes == 1 and num_names == len(("no", "yes"))
    if num_names and num_classes and num_names != num_classes and not is_binary:
        raise BindError(
            f"'class_names' must hold one name for each of the {num_classes} {place}; got "
            f"{num_names}"
        )


def _num_outputs(module: nn.Module) -> int:
    """Return the number of outputs of a module that ends in a linear layer; 0 if it is unknown.

    The last layer with weights counts where the order of layers is that of the forward pass, in an
    `nn.Sequential`, or where its name is usual for the head.
    """
    if isinstance(module, nn.Linear):
        return module.out_features
    in_order = isinstance(module, nn.Sequential)
    layers = [
        (name, layer)
        for name, layer in module.named_children()
        if any(True for _ in layer.parameters()) or (in_order and not isinstance(layer, AFTER_HEAD))
    ]
    if not layers:
        return 0
    name, last = layers[-1]
    return _num_outputs(last) if in_order or name in HEADS else 0


def onnx_inputs(onnx: object) -> tuple[Inputs, tuple[str, ...]]:
    """Return the inputs for an ONNX file without labels, and a note on those that are left out.

    Args:
        onnx: A batch, a tensor or a mapping of tensors.

    Raises:
        BindError: If it is anything else.
    """
    inputs = onnx.inputs if isinstance(onnx, Batch) else onnx
    if isinstance(inputs, Tensor):
        return inputs, ()
    if not isinstance(inputs, Mapping) or not all(
        isinstance(entry, Tensor) for entry in inputs.values()
    ):
        raise BindError(
            f"'onnx' must be a batch of inputs: a curricle.Batch, a tensor or a mapping of "
            f"tensors; got {_described(inputs)}; curricle.stream(loader).batch(0) is a batch of a "
            f"loader"
        )
    labels = [name for name in LABELS if name in inputs]
    notes = [f"{name!r} of 'onnx' is left out: the file has no labels as inputs" for name in labels]
    return {name: item for name, item in inputs.items() if name not in labels}, tuple(notes)


def _described(inputs: object) -> str:
    """Return the kind of an argument, of a list or mapping with that of an entry."""
    entries: list[object] = []
    if isinstance(inputs, Mapping):
        entries = [entry for entry in inputs.values() if not isinstance(entry, Tensor)]
    elif isinstance(inputs, (list, tuple)):
        entries = list(inputs)
    inner = f" with {type(entries[0]).__name__!r}" if entries else ""
    return f"{type(inputs).__name__!r}{inner}"


def write_names(names: Mapping[int, str], config: Path) -> None:
    """Write names of classes into a configuration of transformers.

    Without names, or without a configuration, nothing is written. The configuration of the model
    itself stays as it is, since an export does not change it.

    Args:
        names: The names by number.
        config: The file.
    """
    if not names or not config.is_file():
        return
    document = json.loads(config.read_text(encoding="utf-8"))
    document["id2label"] = {str(number): name for number, name in names.items()}
    document["label2id"] = {name: number for number, name in names.items()}
    write_text(config, json.dumps(document, indent=2, sort_keys=True) + "\n")


def tokenizer_writer(tokenizer: object) -> WriteTokenizer | None:
    """Return a function that saves a tokenizer; None without one.

    Args:
        tokenizer: An object with `save_pretrained`, or None.

    Raises:
        BindError: If it cannot be saved.
    """
    if tokenizer is None:
        return None
    save = getattr(tokenizer, "save_pretrained", None)
    if not callable(save):
        # The roles of special tokens, as of padding, are not in a tokenizer of that package.
        wrapper = "transformers.PreTrainedTokenizerFast(tokenizer_object=..., pad_token=...)"
        is_raw = type(tokenizer).__module__.partition(".")[0] == "tokenizers"
        remedy = f"; {wrapper} puts that around it" if is_raw else ""
        raise BindError(
            f"'tokenizer' must have 'save_pretrained', as those of transformers; got "
            f"{type(tokenizer).__name__!r}{remedy}"
        )
    return lambda folder: save(str(folder))
