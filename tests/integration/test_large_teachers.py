"""Teachers too large for plain weights: in shards, in low precision, quantized, on other devices.

Each teaches as in a loop by hand with the same module.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional

import curricle
from curricle import seeding
from curricle.curriculum.initialization import PrincipalStart
from curricle.curriculum.strategies import extraction, one_shot, progressive
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.dispatching import is_dispatched, offloaded_weights, resident_weight
from curricle.models.families import tapped
from curricle.models.huggingface import PretrainedSpec
from curricle.models.weights import weights_digest
from curricle.objectives.logits import MatchLogits
from curricle.teachers import hugging_face_trajectory
from curricle.training.distill import distill
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from tests.parts import Listed

pytestmark = pytest.mark.integration
STEPS, RATE, BLOCKS, VOCABULARY = 4, 0.1, 2, 20
Maker = Callable[[Path], nn.Module]


def llama(width: int, seed: int, kind: str = "llama", **sizes: Any) -> Any:
    """Return a model whose weights are large enough for logits that differ."""
    config = hf.AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=BLOCKS,
        num_attention_heads=2, num_key_value_heads=2, intermediate_size=16,
        max_position_embeddings=16, **sizes,
    )  # fmt: skip
    with seeding.scoped(seed, "test model"):
        model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Return the folder of a teacher in several files with an index."""
    folder = tmp_path / "sharded"
    llama(32, seed=1).save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def opened(folder: Path, **options: Any) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder, **options)


def tokens() -> Listed:
    drawn = torch.randint(4, VOCABULARY, (8, 6), generator=torch.Generator().manual_seed(0))
    return Listed(*(Batch(inputs={"input_ids": half}) for half in drawn.split(4)))


def taught(student: nn.Module, teacher: nn.Module, curriculum: Any = None, **parts: Any) -> Any:
    return distill(
        student, teacher, curriculum or one_shot(total=f"{STEPS} steps"), tokens(),
        evaluation=lambda model: {"accuracy": 0.0}, optimizer=SGD(learning_rate=RATE),
        settings=TrainingSettings(device="cpu"), **parts,
    )  # fmt: skip


def by_hand(student: Any, teacher: Any) -> None:
    """Teach as `taught` does in one shot, without curricle."""
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    student.train(), teacher.eval()
    for step in range(STEPS):
        inputs: Any = tokens().batch(step).inputs
        with torch.no_grad():
            expected = teacher(**inputs).logits.float().log_softmax(-1)
        scores = student(**inputs).logits.log_softmax(-1)
        optimizer.zero_grad()
        functional.kl_div(
            scores.flatten(0, 1), expected.flatten(0, 1), reduction="batchmean", log_target=True
        ).backward()
        optimizer.step()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def dynamic(folder: Path) -> nn.Module:
    quantize = cast("Any", torch.ao.quantization).quantize_dynamic
    return cast("nn.Module", quantize(opened(folder), {nn.Linear}, dtype=torch.qint8))


def weights_in_eight_bits(folder: Path) -> nn.Module:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = opened(folder)
    quantize_(model, Int8WeightOnlyConfig())
    return cast("nn.Module", model)


def bitsandbytes(**options: Any) -> Maker:
    def make(folder: Path) -> nn.Module:
        pytest.importorskip("bitsandbytes")
        config = hf.BitsAndBytesConfig(**options)
        return cast("nn.Module", opened(folder, quantization_config=config))

    return make


def on_disk(folder: Path, *paths: str) -> Any:
    """Return a model of whose modules some lie on the disk between passes."""
    pytest.importorskip("accelerate")
    names = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head")
    places = dict.fromkeys((*names, "model.rotary_emb"), "cpu") | dict.fromkeys(paths, "disk")
    return opened(folder, device_map=places, offload_folder=folder.parent / "offload")


MAKERS: dict[str, Maker] = {
    "shards": opened,
    "bfloat16": lambda folder: cast("nn.Module", opened(folder, dtype=torch.bfloat16)),
    "float16": lambda folder: cast("nn.Module", opened(folder, dtype=torch.float16)),
    "dynamic int8": dynamic,
    "torchao int8": weights_in_eight_bits,
    "bitsandbytes int8": bitsandbytes(load_in_8bit=True),
    "bitsandbytes nf4": bitsandbytes(load_in_4bit=True),
    "one device": lambda folder: cast("nn.Module", opened(folder, device_map="cpu")),
    "a block on the disk": lambda folder: cast("nn.Module", on_disk(folder, "model.layers.1")),
    "the first weights on the disk": lambda folder: cast(
        "nn.Module", on_disk(folder, "model.embed_tokens", "model.layers.0")
    ),
}
EVERY_TEACHER = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
QUIET = pytest.mark.filterwarnings("ignore")
"""Of the packages that quantize, about each other."""


@pytest.fixture(autouse=True)
def placed_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse that a model with hooks of accelerate is moved."""
    move = nn.Module.to

    def checked(module: nn.Module, *args: Any, **options: Any) -> nn.Module:
        assert not is_dispatched(module) or not curricle_moves, "a dispatched model was moved"
        return move(module, *args, **options)

    curricle_moves = True
    monkeypatch.setattr(nn.Module, "to", checked)
    yield
    curricle_moves = False


@QUIET
@EVERY_TEACHER
def test_a_teacher_teaches_as_in_a_loop_by_hand(make: Maker, sharded: Path) -> None:
    teacher, student = make(sharded), llama(16, seed=0)
    expected, dtypes = copy.deepcopy(student), {p.dtype for p in teacher.parameters()}
    by_hand(expected, teacher)
    taught(student, teacher)
    torch.testing.assert_close(state(student), state(expected), rtol=1e-4, atol=1e-5)
    assert {p.dtype for p in teacher.parameters()} == dtypes


@QUIET
@EVERY_TEACHER
def test_hidden_states_are_those_of_the_module(make: Maker, sharded: Path) -> None:
    teacher = make(sharded).eval()
    inputs: Any = tokens().batch(0).inputs
    with torch.no_grad():
        expected = teacher(**inputs, output_hidden_states=True).hidden_states[1]
    model = tapped(teacher)
    place = model.place(1)
    with torch.no_grad(), model.open_taps([place], logits=False) as forward:
        states = forward(inputs).hidden[place]
    torch.testing.assert_close(states, expected, rtol=0, atol=0)
    student = llama(16, seed=0)
    before = state(student)
    taught(student, teacher, extraction(total="4 steps", pairs=1))
    assert not torch.equal(state(student)["lm_head.weight"], before["lm_head.weight"])


def test_a_spec_reads_shards_and_converts_low_precision(sharded: Path, tmp_path: Path) -> None:
    low = tmp_path / "low"
    opened(sharded, dtype=torch.bfloat16).save_pretrained(low, max_shard_size="10KB")
    spec = PretrainedSpec(path=str(low), head="causal_lm")
    model = spec.build(num_inputs=VOCABULARY, num_classes=VOCABULARY, num_positions=6)
    assert {weight.dtype for weight in model.module.parameters()} == {torch.float32}
    expected = opened(sharded).lm_head.weight.bfloat16().float()
    assert torch.equal(cast("Any", model.module).lm_head.weight, expected)


def test_offloaded_weights_are_read_where_they_lie(sharded: Path) -> None:
    plain, teacher = opened(sharded), on_disk(sharded, "model.layers.1", "lm_head")
    readers = offloaded_weights(teacher)
    assert {name.split(".")[0] for name in readers} == {"model", "lm_head"}
    assert set(readers) == {name for name, p in teacher.named_parameters() if p.is_meta}
    for name, read in readers.items():
        assert torch.equal(read(), plain.get_parameter(name))
    assert weights_digest(teacher) == weights_digest(plain)
    assert not resident_weight(teacher).is_meta
    assert not offloaded_weights(plain)
    assert (is_dispatched(teacher), is_dispatched(plain)) == (True, False)
    taught(llama(16, seed=0), teacher, extraction(total="4 steps", pairs=1))
    # A pass that ended early has left nothing behind.
    assert set(offloaded_weights(teacher)) == set(readers)


def test_sizes_and_speed_of_an_offloaded_teacher_are_measured(sharded: Path) -> None:
    inputs: Any = tokens().batch(0).inputs
    labels = inputs["input_ids"].flatten().flip(0)
    held_out = [Batch(inputs=inputs, labels=labels, selected=torch.arange(len(labels)))]
    plain, spread = opened(sharded), on_disk(sharded, "model.embed_tokens")
    one, other = (
        curricle.evaluate(
            llama(16, seed=0),
            held_out,
            teacher=teacher,
            metrics=("nll",),
            repetitions=1,
            settings=TrainingSettings(device="cpu"),
        ).teacher
        for teacher in (plain, spread)
    )
    assert one is not None
    assert other is not None
    assert one.metrics == other.metrics
    assert one.cost.num_bytes == other.cost.num_bytes


def test_what_offloaded_weights_cannot_do_is_refused(sharded: Path) -> None:
    teacher = on_disk(sharded, "model.embed_tokens", "lm_head")
    with pytest.raises(BindError, match="'student' must have its weights in memory to be trained"):
        taught(on_disk(sharded, "lm_head"), llama(16, seed=0))
    with pytest.raises(BindError, match="'teacher' must have its tables in memory for a start"):
        taught(llama(16, seed=0), teacher, one_shot(total="1 steps", init=PrincipalStart()))
    chunked = one_shot(total="1 steps", objective=MatchLogits(chunk=5))
    with pytest.raises(BindError, match="'chunk' needs a head whose weight is in memory"):
        taught(llama(16, seed=0), teacher, chunked)
    trajectory = hugging_face_trajectory(
        [shutil.copytree(sharded, sharded.with_name("checkpoint-3"))]
    )
    with pytest.raises(BindError, match="all weights in memory to teach with those of a checkpo"):
        taught(
            llama(16, seed=0),
            teacher,
            progressive(total="2 steps", trajectory=trajectory),
            trajectory=trajectory,
        )


@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen3_moe"])
def test_checkpoints_in_shards_teach_in_order(kind: str, tmp_path: Path) -> None:
    experts = {"llama": {}, "mixtral": {"num_local_experts": 2}, "qwen3_moe": {"num_experts": 2}}
    sizes: dict[str, Any] = dict(experts[kind])
    if kind == "qwen3_moe":
        sizes |= {"moe_intermediate_size": 8, "num_experts_per_tok": 1, "head_dim": 8}
    checkpoints = {step: llama(32, seed=step, kind=kind, **sizes) for step in (1, 2)}
    for step, model in checkpoints.items():
        model.save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size="10KB")
        assert len(list((tmp_path / f"checkpoint-{step}").glob("*.safetensors"))) > 1
    trajectory = hugging_face_trajectory(str(tmp_path))
    teacher, student = copy.deepcopy(checkpoints[2]), llama(16, seed=0)
    before, expected = state(teacher), copy.deepcopy(student)
    for step in (1, 2):
        copied = copy.deepcopy(teacher)
        trajectory.load(copied, step)
        torch.testing.assert_close(state(copied), state(checkpoints[step]), rtol=0, atol=0)
    curriculum = progressive(total=f"{STEPS} steps", trajectory=trajectory)
    taught(student, teacher, curriculum, trajectory=trajectory)
    torch.testing.assert_close(state(teacher), before, rtol=0, atol=0)
    optimizer = torch.optim.SGD(expected.parameters(), lr=RATE)
    for step in range(STEPS):
        inputs: Any = tokens().batch(step).inputs
        with torch.no_grad():
            scores = checkpoints[1 + step // 2].eval()(**inputs).logits.log_softmax(-1)
        loss = functional.kl_div(
            expected.train()(**inputs).logits.log_softmax(-1).flatten(0, 1),
            scores.flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(state(student), state(expected), rtol=1e-4, atol=1e-5)
