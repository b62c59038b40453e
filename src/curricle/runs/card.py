"""Model cards: README.md of exported models, with metadata as the Hugging Face Hub reads them.

A card is made from the records of the run, so it states the facts: the lengths that stages had,
the usage of student and teacher, seeds, metrics and versions. Texts from users are written as such
and not as Markdown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import final

import yaml

from curricle.errors import visible
from curricle.extras import package_version
from curricle.records import EndRecord, Record, RunRecord, StageRecord

CARD = "README.md"
PIPELINES: Mapping[str, str] = MappingProxyType(
    {
        "ForMaskedLM": "fill-mask",
        "ForCausalLM": "text-generation",
        "LMHeadModel": "text-generation",
        "ForSequenceClassification": "text-classification",
        "ForTokenClassification": "token-classification",
        "ForQuestionAnswering": "question-answering",
        "ForImageClassification": "image-classification",
        "ForAudioClassification": "audio-classification",
    }
)
"""Task on the Hub by the end of the name of a class of transformers."""
SENTENCES = "sentence-similarity"
"""Task on the Hub of encoders of sentences."""
EXTRACTION, PROGRESSIVE, HINTON = (
    """@article{gupta2025curriculum,
  title={Efficient Knowledge Distillation via Curriculum Extraction},
  author={Gupta, Shivam and Karmalkar, Sushrut},
  journal={arXiv preprint arXiv:2503.17494},
  year={2025}
}""",
    """@inproceedings{panigrahi2025progressive,
  title={Progressive distillation induces an implicit curriculum},
  author={Panigrahi, Abhishek and Liu, Bingbin and Malladi, Sadhika
          and Risteski, Andrej and Goel, Surbhi},
  booktitle={International Conference on Learning Representations},
  year={2025}
}""",
    """@article{hinton2015distilling,
  title={Distilling the Knowledge in a Neural Network},
  author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal={arXiv preprint arXiv:1503.02531},
  year={2015}
}""",
)
CITATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "extraction": (EXTRACTION,),
        "progressive": (PROGRESSIVE,),
        "one_shot": (HINTON,),
    }
)
"""Papers of the strategies; those of another curriculum are those of both curricula."""
SOFTWARE = """@software{curricle,
  title={curricle},
  author={{The curricle developers}}%s
}"""
UNKNOWN = "unknown"
"""Version of a source that is used without an installation."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Content of a card beside the records of the run."""

    title: str
    """Heading."""
    class_name: str
    """Class of the exported model."""
    library: str
    """Library that loads it, by its name on the Hub."""
    loading: str
    """Python code that loads it."""
    records: tuple[Record, ...] = ()
    """Records of the finished run; empty if they are unknown."""
    teacher: str = ""
    """Description of the teacher, if known."""
    student: str = ""
    """Description of the student before training, if known."""
    base_model: str | None = None
    """Name on the Hub of the model that was trained further, if known."""
    datasets: tuple[str, ...] = ()
    """Names of data sets on the Hub."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """Seeds beside that of the run, by their meaning."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further facts of the training, by name."""
    command: str = ""
    """Command that runs the training again; empty for a run from Python."""
    class_names: Mapping[int, str] = field(default_factory=dict)
    """Names of the classes by number, in order, if they are stated."""
    onnx: str = ""
    """Agreement of the ONNX file with torch, if there is one."""

    @property
    def is_sentence_encoder(self) -> bool:
        """Return whether the model gives an embedding of each text."""
        return self.library == "sentence-transformers"

    @property
    def run(self) -> RunRecord | None:
        """Return the opening record, if the records are known."""
        return next((record for record in self.records if isinstance(record, RunRecord)), None)

    @property
    def end(self) -> EndRecord | None:
        """Return the last record, if the records are known."""
        return next((record for record in self.records if isinstance(record, EndRecord)), None)


def model_card(card: Card) -> str:
    """Return a card as Markdown with metadata in YAML."""
    sections = [_metadata(card), f"# {_text(card.title)}", _summary(card), _use(card)]
    if card.run is not None and card.end is not None:
        sections += [
            _results(card.run, card.end),
            _training(card, card.run, card.end),
            _curriculum(card.records, card.run, card.end),
            _notes(card.run),
            _command(card),
        ]
    sections.append(_citation(card))
    return "\n\n".join(filter(None, sections)) + "\n"


def stage_lengths(records: Sequence[Record], end: EndRecord) -> dict[str, int]:
    """Return the steps that each stage has taken; a stage that was never opened has none.

    Args:
        records: Records of a finished run.
        end: The last of them.
    """
    stages = [record for record in records if isinstance(record, StageRecord)]
    starts = [*(stage.usage.steps for stage in stages), end.usage.steps]
    lengths = [after - before for before, after in pairwise(starts)]
    return {stage.stage: length for stage, length in zip(stages, lengths, strict=True)}


def _metadata(card: Card) -> str:
    run, end = card.run, card.end
    tags = ["curricle", "knowledge-distillation", "curriculum-learning"]
    is_known = card.library == "transformers"
    pipeline = next(
        (task for end, task in PIPELINES.items() if is_known and card.class_name.endswith(end)),
        None,
    )
    if card.is_sentence_encoder:
        tags = ["sentence-transformers", "feature-extraction", *tags]
    facts = {
        "library_name": card.library,
        "pipeline_tag": SENTENCES if card.is_sentence_encoder else pipeline,
        "base_model": card.base_model,
        "datasets": list(card.datasets),
        "metrics": [] if end is None else list(end.metrics),
        "tags": [*tags, *(["onnx"] if card.onnx else []), *([run.method] if run else [])],
    }
    present = {name: fact for name, fact in facts.items() if fact}
    return f"---\n{yaml.safe_dump(present, sort_keys=False, allow_unicode=True)}---"


def _summary(card: Card) -> str:
    run = card.run
    if run is None:
        return f"A `{card.class_name}` trained with curricle."
    size = f"A `{card.class_name}` with {run.student_parameters:,} parameters"
    if not run.teacher_parameters:
        return f"{size}, trained from labels with curricle."
    return (
        f"{size}, distilled with curricle from a teacher with {run.teacher_parameters:,} "
        f"parameters by the curriculum {_code(run.method)}."
    )


def _use(card: Card) -> str:
    onnx = f"\n\n`model.onnx` gives the same numbers: {card.onnx}." if card.onnx else ""
    rows = [(str(number), _text(name)) for number, name in card.class_names.items()]
    classes = f"\n\n{_table(('class', 'name'), rows)}" if rows else ""
    return f"## Use\n\n```python\n{card.loading}\n```{onnx}{classes}"


def _results(run: RunRecord, end: EndRecord) -> str:
    rows = [(_code(name), f"{number:.6g}") for name, number in end.metrics.items()]
    when = "at the end of the run, which is judged by "
    if end.best_metric:
        # They have chosen the weights, so they are no test.
        when = f"that have chosen the weights of step {end.best_step:,}, the best by "
    return (
        f"## Results\n\nOn held-out data {when}{_code(end.best_metric or run.metric)}.\n\n"
        f"{_table(('metric', 'value'), rows)}"
    )


def _training(card: Card, run: RunRecord, end: EndRecord) -> str:
    usage = end.usage
    sides = [
        ("parameters", f"{run.student_parameters:,}", f"{run.teacher_parameters:,}"),
        ("training FLOPs", f"{usage.student_flops:.3e}", f"{usage.teacher_flops:.3e}"),
    ]
    if card.student or card.teacher:
        sides.insert(0, ("model", _text(card.student), _text(card.teacher)))
    facts = {
        "data": run.task,
        "examples": f"{usage.examples:,}, {run.batch_size:,} in each of {usage.steps:,} steps",
        "tokens": "" if usage.tokens == usage.examples else f"{usage.tokens:,}",
        "seconds of training": f"{usage.seconds:.1f} on {run.device}",
        "seeds": ", ".join(f"{name} {seed}" for name, seed in _seeds(card, run).items()),
        **card.settings,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    rows = [(name, _text(fact)) for name, fact in facts.items() if fact]
    flops = (
        "FLOPs count multiplications and additions; those of the teacher are its forward passes "
        "for the student, without its own training."
    )
    return (
        f"## Training\n\n{_table(('', 'student', 'teacher'), sides)}\n\n{flops}\n\n"
        f"{_table(('', ''), rows)}"
    )


def _seeds(card: Card, run: RunRecord) -> dict[str, int]:
    return {"run": run.seed, **card.seeds}


def _curriculum(records: Sequence[Record], run: RunRecord, end: EndRecord) -> str:
    lengths = stage_lengths(records, end)
    head = ("stage", "teacher", "student <- teacher", "objective", "steps", "examples")
    rows = []
    for stage in run.stages:
        steps = lengths.get(stage.name, 0)
        planned = "" if steps == stage.steps else f" of {stage.steps:,}"
        texts = (stage.name, stage.teacher, stage.taps, stage.objective)
        rows.append((*map(_text, texts), f"{steps:,}{planned}", f"{steps * run.batch_size:,}"))
    return f"### Curriculum\n\n{_table(head, rows)}"


def _notes(run: RunRecord) -> str:
    return "\n".join(f"- {_text(note)}" for note in run.notes)


def _command(card: Card) -> str:
    if not card.command:
        return ""
    return f"### Command\n\n```bash\n{visible(card.command)}\n```"


def _citation(card: Card) -> str:
    run = card.run
    # Of an export without a run the version is that of the program that writes the card.
    version = package_version() if run is None else run.versions.get("curricle", UNKNOWN)
    field = "" if version == UNKNOWN else f",\n  version={{{version}}}"
    papers = CITATIONS.get("" if run is None else run.method, ())
    if run is not None and not papers and run.teacher_parameters:
        papers = (EXTRACTION, PROGRESSIVE)
    entries = "\n\n".join([*papers, SOFTWARE % field])
    return f"## Citation\n\n```bibtex\n{entries}\n```"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Return a text in one line, without characters that Markdown or HTML would read."""
    line = visible(" ".join(text.split()))
    for sign in "\\`*_{}[]|#":
        line = line.replace(sign, f"\\{sign}")
    return line.replace("&", "&amp;").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{visible(text).replace('`', '')}`"
