"""Models that PEFT has wrapped: taught, kept and told apart as they are, or refused."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional

import curricle
from curricle import seeding
from curricle.curriculum.initialization import PrincipalStart
from curricle.curriculum.strategies import extraction, one_shot
from curricle.data.batch import Batch
from curricle.errors import BindError, CheckpointError
from curricle.models.weights import load_weights, weights_digest
from curricle.objectives.logits import MatchLogits
from curricle.training.distill import distill
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from tests.parts import Listed

pytestmark = [
    pytest.mark.integration,
    # Of PEFT, about names and options of transformers.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft"),
]
STEPS, RATE = 4, 0.1
QUERIES: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


def llama(width: int = 16, seed: int = 0) -> nn.Module:
    """Return a model whose weights are large enough for logits that differ."""
    config = hf.LlamaConfig(
        vocab_size=20, hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    with seeding.scoped(seed, "test model"):
        model: nn.Module = hf.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def wrapped(base: nn.Module, config: Any, seed: int = 0) -> Any:
    """Return a model with an adapter that already does something; it is made in the model."""
    with seeding.scoped(seed, "adapter"):
        model = peft.get_peft_model(base, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and not parameter.any():
                    parameter.normal_(std=0.3)
    return model


def adapted(config: Any, *, width: int = 16, seed: int = 0) -> Any:
    return wrapped(llama(width, seed), config, seed)


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM"} | QUERIES | options)


def tokens() -> Listed:
    drawn = torch.randint(4, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    return Listed(*(Batch(inputs={"input_ids": half}) for half in drawn.split(4)))


def taught(student: nn.Module, teacher: nn.Module, curriculum: Any = None, **parts: Any) -> None:
    distill(
        student, teacher, curriculum or one_shot(total=f"{STEPS} steps"), tokens(),
        evaluation=lambda model: {"accuracy": 0.0},
        settings=TrainingSettings(device="cpu", save_every=2, log_every=1),
        **({"optimizer": SGD(learning_rate=RATE)} | parts),
    )  # fmt: skip


def by_hand(student: nn.Module, teacher: nn.Module) -> None:
    """Teach as `taught` does in one shot, without curricle."""
    free = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(free, lr=RATE)
    student.train(), teacher.eval()
    for step in range(STEPS):
        inputs: Any = tokens().batch(step).inputs
        with torch.no_grad():
            wanted = teacher(**inputs).logits.log_softmax(-1)
        found = student(**inputs).logits.log_softmax(-1)
        optimizer.zero_grad()
        functional.kl_div(
            found.flatten(0, 1), wanted.flatten(0, 1), reduction="batchmean", log_target=True
        ).backward()
        optimizer.step()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


def check_equal(found: nn.Module, wanted: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(state(found), dict(wanted), rtol=1e-5, atol=1e-6)


CONFIGS: dict[str, Callable[[], Any]] = {
    "LoRA": lora,
    "DoRA": lambda: lora(use_dora=True),
    "head": lambda: lora(target_modules=["q_proj", "lm_head"]),
    "saved head": lambda: lora(modules_to_save=["lm_head"]),
    "tokens": lambda: lora(trainable_token_indices=[5, 6]),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"
    ),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@EVERY_CONFIG
def test_a_student_learns_as_in_a_loop_by_hand(config: Callable[[], Any]) -> None:
    student, teacher = adapted(config()), llama(24, seed=1)
    other = copy.deepcopy(student)
    taught(student, teacher)
    by_hand(other, teacher)
    check_equal(student, state(other))


@EVERY_CONFIG
def test_a_teacher_teaches_as_in_a_loop_by_hand(config: Callable[[], Any]) -> None:
    student, teacher = llama(), adapted(config(), width=24, seed=1)
    other = copy.deepcopy(student)
    taught(student, teacher)
    by_hand(other, teacher)
    check_equal(student, state(other))


def test_layers_teach_only_the_adapters_below_them() -> None:
    student = adapted(lora())
    before = state(student)
    taught(student, llama(24, seed=1), extraction(total="4 steps", durations=("3 steps",)))
    moved = {name for name, one in state(student).items() if not torch.equal(one, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_frozen_weights_of_a_student_may_be_those_of_its_teacher() -> None:
    teacher, base = llama(seed=1).requires_grad_(False), llama(seed=2)
    base.load_state_dict(teacher.state_dict(), assign=True)
    student, before = wrapped(base, lora()), state(teacher)
    other = copy.deepcopy(student)
    taught(student, teacher)
    by_hand(other, copy.deepcopy(teacher))
    check_equal(student, state(other))
    check_equal(teacher, before)


def test_a_student_in_its_teacher_is_refused() -> None:
    base = llama()
    student = wrapped(base, lora())
    with pytest.raises(BindError, match="'student' and 'teacher' must not share memory"):
        taught(student, base)


def test_virtual_tokens_among_the_positions_are_refused() -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(BindError, match="must have the same positions; got"):
        taught(adapted(config), llama(24, seed=1))


@EVERY_CONFIG
def test_a_student_goes_on_bit_equal(config: Callable[[], Any], tmp_path: Path) -> None:
    whole, part, later = (adapted(config()) for _ in range(3))
    teacher, optimizer = llama(24, seed=1), SGD(learning_rate=RATE, momentum=0.9)
    taught(whole, teacher, optimizer=optimizer)

    def stop(record: Any) -> None:
        if record.kind == "step" and record.usage.steps == STEPS - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(part, teacher, output_dir=tmp_path, optimizer=optimizer, observers=[stop])
    taught(later, teacher, output_dir=tmp_path, optimizer=optimizer, resume=True)
    torch.testing.assert_close(state(later), state(whole), rtol=0, atol=0)


def with_two() -> Any:
    model = adapted(lora())
    with seeding.scoped(1, "adapter"):
        model.add_adapter("other", lora())
    return model


def use_other(model: Any) -> None:
    model.set_adapter("other")


def test_a_run_with_another_adapter_does_not_go_on(tmp_path: Path) -> None:
    first, second, teacher = with_two(), with_two(), llama(24, seed=1)
    taught(first, teacher, output_dir=tmp_path)
    use_other(second)
    with pytest.raises(CheckpointError, match="other weights of the student are frozen; other ad"):
        taught(second, teacher, output_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    "change",
    [use_other, lambda model: model.base_model.disable_adapter_layers()],
    ids=["another adapter", "no adapter"],
)
def test_teachers_of_equal_weights_are_told_apart(change: Callable[[Any], object]) -> None:
    model = with_two()
    before = weights_digest(model)
    change(model)
    assert weights_digest(model) != before


def test_a_start_is_refused_where_an_adapter_counts_beside_the_tables() -> None:
    teacher = adapted(lora(modules_to_save=["embed_tokens"]), width=24, seed=1)
    with pytest.raises(BindError, match=r"'teacher' must have tables without adapters for a start"):
        taught(llama(), teacher, one_shot(total="1 steps", init=PrincipalStart()))


@pytest.mark.parametrize("name", ["LoRA", "prefix", "tokens"])
def test_chunks_give_what_whole_logits_give(name: str) -> None:
    teacher = adapted(CONFIGS[name](), width=24, seed=1)
    whole, cut = (adapted(CONFIGS[name]()) for _ in range(2))
    taught(whole, teacher)
    taught(cut, teacher, one_shot(total=f"{STEPS} steps", objective=MatchLogits(chunk=5)))
    check_equal(cut, state(whole))


def test_a_head_with_an_adapter_is_not_read_in_chunks() -> None:
    curriculum = one_shot(total="1 steps", objective=MatchLogits(chunk=5))
    with pytest.raises(BindError, match=r"whose head 'base_model.model.lm_head' has an adapter"):
        taught(adapted(lora(target_modules=["lm_head"])), llama(24, seed=1), curriculum)


def test_tied_adapters_are_kept_in_a_run_folder(tmp_path: Path) -> None:
    config = hf.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    with seeding.scoped(0, "test model"):
        base: nn.Module = hf.GPT2LMHeadModel(config)
    tied = lora(target_modules=["lm_head", "wte"], ensure_weight_tying=True)
    student = wrapped(base, tied)
    taught(student, llama(24, seed=1), output_dir=tmp_path)
    trained = state(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    load_weights(student, next(tmp_path.glob("*.safetensors")))
    torch.testing.assert_close(state(student), trained, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda model: model.merge_adapter(), r"; or they belong to an adapter that is merged"),
        (lambda model: model.requires_grad_(False), r"loads an adapter .* with is_trainable=True"),
    ],
    ids=["merged", "frozen"],
)
def test_a_student_whose_adapter_cannot_learn_is_refused(
    change: Callable[[Any], object], sentence: str
) -> None:
    student = adapted(lora())
    change(student)
    with pytest.raises(BindError, match=sentence):
        taught(student, llama(24, seed=1))


def test_an_export_has_the_adapter_merged_and_is_loaded_without_peft(tmp_path: Path) -> None:
    model = wrapped(llama(), peft.LoraConfig(**QUERIES))
    before = weights_digest(model)
    exported = curricle.export(model, tmp_path / "out")
    assert exported.merged
    assert weights_digest(model) == before
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("lora" in name for name, _ in again.named_parameters())
    tokens = torch.arange(8).view(1, 8)
    with torch.no_grad():
        expected = model.eval()(tokens).logits
        torch.testing.assert_close(nn.Module.eval(again)(tokens).logits, expected)
        plain = llama().eval()(tokens).logits
    assert not torch.allclose(plain, expected)


def test_an_adapter_without_a_merged_form_is_not_exported(tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(BindError, match="without 'merge_and_unload'"):
        curricle.export(wrapped(llama(), config), tmp_path / "out")
