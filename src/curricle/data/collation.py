"""Batches made of what a user's loader collates.

An item may be a `Batch`, inputs alone, `(inputs, labels)`, or a mapping of named tensors with
optional `labels` and `attention_mask`.

Axes: example (rows of a batch), position (places in a sequence), selected (scored positions).

Design: which positions are scored is said by the labels (-100 is ignored) and the attention mask,
never by a token's id: a padding token that is also the end of a sentence must not hide real ends.
What labels can be by chance in one batch is looked at in the first one only.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Int
from torch import Tensor

from curricle.data.labels import RENAMED, is_one_hot, way_out
from curricle.data.streams import ENOUGH, Batch, Inputs
from curricle.errors import DataError

IGNORED = -100
"""Label of a position that is not scored, as in torch's losses and in transformers."""
SEQUENCE_AXES = 2
"""Axes of what has positions: example and position."""


def batch_of(item: object, *, next_token: bool) -> Batch:
    """Return an item of a loader as a batch.

    Args:
        item: What the loader collates.
        next_token: Whether labels are those of their own position, and are to be shifted by one.

    Raises:
        DataError: If it cannot be read.
    """
    if isinstance(item, Batch):
        if next_token:
            raise DataError("'next_token' has no effect on a `Batch`, which says what is scored")
        return item
    inputs, labels = _parts(item)
    plain = Batch(inputs=inputs)
    if labels is None:
        if next_token:
            raise DataError("'next_token' must find labels of every position; got none")
        return Batch(inputs=inputs, valid=_valid(plain, None))
    _require_classes(labels, plain, next_token=next_token)
    valid = _valid(plain, labels)
    if labels.ndim == 1:
        return Batch(inputs=inputs, labels=labels.long(), valid=valid)
    selected, scored = _scored(labels.long(), valid, next_token=next_token)
    # What inputs and mask tell already is not told twice: batches of equal shape make blocks.
    is_told = valid is not None or tuple(plain.leading.shape[:2]) == tuple(labels.shape)
    return Batch(
        inputs=inputs,
        labels=scored,
        selected=selected,
        valid=valid,
        length=None if is_told else labels.shape[1],
    )


def check_first(item: object, first: Batch, *, next_token: bool) -> None:
    """Check that the labels of the first batch are not something else, as copies of the inputs.

    Args:
        item: What the loader collates.
        first: The batch that was made of it.
        next_token: As in `batch_of`.

    Raises:
        DataError: If they are.
    """
    if isinstance(item, Batch):
        return
    if not next_token and first.repeats_inputs and not first.is_decoded:
        raise DataError(
            "'next_token=True' must be given where 'labels' are the input ids, as causal "
            f"models of transformers have them; all {first.num_selected} labels of the first "
            "batch are the token at their own position"
        )
    _require_labels(item, first)
    if next_token:
        _require_unshifted(item)


def _parts(item: object) -> tuple[Inputs, Tensor | None]:
    """Return what a model reads and the labels, if there are any.

    Raises:
        DataError: If the item has none of the known forms.
    """
    inputs: object = item
    labels: object = None
    if isinstance(item, Sequence) and len(item) in {1, 2}:
        inputs, labels = item[0], item[1] if len(item) > 1 else None
    if isinstance(inputs, Mapping):
        named = dict(inputs)
        labels = named.pop("labels", labels)
        if labels is None:
            _require_known_name(named)
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise DataError(
                    f"{name!r} must be a tensor for a model to read it; got {type(tensor).__name__}"
                )
        # As earlier versions have ordered them, so that digests of data stay what they are.
        inputs = dict(sorted(named.items(), key=lambda pair: pair[0] != "input_ids"))
    if not isinstance(inputs, (Tensor, dict)) or (isinstance(inputs, dict) and not inputs):
        raise DataError(
            "an item of 'loader' must be a Batch, inputs, (inputs, labels) or a mapping of named "
            f"tensors; got {type(item).__name__}"
        )
    if labels is not None and not isinstance(labels, Tensor):
        raise DataError(f"'labels' must be a tensor; got {type(labels).__name__}")
    return inputs, labels


def _require_known_name(named: Mapping[str, object]) -> None:
    """Check that labels are not under a name of which models would be given them.

    Raises:
        DataError: If they are.
    """
    for name in RENAMED:
        if name in named:
            given = named[name]
            told = (
                f"of shape {tuple(given.shape)}"
                if isinstance(given, Tensor)
                else type(given).__name__
            )
            raise DataError(
                f"'labels' must be the name of the labels in a mapping; got {name!r} {told}; "
                f"batch['labels'] = batch.pop({name!r}) in the collate function renames them, and "
                f"a curricle.Batch may have an input of that name"
            )


def _valid(plain: Batch, labels: Tensor | None) -> Bool[Tensor, "example position"] | None:
    """Return where the positions that are scored hold data; None if nothing tells.

    An encoder's mask says nothing of the decoder's positions: there counts the decoder's own mask,
    and without it the labels, which are ignored where a sequence has ended.

    Raises:
        DataError: If a mask has other axes, or other positions than ids or labels.
    """
    name = "decoder_attention_mask" if plain.is_decoded else "attention_mask"
    mask = plain.inputs.get(name) if isinstance(plain.inputs, Mapping) else None
    if mask is None:
        is_told = plain.is_decoded and labels is not None and labels.ndim == SEQUENCE_AXES
        return labels != IGNORED if labels is not None and is_told else None
    if mask.ndim != SEQUENCE_AXES:
        raise DataError(
            f"{name!r} must have the axes example and position; got {tuple(mask.shape)}"
        )
    expected = None
    if labels is not None and labels.ndim == SEQUENCE_AXES:
        expected, owner = tuple(labels.shape), "'labels'"
    elif plain.has_tokens:
        expected, owner = plain.positions, "the token ids"
    if expected is not None and tuple(mask.shape) != expected:
        raise DataError(
            f"{name!r} must have the positions of {owner}, {expected}; got {tuple(mask.shape)}"
            f"{'' if labels is None else way_out(labels)}"
        )
    return mask.bool()


def _require_labels(item: object, first: Batch) -> None:
    """Check that the second of two tensors is not an attention mask.

    Only the first batch is looked at: a mask has this form in every batch, labels by chance in one.

    Raises:
        DataError: If each row of it is ones up to an end, or from a start on, and otherwise zeros.
    """
    if not isinstance(item, Sequence) or len(item) != 2 or first.selected is None:  # noqa: PLR2004
        return
    second = item[1]
    if first.is_flat or second.shape != first.leading.shape or not bool(second.any(1).all()):
        return
    steps = second.long().diff(dim=1)
    is_binary = bool(((second == 0) | (second == 1)).all())
    if is_binary and bool((steps.ne(0).sum(1) <= 1).all()):
        raise DataError(
            "the second of two tensors must be labels; got ones and zeros like an attention mask; "
            "a mapping tells them apart: {'input_ids': ids, 'attention_mask': mask}, or "
            "{'input_ids': ids, 'labels': labels} if they are labels"
        )


def _require_unshifted(item: object) -> None:
    """Check that labels which are to be shifted are not shifted already.

    Only the first batch is looked at, and only places where a token and the one after it differ
    tell the two forms apart: sequences of one token or of some period refuse nothing by themselves.

    Raises:
        DataError: If every scored label is the token after its position, and enough are not the
            token at it.
    """
    inputs, labels = _parts(item)
    plain = Batch(inputs=inputs)
    ids = plain.leading
    if labels is None or plain.is_flat or ids.ndim != SEQUENCE_AXES or ids.shape != labels.shape:
        return
    scored = labels[:, :-1] != IGNORED
    if (valid := _valid(plain, labels)) is not None:
        scored = scored & valid[:, :-1] & valid[:, 1:]
    told, here, after = (one[scored] for one in (labels[:, :-1], ids[:, :-1], ids[:, 1:]))
    if int((told != here).sum()) >= ENOUGH and bool((told == after).all()):
        raise DataError(
            f"'labels' must be the token at their own position where 'next_token=True' shifts them "
            f"by one; all {len(told)} compared labels of the first batch are the token after it, "
            f"as if shifted before; leave 'next_token' out, or give the input ids as labels"
        )


def _require_classes(labels: Tensor, plain: Batch, *, next_token: bool) -> None:
    """Check that labels are classes of the examples, or of the positions.

    Raises:
        DataError: If not.
    """
    if labels.is_floating_point() and is_one_hot(labels):
        raise DataError(
            f"'labels' must be whole numbers; got {labels.dtype} of shape {tuple(labels.shape)}"
            f"{way_out(labels)}"
        )
    if labels.is_floating_point():
        raise DataError(
            f"'labels' must be whole numbers; got {labels.dtype}; regression, soft labels and "
            f"several labels of an example are not there yet; without labels MatchHidden matches "
            f"the states of such models"
        )
    if labels.ndim > SEQUENCE_AXES:
        raise DataError(
            f"'labels' of maps, as in segmentation, cannot be fitted yet; got shape "
            f"{tuple(labels.shape)}{way_out(labels)}; leave them out to match logits and layers, "
            f"and evaluate by a function"
        )
    leading = tuple(plain.leading.shape)
    # Where no ids tell the positions of the logits, as with images, the labels do.
    is_free = not plain.has_tokens and labels.ndim == SEQUENCE_AXES
    expected = leading[:1] if is_free else leading[: labels.ndim]
    shape = tuple(labels.shape)
    if labels.ndim not in {1, 2} or (shape[:1] if is_free else shape) != expected:
        raise DataError(
            f"'labels' must be one an example or one a position of {leading}; got shape {shape}"
            f"{'' if next_token else way_out(labels)}"
        )
    if labels.ndim == 1 and next_token:
        raise DataError("'next_token' must find labels of every position; got one an example")
    if labels.ndim == 1 and bool((labels == IGNORED).any()):
        raise DataError(f"'labels' of whole examples cannot be ignored; got {IGNORED}")


def _scored(
    labels: Int[Tensor, "example position"],
    valid: Bool[Tensor, "example position"] | None,
    *,
    next_token: bool,
) -> tuple[Int[Tensor, " selected"], Int[Tensor, " selected"]]:
    """Return the flat positions whose logits are wanted and their labels."""
    wanted = labels != IGNORED
    if valid is not None:
        wanted = wanted & valid
    if next_token:
        # Logits at t tell the token at t + 1; both must hold data, as left padding shows.
        labels, wanted = labels.roll(-1, dims=1), wanted.roll(-1, dims=1)
        wanted[:, -1] = False
        if valid is not None:
            wanted = wanted & valid
    selected = wanted.flatten().nonzero().squeeze(1)
    return selected, labels.flatten()[selected]
