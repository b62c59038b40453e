"""Check that models of paired texts predict each token from those before it.

Pairing joins positions up to which both tokenizers have read the same characters. A masked language
model has read the characters after them, too: the next token is no prediction then, and its hidden
states belong to another text.
"""

import torch
from torch import Tensor

from curricle.data.batch import Inputs
from curricle.errors import BindError
from curricle.models.restoring import evaluation_mode
from curricle.models.tapped import TappedModel

TOLERANCE = 32
"""Change of a logit, in rounding errors of the largest, up to which it counts as rounding.

Decoders change by none, mixtures of experts by a few, and a fresh BERT of 16 by 800.
"""


def check_causal(model: TappedModel, inputs: Inputs, role: str) -> None:
    """Check that the logits at a position do not depend on later tokens.

    Args:
        model: The model; it is run twice in evaluation mode and stays as it is.
        inputs: Token ids where the model lies, also with an attention mask.
        role: `student` or `teacher`, for the error message.

    Raises:
        BindError: If they do.
    """
    if isinstance(inputs, Tensor):
        return
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    last = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
    # The first token of the row is an id of the vocabulary, and nearly always another one.
    changed = {**inputs, "input_ids": ids.scatter(-1, last, ids[..., :1])}
    with evaluation_mode(model.module), model.open_taps((), logits=True) as forward:
        before, after = (forward(batch).logits for batch in (inputs, changed))
    if before is None or after is None or before.ndim < 3:  # noqa: PLR2004 - example, position, class
        return
    difference = (before[:, 0] - after[:, 0]).abs().max()
    if difference > TOLERANCE * torch.finfo(before.dtype).eps * before.abs().max():
        raise BindError(
            f"{role!r} of paired texts must predict each token from those before it, as a decoder "
            f"does; its first logits change with the last token, as those of a masked language "
            f"model; give both models one tokenizer, or take decoders"
        )
