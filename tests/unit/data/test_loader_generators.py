"""Random number generators of loaders, seeded for a while."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from curricle import seeding
from curricle.data.loader_generators import seeded_loader


def order(loader: DataLoader[object], seed: int, epoch: int) -> list[int]:
    with seeded_loader(loader, seed, "test", epoch):
        return [int(index) for index in loader.sampler]


def test_the_order_is_a_function_of_seed_and_index() -> None:
    data = TensorDataset(torch.arange(50))
    plain = DataLoader(data, shuffle=True)
    explicit = DataLoader(data, shuffle=True, generator=torch.Generator())
    for loader in (plain, explicit):
        assert order(loader, 0, 1) == order(loader, 0, 1)
        assert order(loader, 0, 1) != order(loader, 0, 2)
        assert order(loader, 0, 1) != order(loader, 1, 1)


def test_generators_are_put_back_after_an_error() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(torch.arange(5)), shuffle=True, generator=generator)
    with seeding.scoped(0, "elsewhere"):
        before = generator.get_state(), torch.get_rng_state()
        with pytest.raises(ValueError, match="empty"), seeded_loader(loader, 0, "test"):
            max(torch.rand(2, generator=generator)[:0].tolist())
        assert torch.equal(generator.get_state(), before[0])
        assert torch.equal(torch.get_rng_state(), before[1])
