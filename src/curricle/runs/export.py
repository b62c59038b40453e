"""Finished models in the form that other programs read.

Hugging Face models become folders that `from_pretrained` reads, with weights, configuration,
tokenizer and, where the model has one, generation configuration; adapters of PEFT are merged.
Encoders of sentences become folders that `SentenceTransformer` reads. Other modules become a
weights file. With them goes a model card made from the records of the run and, on request, an ONNX
file whose outputs agree with torch.

Design: a folder appears whole or not at all, so a refused ONNX file leaves nothing behind.
"""

import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, final

from torch import nn

from curricle.data.batch import Batch
from curricle.errors import BindError, CheckpointError, reason
from curricle.files import new_folder, usable_folder, write_text
from curricle.models.hooked import HookedModel
from curricle.models.peft_adapters import base_of, is_tuned
from curricle.models.sentence_encoder import SentenceEncoder
from curricle.models.tapped import Inputs, TappedModel
from curricle.models.unwrapping import unwrapped
from curricle.models.weights import save_weights, serializing
from curricle.records import Record, RunRecord
from curricle.runs.card import CARD, Card, model_card
from curricle.runs.export_arguments import (
    NO_NAMES,
    WriteTokenizer,
    check_outputs,
    checked_names,
    names_of_classes,
    onnx_inputs,
    tokenizer_writer,
    write_names,
)
from curricle.runs.onnx_files import (
    LOGITS,
    ONNX,
    TOLERANCE,
    USUAL_NAMES,
    OnnxCheck,
    OutputNames,
    check_onnx_packages,
    write_onnx,
)
from curricle.runs.run_match import records_of_model
from curricle.training.loop.resuming import FINISHED
from curricle.training.setup.arguments import named_arguments, require_model

EXPORT = "model"
CONFIG = "config.json"
"""Configuration of a model of transformers in its folder."""
SAMPLE = 4
"""Examples with which an ONNX file is traced and compared."""
LIBRARIES = ("transformers", "sentence_transformers", "timm")
"""Packages whose models the Hub loads by their own library."""
SENTENCE_TRANSFORMERS = "sentence-transformers"
"""Library and layout of encoders of sentences, by its name on the Hub."""
Layout = Literal["sentence-transformers"]
"""Layouts of folders that are not that of the model's class."""
MAIN = "__main__"
"""Name of the module of the script that runs."""
MODULE_OF_USER = "your_module"
"""Name in the code of a card for a class that was defined in a notebook."""
PYTORCH = "pytorch"
"""Library of all other models, by its name on the Hub."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""Name of a model on the Hub: owner and model."""
MEANINGS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("mean_squared_error", "pearson", "spearman"), "values")
    | dict.fromkeys(
        ("cosine_similarity", "similarity_spearman", "teacher_cosine", "teacher_spearman"),
        "embeddings",
    )
)
"""Meaning of a single output tensor by the metric of the run, where it is not logits."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Result of an export."""

    folder: Path
    """The folder."""
    files: tuple[str, ...]
    """Names of its files."""
    merged: bool
    """Whether adapters were merged into the weights."""
    onnx: OnnxCheck | None = None
    """Agreement of the ONNX file with torch, if there is one."""
    notes: tuple[str, ...] = ()
    """Omissions of the export, one sentence each."""


@named_arguments
def export(  # noqa: PLR0913 - the public call; everything but two has a default
    student: nn.Module | TappedModel,
    to: str | Path,
    *,
    run: str | Path | None = None,
    tokenizer: object = None,
    teacher: str = "",
    base_model: str | None = None,
    layout: Layout | None = None,
    class_names: Sequence[str] | Mapping[int, str] = (),
    onnx: Batch | Inputs | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a finished model for use without curricle, with a model card.

    Args:
        student: The model; it is not changed, and adapters of PEFT are merged in a copy. The ONNX
            file of `tapped(model, output=...)` has this output.
        to: Folder to make; it must not exist or be empty.
        run: The `output_dir` of `distill` that trained the student, whose records the card states;
            its final weights must be those of the student, before or after a merge of adapters and
            in any precision. None makes a short card.
        tokenizer: An object with `save_pretrained`, written beside a model that reads text.
        teacher: Description of the teacher for the card.
        base_model: Name on the Hub of the model that was trained further; None takes it from the
            configuration of the student, if that has one.
        layout: `sentence-transformers` for a folder that `SentenceTransformer` reads, which the
            student must be: a `SentenceEncoder` or a `SentenceTransformer`. None takes the layout
            of the student's class.
        class_names: Names of the classes in the order of their numbers, or by number as in
            `teacher.config.id2label`, for the configuration and the card; as many as the outputs
            of the student, where its head or an ONNX file shows them. Empty keeps those in the
            configuration of the student.
        onnx: Inputs, or a batch of them, with which an ONNX file is traced and compared with torch;
            None writes none. Labels in a mapping are left out, which `notes` of the result say; an
            output with the name of an input ends in `_output` there.
        tolerance: Largest difference between outputs of both, relative to the largest number of
            an output or to 1 if all are smaller.

    Returns:
        Folder, files and the comparison.

    Raises:
        BindError: If the student has another layout, `tokenizer` cannot be saved, names of classes
            are not as many as its outputs, `onnx` is no inputs, adapters cannot be merged, packages
            for ONNX are missing, or its outputs differ by more than the tolerance; nothing is
            written then.
        CheckpointError: If the folder is taken, or `run` is not a finished run that ended with the
            weights of the student.
    """
    require_model("student", student)
    module, _ = unwrapped(student if isinstance(student, nn.Module) else student.module)
    records = () if run is None else records_of_model(run, module)
    # Of tapped models only those of curricle declare an output.
    entry = student.output if isinstance(student, HookedModel) else ""
    model, is_merged = merged(module)
    check_layout(model, layout)
    sample, notes = (None, ()) if onnx is None else onnx_inputs(onnx)
    class_names = checked_names(model, class_names, has_default_output=not entry)
    card = Card(
        title=_title(records),
        class_name=type(model).__name__,
        library=library_of(model),
        loading=loading_code(model, Path(to).name),
        records=records,
        teacher=teacher,
        base_model=base_model or base_name(model),
        class_names=class_names or names_of_classes(model),
    )
    return write_export(
        model,
        to,
        card,
        class_names=class_names,
        write_tokenizer=tokenizer_writer(tokenizer),
        onnx=sample,
        tolerance=tolerance,
        names=OutputNames(entry=entry, default=output_name(records)),
        is_merged=is_merged,
        notes=notes,
    )


def write_export(  # noqa: PLR0913 - one argument a part of the folder
    model: nn.Module,
    to: str | Path,
    card: Card,
    *,
    class_names: Mapping[int, str] = NO_NAMES,
    write_tokenizer: WriteTokenizer | None = None,
    onnx: Inputs | None = None,
    tolerance: float = TOLERANCE,
    names: OutputNames = USUAL_NAMES,
    is_merged: bool = False,
    notes: tuple[str, ...] = (),
) -> Exported:
    """Write the folder of an export in one piece.

    Args:
        model: The model, without adapters.
        to: Folder to make.
        card: Content of its card.
        class_names: Names that replace those of the configuration; empty leaves it as it is.
        write_tokenizer: Writes the tokenizer beside the model.
        onnx: Inputs for an ONNX file; None writes none.
        tolerance: Largest difference of its outputs.
        names: Names of its outputs.
        is_merged: Whether adapters were merged.
        notes: Notes of the result.

    Returns:
        Folder, files and the comparison.

    Raises:
        BindError: If the outputs for ONNX are not as many as the names of classes.
        CheckpointError: If the folder is taken.
    """
    if onnx is not None:
        check_onnx_packages()
    folder = _free_folder(to)
    check: OnnxCheck | None = None
    with new_folder(folder) as temporary:
        _write_files(model, temporary)
        write_names(class_names, temporary / CONFIG)
        if write_tokenizer is not None:
            write_tokenizer(temporary)
        if onnx is not None:
            path = temporary / ONNX
            check = write_onnx(model, _first(onnx), path, tolerance=tolerance, names=names)
            check_outputs(class_names, check)
        agreement = "" if check is None else str(check)
        write_text(temporary / CARD, model_card(replace(card, onnx=agreement)))
        files = tuple(sorted(path.name for path in temporary.iterdir()))
    return Exported(folder=folder, files=files, merged=is_merged, onnx=check, notes=notes)


def write_model(
    module: nn.Module,
    folder: Path | None,
    write_tokenizer: WriteTokenizer | None = None,
) -> None:
    """Write a Hugging Face model as such, below its run folder.

    Args:
        module: The model; any other is left alone.
        folder: Its run folder; None writes nothing.
        write_tokenizer: Writes the tokenizer beside the model; None if its data are no text.
    """
    save_pretrained: Callable[[str], None] | None = getattr(module, "save_pretrained", None)
    if folder is not None and save_pretrained is not None:
        path = folder / EXPORT
        # A folder that is there whole or not at all, also on a full disk.
        with new_folder(path) as temporary, serializing(path):
            save_pretrained(str(temporary))
            if write_tokenizer is not None:
                write_tokenizer(temporary)


def merged(module: nn.Module) -> tuple[nn.Module, bool]:
    """Return a model with its adapters of PEFT merged, and whether it has any.

    Args:
        module: A model; one with adapters is copied and not changed.

    Raises:
        BindError: If its adapters cannot be merged.
    """
    has_adapters = base_of(module) is not module or any(map(is_tuned, module.modules()))
    if not has_adapters:
        return module, False
    merge = getattr(module, "merge_and_unload", None)
    if not callable(merge):
        raise BindError(
            f"'student' must be a model of peft.get_peft_model with adapters that can be merged, "
            f"such as LoRA; got {type(module).__name__} without 'merge_and_unload'"
        )
    try:
        model: nn.Module = copy.deepcopy(module).merge_and_unload()  # type: ignore[operator]
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise BindError(
            f"'student' must have adapters that can be merged; PEFT failed with: {reason(error)}"
        ) from error
    return model, True


def output_name(records: Sequence[Record]) -> str:
    """Return the name of an output that is a single tensor, by the metric of the run.

    Args:
        records: Records of the run; empty if they are unknown.
    """
    run = next(iter(records), None)
    return MEANINGS.get(run.metric, LOGITS) if isinstance(run, RunRecord) else LOGITS


def library_of(model: nn.Module) -> str:
    """Return the library that loads a model, by its name on the Hub."""
    if isinstance(model, SentenceEncoder):
        return SENTENCE_TRANSFORMERS
    roots = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    name = next((library for library in LIBRARIES if library in roots), PYTORCH)
    return name.replace("_", "-")


def check_layout(model: nn.Module, layout: str | None) -> None:
    """Check that a model can be written in a layout.

    Args:
        model: The model.
        layout: Name of the layout; None for that of its class.

    Raises:
        BindError: If the layout is unknown, or the model has no pooling for it.
    """
    if layout not in (None, SENTENCE_TRANSFORMERS):
        raise BindError(f"'layout' must be {SENTENCE_TRANSFORMERS!r} or left out; got {layout!r}")
    if layout is not None and library_of(model) != SENTENCE_TRANSFORMERS:
        raise BindError(
            f"'student' must be an encoder with a pooling for the layout {layout!r}; got "
            f"{type(model).__name__}; curricle.SentenceEncoder(encoder, pooling='mean') puts one "
            f"around an encoder of transformers, and 'kind: sentence_encoder' does in a spec"
        )


def base_name(model: nn.Module) -> str | None:
    """Return the name on the Hub from which a model was loaded; None if it is none or unknown."""
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    # A folder on this machine may look the same, and is of no use to others.
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name) or Path(name).exists():
        return None
    return name


def _write_files(model: nn.Module, folder: Path) -> None:
    save_pretrained: Callable[[str], None] | None = getattr(model, "save_pretrained", None)
    if save_pretrained is None:
        save_weights(model, folder / FINISHED)
        return
    with serializing(folder):
        save_pretrained(str(folder))


def _free_folder(to: str | Path) -> Path:
    """Return the folder of an export.

    Raises:
        CheckpointError: If something is there already.
    """
    folder = usable_folder(to, "to")
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(
            f"'to' must be a folder that does not exist or is empty; got {str(folder)!r}, which "
            f"holds {min(path.name for path in folder.iterdir())!r}"
        )
    return folder


def _first(inputs: Inputs) -> Inputs:
    """Return the first examples of inputs."""
    if isinstance(inputs, Mapping):
        return {name: tensor[:SAMPLE] for name, tensor in inputs.items()}
    return inputs[:SAMPLE]


def _title(records: tuple[Record, ...]) -> str:
    opening = next(iter(records), None)
    return f"Student of {opening.method}" if isinstance(opening, RunRecord) else "Student"


def loading_code(model: nn.Module, name: str, sizes: str = "...") -> str:
    """Return Python code that loads an exported model.

    Args:
        model: The model.
        name: Name of its folder.
        sizes: Arguments of its class, for a model without configuration.
    """
    kind = type(model)
    if library_of(model) == SENTENCE_TRANSFORMERS:
        return (
            f"from sentence_transformers import SentenceTransformer\n\n"
            f"model = SentenceTransformer({name!r})\n"
            f'embeddings = model.encode(["A text.", "Another text."])'
        )
    if hasattr(model, "save_pretrained") and hasattr(kind, "from_pretrained"):
        root = kind.__module__.partition(".")[0]
        home = root if root in LIBRARIES else _home(kind)
        load = f"model = {kind.__name__}.from_pretrained({name!r})"
        return f"from {home} import {kind.__name__}\n\n{load}"
    return (
        f"from safetensors.torch import load_model\n\n"
        f"from {_home(kind)} import {kind.__name__}\n\n"
        f"model = {kind.__name__}({sizes})\n"
        f"load_model(model, {f'{name}/{FINISHED}'!r})\nmodel.eval()"
    )


def _home(kind: type) -> str:
    """Return the name of the module of a class; of the script that runs, that of its file."""
    if kind.__module__ != MAIN:
        return kind.__module__
    main = sys.modules[MAIN]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        # A package run by `python -m` has the name of its main module.
        return str(spec.name)
    path = getattr(main, "__file__", None)
    name = "" if path is None else Path(path).stem
    # Notebooks have no file, and a file may have a name that no statement can import.
    return name if name.isidentifier() else MODULE_OF_USER
