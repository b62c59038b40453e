"""Student and teacher of a Trainer: which head they have, and how they are prepared."""

from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto import modeling_auto

from curricle.errors import BindError, short_reason
from curricle.models.peft_adapters import base_of

HEADS = (
    ("MASKED_LM", "AutoModelForMaskedLM"),
    ("CAUSAL_LM", "AutoModelForCausalLM"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "AutoModelForSeq2SeqLM"),
    ("SEQUENCE_CLASSIFICATION", "AutoModelForSequenceClassification"),
    ("TOKEN_CLASSIFICATION", "AutoModelForTokenClassification"),
    ("QUESTION_ANSWERING", "AutoModelForQuestionAnswering"),
    ("IMAGE_CLASSIFICATION", "AutoModelForImageClassification"),
    ("AUDIO_CLASSIFICATION", "AutoModelForAudioClassification"),
)
"""Tables of transformers with the classes of a head, and the class that loads any of them."""


def load_teacher(
    name_or_path: str,
    student: nn.Module,
    *,
    revision: str | None,
    keywords: Mapping[str, object],
    argument: str,
) -> nn.Module:
    """Return a teacher with the head of the student.

    Args:
        name_or_path: Folder, or name on the Hub.
        student: The model that learns.
        revision: Branch, tag or commit; None for the newest.
        keywords: Further arguments of `from_pretrained`.
        argument: Name of the argument with the name or folder, for error messages.

    Raises:
        BindError: If the student's class has none of the known heads, or transformers cannot load
            the teacher.
    """
    name = type(base_of(student)).__name__
    for table, auto in HEADS:
        if name in getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").values():
            arguments = dict(keywords) if revision is None else {"revision": revision, **keywords}
            return _loaded(auto, name_or_path, arguments, argument)
    raise BindError(
        f"{argument!r} must be a model where the student is {name!r}, whose head is unknown; "
        f"got the name {name_or_path!r}; load it with its own class"
    )


def _loaded(auto: str, path: str, keywords: Mapping[str, object], argument: str) -> nn.Module:
    """Return the model that a class of transformers loads.

    Raises:
        BindError: If it cannot; its reason is given.
    """
    try:
        teacher: nn.Module = getattr(transformers, auto).from_pretrained(path, **keywords)
    except Exception as error:
        # Families raise errors without a common base class for a damaged folder or an argument.
        place = "is a folder here" if Path(path).is_dir() else "no folder of that name is here"
        options = f" with {sorted(keywords)}" if keywords else ""
        raise BindError(
            f"{argument!r} must be a folder or a name of the Hub that {auto} loads{options}; got "
            f"{path!r} ({place}); transformers says: {short_reason(error)}"
        ) from error
    return teacher


def shifts_labels(student: nn.Module) -> bool:
    """Return whether the student's own loss shifts labels by one, as causal models do.

    Args:
        student: The model that learns.
    """
    model = base_of(student)
    # Decoders after an encoder read inputs that are shifted already.
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    loss_type = getattr(model, "loss_type", None)
    if loss_type is not None:
        return LOSS_MAPPING.get(loss_type) is ForCausalLMLoss
    # Classes whose name does not say it, as that of GPT-2; some are in both tables.
    name = type(model).__name__
    causal, masked = (
        getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").values()
        for table in ("CAUSAL_LM", "MASKED_LM")
    )
    return name in causal and name not in masked


def disable_dropout(model: nn.Module) -> None:
    """Set the probability of every dropout of a model to zero.

    Args:
        model: The model; probabilities in modules and in attributes of attention are changed.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):  # noqa: SLF001 - the only base
            module.p = 0.0
        for name, probability in vars(module).items():
            # Attention without a module for it passes the number to its kernel.
            if "dropout" in name and isinstance(probability, float):
                setattr(module, name, 0.0)
