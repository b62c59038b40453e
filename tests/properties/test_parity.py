"""The batch of a step follows from (seed, step) and the definition of parity."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.data.synthetic.parity import ParityStream

sizes = st.integers(1, 24).flatmap(
    lambda num_inputs: st.tuples(st.just(num_inputs), st.integers(1, num_inputs))
)


@given(size=sizes, batch_size=st.integers(1, 3000), seed=st.integers(0, 2**40), step=st.data())
def test_labels_are_products_whatever_was_read_before(
    size: tuple[int, int], batch_size: int, seed: int, step: st.DataObject
) -> None:
    num_inputs, degree = size

    def new() -> ParityStream:
        return ParityStream(num_inputs=num_inputs, degree=degree, batch_size=batch_size, seed=seed)

    used, wanted = new(), step.draw(st.integers(0, 10_000))
    used.batch(step.draw(st.integers(0, 10_000)))
    found, again = used.batch(wanted), new().batch(wanted)
    assert isinstance(found.inputs, Tensor)
    assert found.labels is not None
    assert torch.equal(1 - 2 * found.labels, found.inputs[:, :degree].prod(-1).long())
    assert isinstance(again.inputs, Tensor)
    assert torch.equal(found.inputs, again.inputs)


trees = st.integers(1, 3).flatmap(
    lambda depth: st.tuples(st.just(depth), st.integers(1, 3), st.integers(0, 5))
)


@given(tree=trees, batch_size=st.integers(1, 200), seed=st.integers(0, 2**40))
def test_the_label_of_a_tree_is_the_leaf_to_which_its_parities_lead(
    tree: tuple[int, int, int], batch_size: int, seed: int
) -> None:
    depth, degree, spare = tree
    num_inputs = (2**depth - 1) * degree + spare
    stream = ParityStream(
        num_inputs=num_inputs, degree=degree, batch_size=batch_size, seed=seed, depth=depth
    )
    batch = stream.batch(3)
    assert isinstance(batch.inputs, Tensor)
    assert batch.labels is not None
    for signs, label in zip(batch.inputs, batch.labels, strict=True):
        node = 1
        for _ in range(depth):
            product = signs[(node - 1) * degree : node * degree].prod()
            node = 2 * node if product > 0 else 2 * node + 1
        assert label == node - 2**depth


@given(size=sizes, batch_size=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_tokens_are_the_same_bits_and_are_asked_at_the_last_position(
    size: tuple[int, int], batch_size: int, seed: int
) -> None:
    num_inputs, degree = size
    signs, tokens = (
        ParityStream(
            num_inputs=num_inputs,
            degree=degree,
            batch_size=batch_size,
            seed=seed,
            encoding=encoding,
        ).batch(1)
        for encoding in ("signs", "tokens")
    )
    assert isinstance(signs.inputs, Tensor)
    assert isinstance(tokens.inputs, Tensor)
    assert torch.equal(1 - 2 * tokens.inputs, signs.inputs.long())
    assert tokens.labels is not None
    assert signs.labels is not None
    assert torch.equal(tokens.labels, signs.labels)
    assert tokens.selected is not None
    last = torch.stack(torch.unravel_index(tokens.selected, tokens.inputs.shape))
    assert torch.equal(last[0], torch.arange(batch_size))
    assert (last[1] == num_inputs - 1).all()
