"""Pruning mixed into the Trainers of trl: their own losses, their own models, names of models."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.trainer import SparseTrainer
from tests.fixtures.character_tokenizer import character_tokenizer

trl = pytest.importorskip("trl", reason="trl is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [f"the number {i} is {'even' if i % 2 == 0 else 'odd'}" for i in range(16)]
SETTINGS: dict[str, Any] = {
    "max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1,
    "report_to": [], "use_cpu": True, "disable_tqdm": True, "bf16": False,
}  # fmt: skip


def reward(completions: list[str], **others: Any) -> list[float]:
    return [float(len(completion) % 3) for completion in completions]


PROMPTS = [{"prompt": text[:8]} for text in TEXTS]
PAIRS = [{"prompt": text[:8], "chosen": text[8:], "rejected": text[:7:-1]} for text in TEXTS]
DATA: dict[str, list[dict[str, Any]]] = {
    "SFT": [{"text": text} for text in TEXTS],
    "DPO": PAIRS,
    "Reward": [{"chosen": text, "rejected": text[::-1]} for text in TEXTS],
    "GRPO": PROMPTS,
    "RLOO": PROMPTS,
}
SAMPLES: dict[str, Any] = {"num_generations": 2, "max_completion_length": 6}


def saved(name: str, folder: Path) -> str:
    """Write a tiny model of the class that a Trainer wants, with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=1, bos_token_id=0, eos_token_id=1,
        num_labels=1,
    )  # fmt: skip
    model: PreTrainedModel = (LlamaForSequenceClassification if name == "Reward" else LlamaForCausalLM)(
        config
    )
    perturb(model)
    model.save_pretrained(folder / "model")
    character_tokenizer(chat=True).save_pretrained(folder / "model")
    return str(folder / "model")


def training(name: str, folder: Path, *, by_name: bool = False, **options: Any) -> Any:
    """Return a training of `trl.<name>Trainer` that prunes."""

    class Pruning(SparseTrainer, getattr(trl, f"{name}Trainer")):  # type: ignore[misc]
        pass

    path = saved(name, folder)
    cls = LlamaForSequenceClassification if name == "Reward" else LlamaForCausalLM
    more: dict[str, Any] = {"reward_funcs": reward} if name in ("GRPO", "RLOO") else {}
    sampling = SAMPLES if more else {}
    return Pruning(
        model=path if by_name else cls.from_pretrained(path),
        args=getattr(trl, f"{name}Config")(str(folder / "out"), **SETTINGS, **sampling),
        train_dataset=datasets.Dataset.from_list(DATA[name]),
        processing_class=character_tokenizer(chat=True),
        sparse_args=SparseTrainingArguments(density=0.5, **options),
        **more,
    )


def assert_same(one: Any, other: Any) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize("name", DATA)
def test_it_trains_resumes_and_is_cut(name: str, tmp_path: Path) -> None:
    run = training(name, tmp_path)
    run.train()
    assert run.coordinator.density_reached() == pytest.approx(0.5, abs=0.05)
    resumed = training(name, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert_same(resumed.model, run.model)
    assert optimize_model(run.model).num_parameters() < 0.8 * run.model.num_parameters()


def test_the_loss_of_sft_is_told_that_a_cut_model_lacks_its_forward_pass(tmp_path: Path) -> None:
    run = training("SFT", tmp_path)
    run.train()
    run.evaluate(run.train_dataset)
    run.model = optimize_model(run.model)
    with pytest.raises(ArgumentError, match="Evaluate before optimize_model"):
        run.evaluate(run.train_dataset)


@pytest.mark.parametrize("name", ["SFT", "GRPO"])
def test_a_model_that_the_trainer_loads_by_its_name_is_patched(name: str, tmp_path: Path) -> None:
    run = training(name, tmp_path, by_name=True)
    run.train()
    assert run.coordinator.density_reached() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["Reward", "SFT"])
def test_a_teacher_is_heard(name: str, tmp_path: Path) -> None:
    """The fused loss of SFT builds no logits: they come from a forward pass of their own."""
    run = training(name, tmp_path, distil_teacher_name_or_path="self")
    run.train()
    losses = [entry["distillation_loss"] for entry in run.state.log_history if "distillation_loss" in entry]
    assert losses[-1] > 0


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_a_teacher_is_refused_where_a_loss_returns_no_outputs(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"compute_loss: returns no outputs"):
        training(name, tmp_path, distil_teacher_name_or_path="self")


def test_a_teacher_is_refused_where_logits_come_without_gradient(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="carry no gradient"):
        training("DPO", tmp_path, distil_teacher_name_or_path="self").train()
