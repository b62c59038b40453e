"""Batches made of the items that a user's loader collates.

An item may be a `Batch`, inputs alone, `(inputs, labels)`, or a mapping of named tensors with
optional `labels`, `attention_mask`, `teacher_inputs`, `alignment` and `matched`.

Axes: example (rows of a batch), position (places in a sequence), selected (scored positions).

Design: whether labels and inputs have positions is decided once, on the first item, by rules that
the caller may override (`declared_positions`). Which positions are scored is declared by the labels
(-100 is ignored) and the attention mask, never by a token's id: a padding token that is also the
end of a sentence must not hide real ends. Accidents of labels are looked for in the first batch
only.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, final

from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from curricle.data.batch import ENOUGH, SEQUENCE_AXES, Batch, Inputs, data_mask, named
from curricle.data.label_checks import LABEL_ALIASES, way_out
from curricle.errors import DataError

PEEKED = 3
"""Entries of a list that are looked at for texts."""
IGNORED = -100
"""Label of a position that is not scored, as in torch's losses and in transformers."""
Positions = Literal["example", "token"]
"""Meaning of the second axis of labels, and of inputs without a name."""
SOUND = frozenset({"input_values", "input_features"})
"""Names of the samples or spectrograms of sound in models of transformers."""


@final
class _Parts(NamedTuple):
    """Parts of an item."""

    inputs: Inputs
    labels: Tensor | None
    teacher_inputs: Inputs | None = None
    alignment: Tensor | None = None
    matched: Tensor | None = None


def declared_positions(item: object, *, next_token: bool = False) -> Positions:
    """Return whether examples have positions, by the first item of a loader.

    With labels of two axes or more, `token` if they are whole numbers (classes of positions, or of
    the pixels of a map) or have the positions of token inputs, and `example` for other floats
    (several values of an example).
    Otherwise `token` if an input is named as tokens or there is an attention mask.

    Args:
        item: First item that the loader collates.
        next_token: As in `batch_of`.
    """
    if isinstance(item, Batch):
        return "token" if item.has_positions else "example"
    inputs, labels, *_ = _parts(item, next_token=next_token)
    plain = Batch(inputs=inputs)
    if labels is not None and labels.ndim >= SEQUENCE_AXES:
        is_placed = plain.has_positions and tuple(labels.shape) == plain.positions
        return "token" if is_placed or not labels.is_floating_point() else "example"
    return "token" if plain.has_positions or data_mask(inputs) is not None else "example"


def batch_of(item: object, *, next_token: bool, positions: Positions) -> Batch:
    """Return an item of a loader as a batch.

    Args:
        item: Collated item of the loader.
        next_token: Whether labels are those of their own position, and are to be shifted by one;
            without labels they are the input ids.
        positions: `token` if labels of two axes belong to positions, and inputs without a name have
            positions on their second axis; `example` if labels belong to whole examples.

    Raises:
        DataError: If it cannot be read.
    """
    if isinstance(item, Batch):
        if next_token:
            raise DataError(
                "'next_token' has no effect on a `Batch`, whose labels have their places"
            )
        return item
    inputs, labels, teacher_inputs, alignment, matched = _parts(item, next_token=next_token)
    plain = Batch(inputs=inputs)
    if labels is None and next_token:
        raise DataError(
            "'next_token' must find labels of every position, or token ids of shape (example, "
            "position) to be them; got none"
        )
    if labels is not None:
        labels = _by_position(labels, plain, positions)
        _require_labels(labels, plain, next_token=next_token, positions=positions)
        labels = labels if labels.is_floating_point() else labels.long()
    are_placed = labels is not None and labels.ndim == SEQUENCE_AXES and positions == "token"
    valid = _valid(plain, labels, are_placed=are_placed)
    length = selected = None
    if labels is not None and are_placed:
        # A length that inputs and mask have already is left out.
        if valid is None and tuple(plain.leading.shape[:SEQUENCE_AXES]) != tuple(labels.shape):
            length = labels.shape[1]
        selected, labels = _scored(labels, valid, next_token=next_token)
    elif positions == "token" and valid is None and not plain.has_positions:
        length = _second_axis(plain)
    return Batch(
        inputs=inputs,
        labels=labels,
        selected=selected,
        valid=valid,
        length=length,
        teacher_inputs=teacher_inputs,
        alignment=alignment,
        matched=None if matched is None else matched.bool(),
    )


def _by_position(labels: Tensor, plain: Batch, positions: Positions) -> Tensor:
    """Return labels of a map (example, row, column) as those of positions, row by row."""
    # Inputs of a map have at least as many axes.
    is_map = SEQUENCE_AXES < labels.ndim <= plain.leading.ndim and not plain.has_positions
    return labels.flatten(1) if is_map and positions == "token" else labels


def _second_axis(plain: Batch) -> int:
    """Return the number of positions of inputs without a name.

    Raises:
        DataError: If they have no second axis.
    """
    shape = tuple(plain.leading.shape)
    if len(shape) < SEQUENCE_AXES:
        raise DataError(f"'positions' must be 'example' for inputs of shape {shape}; got 'token'")
    return shape[1]


def check_first(item: object, first: Batch, *, next_token: bool) -> None:
    """Check that the labels of the first batch are not something else, as copies of the inputs.

    Args:
        item: Collated item of the loader.
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
    _require_no_mask(item, first)
    if next_token:
        _require_unshifted(item)


def _parts(item: object, *, next_token: bool = False) -> _Parts:
    """Return the inputs and labels of an item, with those of the teacher if it has any.

    Args:
        item: Collated item of the loader.
        next_token: Whether the input ids are the labels if there are none.

    Raises:
        DataError: If the item has none of the known forms.
    """
    inputs: object = item
    labels = teacher_inputs = alignment = matched = None
    if isinstance(item, Sequence) and len(item) in {1, 2}:
        inputs, labels = item[0], item[1] if len(item) > 1 else None
    if isinstance(inputs, Mapping):
        fields = dict(inputs)
        labels = fields.pop("labels", labels)
        teacher_inputs = fields.pop("teacher_inputs", None)
        alignment = fields.pop("alignment", None)
        matched = fields.pop("matched", None)
        # Texts come first: their labels are renamed by what reads them.
        columns = [field for name, field in fields.items() if name not in LABEL_ALIASES]
        if labels is None and not any(map(_has_texts, columns)):
            _require_known_name(fields)
        inputs = _tensors(fields)
    if not isinstance(inputs, (Tensor, dict)) or (isinstance(inputs, dict) and not inputs):
        raise DataError(
            "an item of 'loader' must be a Batch, inputs, (inputs, labels) or a mapping of named "
            f"tensors; got {type(item).__name__}{_way_to_tensors(item)}"
        )
    if labels is None and next_token:
        labels = _ids(inputs)
    return _Parts(
        inputs,
        _tensor("labels", labels),
        _tensors(teacher_inputs)
        if isinstance(teacher_inputs, Mapping)
        else _tensor("teacher_inputs", teacher_inputs),
        _tensor("alignment", alignment),
        _tensor("matched", matched),
    )


def _ids(inputs: Inputs) -> Tensor | None:
    """Return the token ids of a decoder among inputs; None without any."""
    ids = inputs if isinstance(inputs, Tensor) else inputs.get("input_ids")
    # The labels of an encoder-decoder are another text than what its encoder reads.
    if ids is None or Batch(inputs=inputs).is_decoded:
        return None
    return None if ids.is_floating_point() or ids.ndim != SEQUENCE_AXES else ids


def _tensor(name: str, value: object) -> Tensor | None:
    """Return a tensor, or None for none.

    Raises:
        DataError: If it is something else.
    """
    if value is not None and not isinstance(value, Tensor):
        raise DataError(
            f"{name!r} must be a tensor; got {type(value).__name__}{_way_to_tensors(value)}"
        )
    return value


def _tensors(fields: Mapping[str, object]) -> dict[str, Tensor]:
    """Return named inputs in the order in which earlier versions have digested them.

    Raises:
        DataError: If one is not a tensor.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in sorted(fields.items(), key=lambda pair: pair[0] != "input_ids"):
        if not isinstance(tensor, Tensor):
            raise DataError(
                f"{name!r} must be a tensor for a model to read it; got {type(tensor).__name__}"
                f"{_way_to_tensors(tensor)}"
            )
        tensors[name] = tensor
    return tensors


def _has_texts(value: object) -> bool:
    """Return whether a value is a text, or a list of texts or of rows with texts."""
    if isinstance(value, str):
        return True
    if isinstance(value, Mapping):
        return any(map(_has_texts, value.values()))
    return isinstance(value, Sequence) and any(map(_has_texts, value[:PEEKED]))


def _way_to_tensors(value: object) -> str:
    """Return the end of an error sentence on how a collate function makes tensors of a value."""
    if _has_texts(value):
        return (
            "; texts are read by the 'collate_fn' of the DataLoader: for sentence encoders "
            "curricle.integrations.sentence_transformers.TextCollator(tokenizer), for other models "
            "their tokenizer; curricle.text_stream makes next-token data of texts"
        )
    first = value[0] if isinstance(value, Sequence) and len(value) > 0 else None
    if isinstance(first, Mapping):
        return (
            "; these are rows, of which torch.utils.data.default_collate makes tensors, or "
            "transformers.DataCollatorWithPadding(tokenizer) if they are token ids of several "
            "lengths"
        )
    if first is not None and not isinstance(first, Tensor):
        return (
            "; torch.tensor(...) makes one of numbers in the 'collate_fn' of the DataLoader, and "
            "transformers.DataCollatorWithPadding(tokenizer) pads token ids"
        )
    return "; torch.as_tensor(...) makes one" if hasattr(value, "__array__") else ""


def _require_known_name(fields: Mapping[str, object]) -> None:
    """Check that labels are not under a name of which models would be given them.

    Raises:
        DataError: If they are.
    """
    for name in LABEL_ALIASES:
        if name in fields:
            column = fields[name]
            form = (
                f"of shape {tuple(column.shape)}"
                if isinstance(column, Tensor)
                else type(column).__name__
            )
            raise DataError(
                f"'labels' must be the name of the labels in a mapping; got {name!r} {form}; "
                f"batch['labels'] = batch.pop({name!r}) in the collate function renames them, and "
                f"a curricle.Batch may have an input of that name"
            )


def _valid(
    plain: Batch, labels: Tensor | None, *, are_placed: bool
) -> Bool[Tensor, "example position"] | None:
    """Return where the scored positions hold data; None if nothing declares it.

    An encoder's mask is no mask of the decoder's positions: there counts the decoder's own mask,
    and without it the labels, which are ignored where a sequence has ended.

    Raises:
        DataError: If a mask has other axes, or other positions than ids or labels.
    """
    name = "decoder_attention_mask" if plain.is_decoded else "attention_mask"
    mask = named(plain.inputs).get(name)
    if mask is None:
        return labels != IGNORED if labels is not None and are_placed and plain.is_decoded else None
    if mask.ndim != SEQUENCE_AXES:
        raise DataError(
            f"{name!r} must have the axes example and position; got {tuple(mask.shape)}"
        )
    expected = None
    if labels is not None and are_placed:
        expected, owner = tuple(labels.shape), "'labels'"
    elif plain.has_positions:
        expected, owner = plain.positions, "the token ids"
    if expected is not None and tuple(mask.shape) != expected:
        raise DataError(
            f"{name!r} must have the positions of {owner}, {expected}; got {tuple(mask.shape)}"
            f"{'' if labels is None else way_out(labels) or _transcripts(plain)}"
        )
    return mask.bool()


def _transcripts(plain: Batch) -> str:
    """Return the remedy for transcripts of sound as labels; empty for other inputs."""
    if not SOUND & named(plain.inputs).keys():
        return ""
    return (
        "; transcripts, as CTC fits them, are no labels of positions, and no label loss reads "
        "them: leave 'labels' out of the batches, and MatchLogits matches the teacher at every "
        "frame"
    )


def _require_no_mask(item: object, first: Batch) -> None:
    """Check that the second of two tensors is not an attention mask.

    Only the first batch is looked at: a mask has this form in every batch, labels by chance in one.

    Raises:
        DataError: If each row of it is ones up to an end, or from a start on, and otherwise zeros.
    """
    if not isinstance(item, Sequence) or len(item) != 2 or first.selected is None:  # noqa: PLR2004
        return
    second, inputs = item[1], first.leading
    # Frames of floats may have labels of this form, as in voice detection.
    if inputs.is_floating_point() or second.shape != inputs.shape or not bool(second.any(1).all()):
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
    distinguish the two forms: constant or periodic sequences alone are not rejected.

    Raises:
        DataError: If every scored label is the token after its position, and enough are not the
            token at it.
    """
    inputs, labels, *_ = _parts(item)
    plain = Batch(inputs=inputs)
    ids = plain.leading
    if labels is None or ids.ndim != SEQUENCE_AXES or ids.shape != labels.shape:
        return
    scored = labels[:, :-1] != IGNORED
    if (valid := _valid(plain, labels, are_placed=True)) is not None:
        scored = scored & valid[:, :-1] & valid[:, 1:]
    compared, here, after = (tokens[scored] for tokens in (labels[:, :-1], ids[:, :-1], ids[:, 1:]))
    if int((compared != here).sum()) >= ENOUGH and bool((compared == after).all()):
        raise DataError(
            f"'labels' must be the token at their own position where 'next_token=True' shifts them "
            f"by one; all {len(compared)} compared labels of the first batch are the token after "
            f"it, as if shifted before; leave 'next_token' out, or give the input ids as labels"
        )


def _require_labels(
    labels: Tensor, plain: Batch, *, next_token: bool, positions: Positions
) -> None:
    """Check that labels belong to the examples, or to their positions.

    Raises:
        DataError: If not.
    """
    if labels.ndim > SEQUENCE_AXES:
        raise DataError(
            f"'labels' of maps must be whole numbers, or positions='token' of curricle.stream must "
            f"declare one number a pixel; got shape {tuple(labels.shape)}"
            f"{way_out(labels)}"
        )
    leading, shape = tuple(plain.leading.shape), tuple(labels.shape)
    expected = leading[:1]
    if positions == "token" and labels.ndim == SEQUENCE_AXES:
        # Without token inputs, as with images, the labels declare the positions.
        is_free = not plain.has_positions and not next_token
        expected = shape if is_free and shape[:1] == leading[:1] else leading[:SEQUENCE_AXES]
    if (shape if positions == "token" else shape[:1]) != expected or not shape:
        raise DataError(
            f"'labels' must be one an example or one a position of {leading}; got shape {shape}"
            f"{'' if next_token else way_out(labels)}"
        )
    if next_token and (labels.ndim == 1 or positions == "example"):
        raise DataError("'next_token' must find labels of every position; got one an example")
    if labels.ndim == 1 and not labels.is_floating_point() and bool((labels == IGNORED).any()):
        raise DataError(f"'labels' of whole examples cannot be ignored; got {IGNORED}")


def _scored(
    labels: Shaped[Tensor, "example position"],
    valid: Bool[Tensor, "example position"] | None,
    *,
    next_token: bool,
) -> tuple[Int[Tensor, " selected"], Shaped[Tensor, " selected"]]:
    """Return the flat positions with compared logits and their labels."""
    is_scored = labels != IGNORED
    if valid is not None:
        is_scored = is_scored & valid
    if next_token:
        # Logits at t predict the token at t + 1; both must hold data, as left padding shows.
        labels, is_scored = labels.roll(-1, dims=1), is_scored.roll(-1, dims=1)
        is_scored[:, -1] = False
        if valid is not None:
            is_scored = is_scored & valid
    selected = is_scored.flatten().nonzero().squeeze(1)
    return selected, labels.flatten()[selected]
