"""The batch of a step follows from (seed, step) and the definition of parity."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.data.parity import ParityStream

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
