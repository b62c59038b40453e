"""Memory of a rank, communication, throughput and target stores for large models, computed.

Nothing is trained and no GPU is needed: models of the sizes of Llama 3 run without data, as in
`curricle.plan_ranks`. The rates below are assumptions; the page prints them with the results.

    python benchmarks/scaling.py
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import final

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import curricle
from curricle.data.batch import Batch
from curricle.memory import unallocated
from curricle.reports.formatting import short
from curricle.training.binding.stage_sizes import SizeProbe
from curricle.training.setup.rank_costs import Passes, RankCosts, StageSizes, rank_costs

VOCABULARY, WINDOW = 128_256, 4_096
MATRIX_RATE = 400e12
"""FLOPs a second of a GPU while it computes: half of an H100's measured rate of 798e12."""
LINKS = ((8, 300e9), (1_024, 40e9))
"""Bytes a second that a rank sends, up to so many ranks: inside of a machine, and between some."""
USABLE = 72e9
"""Bytes of an 80 GB GPU that the counted memory may take."""
DAY = 86_400
STORED = {
    "12 draws of the logits": 30.6,
    "32 likeliest logits": 132.6,
    "states projected to 768, int8": 772.6,
    "states projected to 768, bfloat16": 1_536.6,
}
"""Bytes a position in a store of targets, as measured by benchmarks/target_store.py."""
RANKS = (1, 8, 64, 256, 1_024)
WAYS = (("ddp", False), ("fsdp2", False), ("fsdp2", True))
"""Divisions of the work, those with less communication first."""
Measured = list[tuple[str, StageSizes, Passes]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama."""

    layers: int
    width: int
    inner: int
    heads: int
    tied: bool = False

    def build(self, dtype: torch.dtype) -> torch.nn.Module:
        """Return the model without memory."""
        config = LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=8,
            vocab_size=VOCABULARY,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=self.tied,
        )
        with unallocated():
            model: torch.nn.Module = LlamaForCausalLM(config)
            return model.to(dtype)


LLAMA_1B = Shape(layers=16, width=2_048, inner=8_192, heads=32, tied=True)
LLAMA_8B = Shape(layers=32, width=4_096, inner=14_336, heads=32)
PAIRS = {
    "1B": (LLAMA_1B, Shape(layers=8, width=768, inner=2_048, heads=16, tied=True)),
    "8B": (LLAMA_8B, LLAMA_1B),
    "70B": (Shape(layers=80, width=8_192, inner=28_672, heads=64), LLAMA_8B),
}
"""Teacher and student of about an eighth of its parameters."""


def measure(teacher: torch.nn.Module, student: torch.nn.Module) -> Measured:
    """Return sizes and passes of a layer stage at half depth and of the stage of logits."""
    curriculum = curricle.extraction(
        total="100 steps",
        pairs=(curricle.LayerPair(student=0.5, teacher=0.5),),
        layer_fraction=0.5,
        final_objective=curricle.MatchLogits(chunk="auto"),
    )
    probe = SizeProbe(
        curricle.tapped(student),
        curricle.tapped(teacher),
        optimizer=curricle.AdamW(learning_rate=1e-4),
        settings=curricle.TrainingSettings(precision="bfloat16"),
    )
    ids = torch.zeros(1, WINDOW, dtype=torch.int64)
    batch = Batch(inputs={"input_ids": ids}, selected=torch.arange(WINDOW))
    stages = []
    for stage in curriculum.stages:
        sizes, (passes,) = probe.measure(stage, [batch])
        stages.append((stage.name, sizes, passes))
    return stages


def fitting(sizes: StageSizes, passes: Passes, ranks: int) -> RankCosts:
    """Return the first division of the work that fits into a GPU; the last if none does."""
    for parallel, is_teacher_shared in WAYS:
        costs = rank_costs(
            sizes,
            passes,
            parallel="none" if ranks == 1 else parallel,  # type: ignore[arg-type]
            num_processes=ranks,
            is_teacher_shared=is_teacher_shared and ranks > 1,
        )
        if costs.memory <= USABLE:
            break
    return costs


def seconds(flops: float, sent: float, ranks: int) -> tuple[float, float]:
    """Return the seconds of a step that a rank computes, and those that it sends."""
    link = next(rate for most, rate in LINKS if ranks <= most)
    return flops / MATRIX_RATE, sent / link


def rows(name: str, measured: Measured, ranks: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a pair of models."""
    for (stage, sizes, passes), number in product(measured, ranks):
        costs = fitting(sizes, passes, number)
        way = costs.parallel + (", shared teacher" if costs.is_teacher_shared else "")
        computed, sent = seconds(passes.student_flops + passes.teacher_flops, costs.sent, number)
        alone, _ = seconds(passes.student_flops, 0, number)
        bound = "-" if number == 1 else "compute" if computed >= sent else "links"
        fits = costs.memory <= USABLE
        yield (
            name,
            stage,
            f"{number:,}",
            way if fits else f"{way}: does not fit",
            *(f"{part / 1e9:.1f}" for part in (costs.memory, costs.teacher, costs.sent)),
            tokens_per_day(number, max(computed, sent)) if fits else "-",
            bound if fits else "-",
            tokens_per_day(number, alone),
        )


def tokens_per_day(ranks: int, step: float) -> str:
    """Return the tokens of a day."""
    return short(ranks * WINDOW * DAY / step)


def table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    marks = ["---" if number < 2 else "---:" for number in range(len(heads))]
    lines = (" | ".join(row) for row in (heads, marks, *cells))
    return "\n".join(f"| {line} |" for line in lines)


def main(names: Sequence[str], ranks: Sequence[int]) -> None:
    """Print the tables."""
    sizes, scaled, parts = list[list[str]](), list[tuple[str, ...]](), list[list[str]]()
    for name in names:
        teacher, student = (
            shape.build(dtype)
            for shape, dtype in zip(PAIRS[name], (torch.bfloat16, torch.float32), strict=True)
        )
        counts = [sum(item.numel() for item in each.parameters()) for each in (teacher, student)]
        measured = measure(teacher, student)
        for stage, _, passes in measured:
            flops = (passes.teacher_flops / WINDOW, passes.student_flops / WINDOW)
            numbers = [f"{number / 1e9:.3g}" for number in (*counts, *flops)]
            sizes.append([name, stage, *numbers])
        for stage, shapes, passes in measured:
            costs = rank_costs(
                shapes, passes, parallel="fsdp2", num_processes=64, is_teacher_shared=True
            )
            held = (
                costs.parameters, costs.gradients, costs.optimizer, costs.gathered,
                costs.teacher, costs.activations, costs.logits, costs.memory,
            )  # fmt: skip
            parts.append([name, stage, *(f"{number / 1e9:.2f}" for number in held)])
        scaled += rows(name, measured, ranks)
    heads = ("teacher", "stage", "billions: teacher", "student")
    print(table((*heads, "GFLOPs a token: teacher", "student"), sizes), end="\n\n")
    print(
        table(
            ("teacher", "stage", "parameters", "gradients", "optimizer", "gathered", "teacher",
             "activations", "logits", "in all"),
            parts,
        ),
        end="\n\n",
    )  # fmt: skip
    print(
        table(
            ("teacher", "stage", "GPUs", "division", "GB a rank", "teacher, GB", "GB sent a step",
             "tokens a day", "bound by", "student alone"),
            scaled,
        ),
        end="\n\n",
    )  # fmt: skip
    stores = [[kind, f"{size:,}", f"{size:.4g}"] for kind, size in STORED.items()]
    print(table(("targets", "bytes a token", "TB of 1T tokens"), stores))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--ranks", nargs="+", type=int, default=list(RANKS))
    parser.add_argument("--quick", action="store_true", help="the smallest pair on 8 GPUs")
    options = parser.parse_args()
    main(["1B"], [8]) if options.quick else main(options.teachers, options.ranks)
