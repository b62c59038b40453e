"""Keys of examples: what a model is shown decides, not where and beside whom it is shown."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from curricle.data.batch import Batch
from curricle.data.example_keys import data_counts, example_keys, selected_places

IDS = torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9], [0, 0, 0, 1]])


def keys(batch: Batch, *, selected: bool = False) -> list[bytes]:
    return list(example_keys(batch, selected=selected))


def padded(ids: torch.Tensor, lengths: list[int], **fields: Any) -> Batch:
    valid = torch.arange(ids.shape[1]) < torch.tensor(lengths).unsqueeze(1)
    return Batch(inputs={"input_ids": ids}, valid=valid, **fields)


@given(st.permutations(range(3)), st.integers(1, 3))
def test_order_and_batch_size_do_not_matter(order: list[int], size: int) -> None:
    wanted = keys(Batch(inputs=IDS))
    parts = Batch(inputs=IDS[order]).chunks(size)
    found = [key for part in parts for key in keys(part)]
    assert found == [wanted[number] for number in order]


def test_every_token_matters() -> None:
    changed = [IDS.clone() for _ in range(4)]
    for position, one in enumerate(changed):
        one[0, position] += 1
    found = {keys(Batch(inputs=one))[0] for one in (IDS, *changed)}
    assert len(found) == 5


def test_features_are_told_apart_from_tokens() -> None:
    numbers = torch.ones(1, 4)
    assert keys(Batch(inputs=numbers)) != keys(Batch(inputs=numbers.long()))


def test_padding_does_not_matter() -> None:
    short, long = padded(IDS[:1, :3], [3]), padded(IDS, [3, 4, 4])
    assert keys(short) == keys(long)[:1]


def test_padding_in_front_is_told_apart() -> None:
    ids = torch.tensor([[0, 5, 6]])
    in_front = Batch(inputs=ids, valid=torch.tensor([[False, True, True]]))
    assert keys(in_front) != keys(padded(torch.tensor([[5, 6, 0]]), [2]))


def test_a_mask_that_tells_no_more_than_where_data_are_is_left_out() -> None:
    plain = padded(IDS, [3, 4, 4])
    mask = plain.valid
    assert mask is not None
    masked = Batch(inputs={"input_ids": IDS, "attention_mask": mask.long()}, valid=mask)
    assert keys(masked) == keys(plain)
    other = Batch(inputs={"input_ids": IDS, "attention_mask": torch.eye(3, 4).long()}, valid=mask)
    assert set(keys(other)).isdisjoint(keys(plain))


def test_the_type_of_ids_does_not_matter_and_that_of_names_does() -> None:
    named = Batch(inputs={"input_ids": IDS})
    assert keys(named) == keys(Batch(inputs={"input_ids": IDS.int()}))
    assert set(keys(named)).isdisjoint(keys(Batch(inputs={"tokens": IDS})))


def test_selected_positions_matter_only_if_asked() -> None:
    one, other = (Batch(inputs=IDS, selected=torch.tensor(places)) for places in ([0, 5], [1, 5]))
    assert keys(one) == keys(other)
    told, other_told = keys(one, selected=True), keys(other, selected=True)
    assert [a == b for a, b in zip(told, other_told, strict=True)] == [False, True, True]


def test_selected_positions_are_counted_over_data() -> None:
    valid = torch.tensor([[False, True, True, True], [True, True, False, False]])
    batch = Batch(inputs=IDS[:2], selected=torch.tensor([1, 3, 5]), valid=valid)
    assert [one.tolist() for one in selected_places(batch)] == [[0, 2], [1]]


def test_without_a_selection_all_positions_are() -> None:
    assert [one.tolist() for one in selected_places(padded(IDS, [3, 1, 0]))] == [[0, 1, 2], [0], []]


def test_examples_without_positions_have_one() -> None:
    assert data_counts(Batch(inputs=torch.ones(2, 7))).tolist() == [1, 1]
    assert data_counts(Batch(inputs=IDS)).tolist() == [1, 1, 1]
    assert data_counts(Batch(inputs=IDS, length=4)).tolist() == [4, 4, 4]


def test_keys_have_their_full_length() -> None:
    many = Batch(inputs=torch.arange(2000).reshape(-1, 1))
    found = example_keys(many, selected=False)
    assert found.nbytes == 16 * 2000
    assert len(np.unique(found)) == 2000


def test_an_encoder_is_not_cut_where_a_decoder_has_ended() -> None:
    def decoded(source: torch.Tensor, target: torch.Tensor) -> Batch:
        inputs = {"input_ids": source, "decoder_input_ids": target}
        valid = torch.tensor([[True, True, False, False]])
        return Batch(inputs=inputs, valid=valid)

    first = keys(decoded(IDS[:1], IDS[1:2]))
    # The source differs where the target is padded, and the other way round.
    assert keys(decoded(IDS[:1] + torch.tensor([0, 0, 0, 1]), IDS[1:2])) != first
    assert keys(decoded(IDS[:1], IDS[1:2] + torch.tensor([0, 0, 0, 1]))) == first


def test_the_mask_of_an_encoder_is_part_of_what_is_shown() -> None:
    valid = torch.tensor([[True, True, True, False]])
    inputs = {"input_ids": IDS[:1], "decoder_input_ids": IDS[1:2]}
    masks = [torch.tensor([[1, 1, 1, 0]]), torch.tensor([[1, 1, 1, 1]])]
    found = [keys(Batch(inputs={**inputs, "attention_mask": mask}, valid=valid)) for mask in masks]
    assert found[0] != found[1]


def test_selected_positions_are_those_of_the_decoder() -> None:
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :2]}
    batch = Batch(inputs=inputs, selected=torch.tensor([1, 2, 5]))
    assert [one.tolist() for one in selected_places(batch)] == [[1], [0], [1]]
