"""Tiny runs of every kind, each with the command that begins it and the one that goes on.

All learn (8,2)-parity with networks of a few neurons: what is tested is when files are written and
in which order they are read, which does not depend on the size of a network.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RUN, SPEC = "run", "spec.yaml"
Plain = dict[str, Any]
HIDDEN = {"kind": "hidden", "pair": {"student": 1, "teacher": 1}}
LEARNED = HIDDEN | {"projection": {"kind": "learned"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run and the commands that make it."""

    name: str
    spec: Plain
    arguments: tuple[str, ...]
    """Command that begins the run."""
    preparation: tuple[tuple[str, ...], ...] = ()
    """Commands before it, which are not disturbed."""
    is_resumed: bool = True
    """Whether `curricle resume` goes on; otherwise the same command does."""
    share: int = 2
    """How often the run is chosen, in proportion."""
    divides_targets: bool = False
    """Whether it captures targets in shares, whose files depend on interruptions."""
    is_short: bool = False
    """Whether it is one of the runs of the test suite."""

    def write_spec(self, folder: Path) -> None:
        """Write the spec into a folder."""
        (folder / SPEC).write_text(yaml.safe_dump(self.spec, sort_keys=False))

    def next_arguments(self, folder: Path) -> tuple[str, ...]:
        """Return the command that goes on with what lies in a folder."""
        origin = folder / RUN / "run.json"
        if not self.is_resumed or not origin.is_file():
            return self.arguments
        # A teacher that was prepared is no begun run of the command that follows.
        if json.loads(origin.read_text())["command"] != self.arguments[0]:
            return self.arguments
        return ("resume", RUN, *self.arguments[2:])


def tiny_spec(**fields: Any) -> Plain:
    """Return a spec that runs in about a second, with a checkpoint every few steps."""
    return {
        "seed": 0,
        "output_dir": RUN,
        "cache_dir": "cache",
        "task": {
            "kind": "parity",
            "num_inputs": 8,
            "degree": 2,
            "batch_size": 16,
            "evaluation_examples": 64,
        },
        "teacher": {
            "model": {"kind": "mlp", "widths": [16]},
            "total": "120 steps",
            "checkpoints": 4,
        },
        "student": {"kind": "mlp", "widths": [8]},
        "budget": "96 steps",
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
        "engine": {
            "eval_every": 20,
            "log_every": 5,
            "save_every": 8,
            "threads": 1,
            "device": "cpu",
        },
        **fields,
    }


def staged() -> Plain:
    """Return a curriculum with a trained head, a reset optimizer and a schedule of its own."""
    layers = {"name": "layer", "duration": "32 steps", "objectives": [LEARNED]}
    anchored = {
        "name": "anchored",
        "duration": "24 steps",
        "objectives": [
            HIDDEN | {"projection": {"kind": "sign"}, "center": True},
            {"kind": "logits", "weight": 0.1},
        ],
    }
    logits = {
        "name": "logits",
        "duration": "40 steps",
        "optimizer_state": "reset",
        "schedule": "own",
        "objectives": [{"kind": "logits"}],
    }
    return {"kind": "staged", "stages": [layers, anchored, logits]}


def exploding() -> Plain:
    """Return a curriculum whose second stage diverges at its declared rate."""
    calm = {"name": "calm", "duration": "40 steps", "objectives": [{"kind": "logits"}]}
    wild = {**calm, "name": "wild", "duration": "56 steps", "learning_rate_scale": 1e20}
    return {"kind": "staged", "stages": [calm, wild]}


def with_engine(**settings: Any) -> Plain:
    """Return engine settings of the tiny spec with some changed."""
    return {**tiny_spec()["engine"], **settings}


def ruled() -> Plain:
    """Return a curriculum whose stages end by each of the rules."""
    plateau = {"kind": "plateau", "at_most": "30 steps", "window": 6, "patience": 1}
    metric = {
        "kind": "metric",
        "metric": "accuracy",
        "reaches": 0.7,
        "direction": "above",
        "at_most": "30 steps",
    }
    unless = {"kind": "unless_explained", "duration": "12 steps", "share": 0.99}
    stages = [
        {"name": "explained", "duration": unless, "objectives": [LEARNED]},
        {"name": "plateau", "duration": plateau, "objectives": [LEARNED]},
        {"name": "metric", "duration": metric, "objectives": [{"kind": "logits"}]},
        {"name": "logits", "duration": "24 steps", "objectives": [{"kind": "logits"}]},
    ]
    return {"kind": "staged", "stages": stages}


EXTRACTION = {"kind": "extraction", "pairs": [{"student": 1, "teacher": 1}]}
STRATEGIES = {
    "progressive": {"curriculum": {"kind": "progressive"}},
    "extraction": {"curriculum": EXTRACTION},
}
TARGETS = {"folder": "targets", "compression": {"shard_bytes": 2000}}
COMPARISON = tiny_spec(strategies=STRATEGIES, seeds=[0, 1], budget="40 steps")
STORED = tiny_spec(curriculum=EXTRACTION, data_seed=5, targets=TARGETS)
NO_TARGETS = ("--set", "targets=null")

JOBS = (
    Job(name="teach", spec=tiny_spec(), arguments=("teach", SPEC)),
    Job(
        name="distill, layer stages",
        is_short=True,
        spec=tiny_spec(
            curriculum=staged(),
            engine=with_engine(gradient_accumulation_steps=2, max_grad_norm=1.0),
        ),
        arguments=("distill", SPEC),
        share=4,
    ),
    Job(
        name="distill, progressive",
        is_short=True,
        spec=tiny_spec(
            curriculum={"kind": "progressive"},
            optimizer={"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9},
            engine=with_engine(prefetch="targets"),
        ),
        arguments=("distill", SPEC),
        share=4,
    ),
    Job(
        name="distill, rules and best weights",
        is_short=True,
        spec=tiny_spec(curriculum=ruled(), engine=with_engine(keep_best=True)),
        arguments=("distill", SPEC),
        share=3,
    ),
    Job(
        name="distill, closed-form start",
        is_short=True,
        spec=tiny_spec(curriculum={"kind": "auto"}, engine=with_engine(prefetch="batch")),
        arguments=("distill", SPEC),
    ),
    Job(
        name="distill, saved in the background",
        is_short=True,
        spec=tiny_spec(
            curriculum=staged(),
            engine=with_engine(async_save=True, save_every=3, keep_best=True),
        ),
        arguments=("distill", SPEC),
        share=4,
    ),
    Job(
        name="distill, labels",
        spec=tiny_spec(curriculum={"kind": "from_labels"}),
        arguments=("distill", SPEC),
        share=1,
    ),
    Job(
        name="distill, rolled back",
        is_short=True,
        # The rate of the second stage is so large that it explodes, and every return lowers it.
        spec=tiny_spec(
            curriculum=exploding(),
            optimizer={"kind": "sgd", "learning_rate": 0.1},
            engine=with_engine(on_divergence={"kind": "roll_back", "learning_rate_scale": 1e-20}),
        ),
        arguments=("distill", SPEC),
    ),
    Job(
        name="distill, stored targets",
        spec=STORED,
        preparation=(
            ("teach", SPEC, *NO_TARGETS),
            ("targets", "capture", SPEC),
        ),
        arguments=("distill", SPEC),
    ),
    Job(
        name="targets capture",
        is_short=True,
        spec=STORED,
        preparation=(("teach", SPEC, *NO_TARGETS),),
        arguments=("targets", "capture", SPEC),
        is_resumed=False,
    ),
    Job(
        name="targets capture, two shares",
        divides_targets=True,
        spec=STORED,
        preparation=(("teach", SPEC, *NO_TARGETS),),
        arguments=("targets", "capture", SPEC, "--jobs", "2"),
        is_resumed=False,
        share=1,
    ),
    Job(name="compare", spec=COMPARISON, arguments=("compare", SPEC)),
    Job(
        name="compare, shared teacher",
        spec=COMPARISON | {"share_teacher": True, "data_seed": 5},
        arguments=("compare", SPEC),
        share=4,
    ),
    Job(
        name="compare, two processes",
        spec=COMPARISON,
        arguments=("compare", SPEC, "--jobs", "2"),
        share=1,
    ),
    Job(
        name="distill, two processes",
        spec=tiny_spec(
            curriculum=EXTRACTION,
            budget="240 steps",
            engine=with_engine(save_every=4, async_save=True, parallel="fsdp2"),
        ),
        arguments=("distill", SPEC, "--nproc", "2"),
        share=1,
    ),
    Job(
        name="reproduce",
        spec=tiny_spec(),
        arguments=(
            *("reproduce", "parity-mlp", "--scale", "smoke", "--output-dir", RUN),
            *("--set", "engine.save_every=4"),
        ),
        is_resumed=False,
        share=2,
    ),
)
