"""ONNX files of finished models, compared with torch number by number.

`torch.onnx` exports the forward pass in evaluation mode, from the inputs of the model to its
outputs, which have their names in torch: the logits, or a declared entry, start and end logits of
answers, all heads of several. An output named as an input gets the ending `_output`. Batch size and
length are free wherever torch can trace them with symbols. ONNX Runtime then computes the outputs
of the sample, and of a smaller subset of it along free axes; a difference from torch beyond the
tolerance is an error.

Axes: example, then those of the model's inputs.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from curricle.colocation import beside
from curricle.errors import BindError, reason
from curricle.extras import imported
from curricle.models.calls import run_module
from curricle.models.outputs import named_outputs
from curricle.models.restoring import modes_kept
from curricle.models.tapped import REFUSALS, Inputs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX = "model.onnx"
LOGITS = "logits"
"""Name of an output without one in torch."""
OUTPUT_SUFFIX = "_output"
"""End of the name of an output that would have that of an input."""
TOLERANCE = 1e-4
"""Largest difference from torch by default, relative to the largest number of an output or to 1 if
all are smaller; float32 of two programs differs by about 1e-6."""
EXTRA, USE = "onnx", "ONNX files"
LARGEST_FILE = 1_900_000_000
"""Bytes of weights in the file itself, whose format allows 2 GiB; more go into a second file."""
LEAST = 2
"""Smallest size of an axis that can be traced as free: torch takes 1 for a constant."""
LONGEST_REASON = 300
"""Characters of an error of torch in a message."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxCheck:
    """Agreement of an ONNX file with torch."""

    inputs: Mapping[str, tuple[str, ...]]
    """Axes of each input: a size, or a name for a free one."""
    difference: float
    """Largest difference of an output, relative to its largest number or to 1."""
    tolerance: float
    """Largest difference that is allowed."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the first output in the comparisons."""
    outputs: tuple[str, ...] = (LOGITS,)
    """Names of the outputs."""

    def __str__(self) -> str:
        """Return the agreement in a sentence."""
        sizes = " and ".join("x".join(map(str, shape)) for shape in self.shapes)
        first, *others = self.outputs
        more = "".join(f" and {name}" for name in others)
        return (
            f"{first} of shape {sizes}{more} differ from torch by at most "
            f"{self.difference:.1e} (allowed: {self.tolerance:.1e})"
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OutputNames:
    """Names of the outputs in an ONNX file."""

    entry: str = ""
    """Declared entry of the output, as in `tapped(model, output=...)`; empty for the logits."""
    default: str = LOGITS
    """Name of an output that is a single tensor."""


USUAL_NAMES = OutputNames()
"""Names of the outputs where nothing is declared."""


@final
class _Outputs(nn.Module):
    """Model whose output is a tuple of tensors with names."""

    def __init__(self, model: nn.Module, names: OutputNames) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the outputs."""
        return tuple(_outputs(self.model, inputs, self.names).values())


def check_onnx_packages() -> None:
    """Check that the packages of the extra are installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        imported(package, package=package, extra=EXTRA, use=USE)


def write_onnx(
    module: nn.Module,
    sample: Inputs,
    path: Path,
    *,
    tolerance: float = TOLERANCE,
    names: OutputNames = USUAL_NAMES,
) -> OnnxCheck:
    """Write a model as an ONNX file and compare its outputs with torch.

    Args:
        module: The model; its modes are kept.
        sample: Inputs of the model, at least two examples.
        path: The file; weights of more than 1.9 GB go into a second one beside it.
        tolerance: Largest difference of an output, relative to its largest number or to 1.
        names: Names of the outputs.

    Returns:
        The agreement.

    Raises:
        BindError: If torch cannot export the model, or outputs differ by more than the tolerance.
    """
    check_onnx_packages()
    sample = _beside_weights(sample, module)
    tensors = _named(sample)
    if any(len(tensor) < LEAST for tensor in tensors.values()):
        sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise BindError(
            f"'onnx' must be inputs of at least {LEAST} examples, so that their number stays "
            f"free; got {sizes}"
        )
    with modes_kept(module), torch.no_grad():
        module.eval()
        _write(module, sample, path, names)
        return _check(module, sample, path, tolerance=tolerance, names=names)


def _write(module: nn.Module, sample: Inputs, path: Path, names: OutputNames) -> None:
    """Export the forward pass.

    Raises:
        BindError: If torch cannot; its reason is given.
    """
    free = torch.export.Dim.AUTO
    axes = {name: dict.fromkeys(range(item.ndim), free) for name, item in _named(sample).items()}
    shapes = (axes if isinstance(sample, Mapping) else next(iter(axes.values())),)
    try:
        with _quiet():
            outputs = list(_outputs(module, sample, names))
            program = torch.export.export(_Outputs(module, names), (sample,), dynamic_shapes=shapes)
            torch.onnx.export(
                program,
                f=path,
                dynamo=True,
                input_names=list(axes),
                output_names=outputs,
                verbose=False,
                external_data=_num_bytes(module) > LARGEST_FILE,
            )
    except Exception as error:
        # The errors of torch's compilers have no common base class.
        raise BindError(
            f"'onnx' must be of a model that torch.onnx can export; {type(module).__name__} is "
            f"not: {_cause(error)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide messages of torch's exporter about its own code and about packages that are not needed.

    Yields:
        Nothing.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check(
    module: nn.Module, sample: Inputs, path: Path, *, tolerance: float, names: OutputNames
) -> OnnxCheck:
    """Compare outputs of ONNX Runtime and torch on the sample and on a subset of it.

    Returns:
        The agreement.

    Raises:
        BindError: If they differ by more than the tolerance.
    """
    session = _open(path)
    inputs = {entry.name: tuple(map(str, entry.shape)) for entry in session.get_inputs()}
    difference, shapes = 0.0, []
    outputs: tuple[str, ...] = ()
    for subset, expected in _subsets(module, sample, inputs, names):
        outputs = tuple(expected)
        arrays = _run(session, subset, inputs, outputs)
        for array, tensor in zip(arrays, expected.values(), strict=True):
            scale = max(1.0, tensor.abs().max().item())
            gap = (array - tensor).abs().max().item() / scale
            # A comparison with NaN is never true, so that NaN is a difference.
            difference = gap if not gap <= difference else difference
        shapes.append(tuple(arrays[0].shape))
    if not difference <= tolerance:
        raise BindError(
            f"'tolerance' of ONNX must not be exceeded: {', '.join(outputs)} of ONNX Runtime and "
            f"torch differ by {difference:.1e}, more than {tolerance:.1e}; nothing was written"
        )
    return OnnxCheck(
        inputs=inputs,
        difference=difference,
        tolerance=tolerance,
        shapes=tuple(shapes),
        outputs=outputs,
    )


def _open(path: Path) -> "InferenceSession":
    """Return a session of ONNX Runtime with a file.

    Raises:
        BindError: If it does not accept the file.
    """
    runtime = _runtime()
    try:
        session: InferenceSession = runtime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        # The errors of ONNX Runtime have no common base class.
        raise BindError(
            f"'onnx' must be of a model that ONNX Runtime can run; it does not open the file: "
            f"{_cause(error)}"
        ) from error
    return session


def _run(
    session: "InferenceSession", subset: Inputs, inputs: Iterable[str], outputs: Iterable[str]
) -> list[Tensor]:
    """Return the outputs of ONNX Runtime.

    Raises:
        BindError: If it cannot run the file.
    """
    # Inputs that the model ignores are not in the file.
    arrays = {name: item.cpu().numpy() for name, item in _named(subset).items() if name in inputs}
    try:
        computed = session.run(list(outputs), arrays)
    except Exception as error:
        # The errors of ONNX Runtime have no common base class.
        raise BindError(
            f"'onnx' must be of a model that ONNX Runtime can run; inputs of shapes "
            f"{[list(array.shape) for array in arrays.values()]} fail: {_cause(error)}"
        ) from error
    return [torch.from_numpy(array).float() for array in computed]


def _subsets(
    module: nn.Module,
    sample: Inputs,
    inputs: Mapping[str, tuple[str, ...]],
    names: OutputNames = USUAL_NAMES,
) -> list[tuple[Inputs, dict[str, Tensor]]]:
    """Return the sample and a smaller subset that the model takes, with outputs from torch."""
    subsets = [(sample, _on_cpu(_outputs(module, sample, names)))]
    # Half of the positions where the model takes them; an image may need its size.
    for num_axes in (None, 1):
        subset = _narrowed(sample, inputs, num_axes)
        try:
            subsets.append((subset, _on_cpu(_outputs(module, subset, names))))
        except REFUSALS:
            continue
        break
    return subsets


def _narrowed(
    sample: Inputs, inputs: Mapping[str, tuple[str, ...]], num_axes: int | None
) -> Inputs:
    """Return one example with half of the other sizes, along the free ones of the first axes."""
    subsets = {}
    for name, tensor in _named(sample).items():
        subset = tensor
        for axis, size in list(enumerate(inputs.get(name, ())))[:num_axes]:
            if not size.isdecimal():
                subset = subset.narrow(axis, 0, max(1, tensor.shape[axis] // 2) if axis else 1)
        subsets[name] = subset.contiguous()
    return subsets if isinstance(sample, Mapping) else next(iter(subsets.values()))


def _outputs(module: nn.Module, inputs: Inputs, names: OutputNames) -> dict[str, Tensor]:
    outputs = named_outputs(run_module(module, inputs), names.entry, names.default)
    # The tensors of a file share one space of names.
    taken = set(_named(inputs)) | set(outputs)
    renamed: dict[str, Tensor] = {}
    for name, tensor in outputs.items():
        free = name
        while free in _named(inputs) or (free != name and free in taken):
            free += OUTPUT_SUFFIX
        taken.add(free)
        renamed[free] = tensor
    return renamed


def _on_cpu(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float().cpu() for name, tensor in outputs.items()}


def _num_bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _named(inputs: Inputs) -> Mapping[str, Tensor]:
    """Return inputs by their names in the file."""
    return inputs if isinstance(inputs, Mapping) else {"inputs": inputs}


def _beside_weights(inputs: Inputs, module: nn.Module) -> Inputs:
    """Return inputs in the memory of a model."""
    weight = next(module.parameters(), None)
    if weight is None:
        return inputs
    if isinstance(inputs, Mapping):
        return {name: beside(tensor, weight) for name, tensor in inputs.items()}
    return beside(inputs, weight)


def _cause(error: Exception) -> str:
    """Return the reason of an error of another program in one line of limited length."""
    return " ".join(reason(error).split())[:LONGEST_REASON]


def _runtime() -> ModuleType:
    return imported("onnxruntime", package="onnxruntime", extra=EXTRA, use=USE)
