"""Arguments of a `CurriculumTrainer`."""

from pathlib import Path
from typing import Any

import pytest
import transformers

import curricle
from curricle.errors import SpecError
from curricle.integrations.transformers import CurriculumConfig
from tests.trainers import config


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"curriculum": "one_shoot"}, "'curriculum' 'one_shoot' is not a strategy"),
        ({"curriculum": "from_labels", "temperature": 2.0}, "'temperature' must be None"),
        ({"curriculum": curricle.one_shot(total="5 steps"), "beta": 1.0}, "'beta' must be None"),
        ({"fp16": True}, "'fp16' must be False"),
        ({"label_smoothing_factor": 0.1}, "'label_smoothing_factor' must be 0.0"),
        ({"auto_find_batch_size": True}, "'auto_find_batch_size' must be False"),
    ],
)
def test_arguments_without_effect_are_refused(
    fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=sentence):
        config(tmp_path, **fields)


def test_the_command_line_reads_the_arguments(tmp_path: Path) -> None:
    parser = transformers.HfArgumentParser(CurriculumConfig)  # type: ignore[arg-type]
    words = [
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
        "--debug",
        "underflow_overflow",
        "--temperature",
        "2",
    ]
    words += ["--curriculum", '{"kind": "extraction", "pairs": 2}', "--disable_dropout"]
    (arguments,) = parser.parse_args_into_dataclasses(words)
    assert arguments.curriculum == {"kind": "extraction", "pairs": 2}
    assert (arguments.temperature, arguments.disable_dropout) == (2.0, True)
    assert arguments.declared_curriculum(100, None).stages[-1].name == "logits"
