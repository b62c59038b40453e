"""Choices that curricle makes about a model without being asked, as notes for the plan.

Each note is one sentence with a lower-case start and no trailing period. Choices that would make
a run wrong are refused instead: outputs that are no scores of classes, and labels in another order.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from curricle.errors import BindError
from curricle.models.tapped import Inputs, TappedModel

Role = Literal["student", "teacher"]
PROBLEMS = ("regression", "multi_label_classification")
"""Kinds of head in a Hugging Face configuration whose outputs are no logits of one distribution."""
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
PROBED_ROWS = 64
"""Rows of logits that are compared with probabilities."""
ROUTER_LOSSES = ("router_aux_loss_coef", "aux_loss_alpha", "router_z_loss_coef")
"""Factors of losses that keep a mixture of experts balanced, in configurations."""


def model_notes(
    model: TappedModel, who: Role, inputs: Inputs, logits_note: str = ""
) -> tuple[str, ...]:
    """Return the decisions about a model.

    Args:
        model: The model.
        who: Its role in the run.
        inputs: First batch of the run.
        logits_note: Part of the output that a pass has taken for the logits; see `Activations`.
    """
    notes = [
        *getattr(model, "notes", ()),
        logits_note,
        _router_note(model) if who == "student" else "",
        _rank_note(model) if who == "student" else "",
        _padding_note(model, inputs),
    ]
    return tuple(f"{who}: {note}" for note in notes if note)


def probability_note(logits: Tensor) -> str:
    """Return a note if logits look like probabilities; empty if they do not.

    Objectives apply a softmax to the output of a model, so a model with a softmax of its own would
    be trained through two.

    Args:
        logits: Logits of a first batch, classes last.
    """
    rows = logits.detach().flatten(0, -2)[:PROBED_ROWS].float()
    if rows.shape[-1] <= 1 or not len(rows) or bool((rows < 0).any()):
        return ""
    if not torch.allclose(rows.sum(-1), rows.new_ones(len(rows)), atol=1e-3):
        return ""
    return "its logits look like probabilities: rows are positive and sum to 1; return the logits"


def check_problem_type(model: TappedModel, who: Role) -> None:
    """Check that the configuration of a model is for one class an example.

    Args:
        model: A model; its logits are read.
        who: Its role in the run.

    Raises:
        BindError: If it is for regression, or for several labels of one example.
    """
    problem = getattr(_config(model), "problem_type", None)
    if problem in PROBLEMS:
        raise BindError(
            f"'problem_type' of the {who} must be 'single_label_classification' or unset to "
            f"compare its logits as probabilities of classes; got {problem!r}, whose outputs are "
            f"independent of each other; MatchLogits(divergence={{'kind': 'squared_error'}}) "
            f"matches such outputs, as 'objective' of one_shot or 'final_objective' of others"
        )


def check_pair(student: TappedModel, teacher: TappedModel) -> tuple[str, ...]:
    """Return notes about classes and vocabularies of a pair with compared logits.

    Args:
        student: The model that learns.
        teacher: The model that teaches.

    Raises:
        BindError: If both have the same label under different ids.
    """
    configs = _config(student), _config(teacher)
    return tuple(filter(None, [_label_note(*map(_labels, configs)), _token_note(*configs)]))


def _label_note(student: Mapping[int, str], teacher: Mapping[int, str]) -> str:
    """Return which label names differ.

    Raises:
        BindError: If a name has another id.
    """
    if student == teacher:
        return ""
    # A name may stand for several classes, as `crane` does in ImageNet; then it says nothing.
    counts = Counter([*student.values()]), Counter([*teacher.values()])
    ids = {name: place for place, name in teacher.items() if counts[1][name] == 1}
    for place, name in sorted(student.items()):
        if counts[0][name] == 1 and ids.get(name, place) != place:
            raise BindError(
                f"'id2label' of student and teacher must agree to compare their logits; id "
                f"{place} is {name!r} for the student, and the teacher's id {ids[name]} has that "
                f"name; build the student with the teacher's id2label"
            )
    differing = [place for place in sorted(student) if teacher.get(place) != student[place]]
    if not differing or not teacher:
        return ""
    place = differing[0]
    return (
        f"labels have other names: id {place} is {student[place]!r} for the student and "
        f"{teacher.get(place)!r} for the teacher; they are compared by id"
    )


def _token_note(student: object, teacher: object) -> str:
    """Return which special token has another id, as in another vocabulary of the same size."""
    for name in SPECIAL_TOKENS:
        ids = getattr(student, name, None), getattr(teacher, name, None)
        if all(isinstance(number, int) for number in ids) and ids[0] != ids[1]:
            return (
                f"{name!r} is {ids[0]} for the student and {ids[1]} for the teacher, so their "
                f"vocabularies may differ; logits are compared by token id"
            )
    return ""


def _labels(config: object) -> Mapping[int, str]:
    """Return the names of the classes, lower case; none for the placeholders of transformers."""
    names = getattr(config, "id2label", None)
    if not isinstance(names, Mapping):
        return {}
    labels = {int(place): str(name).casefold() for place, name in names.items()}
    return {} if all(name == f"label_{place}" for place, name in labels.items()) else labels


def _config(model: TappedModel) -> object:
    """Return a model's configuration; stored targets stand for a model without a module."""
    return getattr(getattr(model, "module", None), "config", None)


def _router_note(model: TappedModel) -> str:
    config = _config(model)
    for holder in (config, getattr(config, "text_config", None)):
        for name in ROUTER_LOSSES:
            if getattr(holder, name, None):
                return (
                    f"its router loss ({name} = {getattr(holder, name):g}) stays out of the loss: "
                    f"only the objectives of the stages are minimized"
                )
    return ""


def _rank_note(model: TappedModel) -> str:
    """Return a note if ranks of adapters are meant to change while they are trained."""
    if not callable(getattr(getattr(model, "module", None), "update_and_allocate", None)):
        return ""
    return (
        "its adapters (AdaLoRA) keep the ranks that they begin with, since no step calls "
        "update_and_allocate, and their penalty for dependent directions stays out of the loss"
    )


def _padding_note(model: TappedModel, inputs: Inputs) -> str:
    """Return whether padding on the left shifts positions that a table numbers from 0."""
    if isinstance(inputs, Tensor) or "position_ids" in inputs:
        return ""
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim == 0 or bool(mask[..., 0].all()):
        return ""
    table = _position_table(_config(model), getattr(model, "module", None))
    if not table:
        return ""
    return (
        f"padding on the left shifts its positions, which {table!r} numbers from 0; pad on the "
        f"right or give 'position_ids'"
    )


def _position_table(config: object, module: nn.Module | None) -> str:
    """Return the path of a table of absolute positions; empty if there is none.

    Tables with a padding index belong to families that number positions without padding.
    """
    length = getattr(config, "max_position_embeddings", None)
    named = {} if module is None else dict(module.named_modules())
    return next(
        (
            path
            for path, table in named.items()
            if type(table) is nn.Embedding
            and table.num_embeddings == length
            and table.padding_idx is None
            and ("pos" in path or path.endswith("wpe"))
        ),
        "",
    )
