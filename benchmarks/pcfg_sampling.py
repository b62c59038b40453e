"""How many tokens of a grammar are drawn in a second, and how many are laid out in batches?

Strings come with the symbols above each token and the ends of spans; batches add rows, masks and
tensors. One thread; the rate is that of the fastest repetition, the others having been disturbed.
Run: python benchmarks/pcfg_sampling.py [--quick]
"""

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from curricle.data.synthetic.derivations import Sampler
from curricle.data.synthetic.grammars import GRAMMARS, Grammar
from curricle.data.synthetic.pcfg import CausalStrings, MaskedStrings
from curricle.seeding import numpy_generator

Draw = Callable[[int], int]
BATCHES = (64, 512)


def main() -> None:
    """Print a line for each grammar and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short repetitions")
    tokens, repetitions = (200_000, 3) if parser.parse_args().quick else (5_000_000, 7)
    torch.set_num_threads(1)
    print(f"numpy {np.__version__}, {platform.machine()}, 1 thread; million tokens a second")
    print(f"{'grammar':10}{'batch':>7}{'strings':>10}{'masked':>10}{'causal':>10}")
    for grammar in GRAMMARS.values():
        for size in BATCHES:
            rates = [fastest(draw, tokens, repetitions) / 1e6 for draw in draws(grammar, size)]
            print(f"{grammar.name:10}{size:7}" + "".join(f"{rate:10.1f}" for rate in rates))


def draws(grammar: Grammar, size: int) -> tuple[Draw, ...]:
    """Return functions from a step to the number of tokens that they have drawn for it."""
    sampler = Sampler(grammar)
    masked = MaskedStrings(grammar, batch_size=size, seed=0)
    causal = CausalStrings(grammar, batch_size=size, seed=0)
    return (
        lambda step: len(sampler.draw(size, numpy_generator(0, "benchmark", step)).tokens),
        lambda step: masked.batch(step).num_tokens,
        lambda step: causal.batch(step).num_tokens,
    )


def fastest(draw: Draw, tokens: int, repetitions: int) -> float:
    """Return the tokens a second of the best repetition that draws at least so many tokens."""
    draw(0)
    rates = []
    for _ in range(repetitions):
        started, done, step = time.perf_counter(), 0, 0
        while done < tokens:
            step += 1
            done += draw(step)
        rates.append(done / (time.perf_counter() - started))
    return max(rates)


if __name__ == "__main__":
    main()
