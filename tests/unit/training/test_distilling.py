"""Learning from a teacher without pruning: the loss by hand, accumulation, and where it leads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from sparse_trainer.errors import ArgumentError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.run.recipes.distillation import TeacherOptions
from sparse_trainer.tasks.language.token_losses import TokenBatch
from sparse_trainer.training.distillation.comparable import check_teacher
from sparse_trainer.training.distilling import distilling_trainer
from tests.fixtures.language_models import VOCABULARY, language_model

torch.manual_seed(5)
ROWS = [
    {"input_ids": torch.randint(3, VOCABULARY, (length,)).tolist()} for length in (9, 5, 12, 7, 12, 3, 8, 6)
]


def teacher_model(kind: str = "llama") -> PreTrainedModel:
    """Return a model of other weights than those of the student."""
    model = language_model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def trainer_of(folder: Path, options: TeacherOptions, size: int, **more: Any) -> Any:
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=size, report_to="none", use_cpu=True,
        dataloader_pin_memory=False, disable_tqdm=True, save_strategy="no", logging_steps=1, seed=1,
        learning_rate=1e-3, **{"max_steps": 1} | more,
    )  # fmt: skip
    cls = distilling_trainer(Trainer, teacher_model(), options.weights)
    return cls(
        model=language_model("llama"), args=arguments, train_dataset=Dataset.from_list(ROWS),
        data_collator=TokenBatch(padding=1),
    )  # fmt: skip


def divergence(student: PreTrainedModel, teacher: PreTrainedModel, temperature: float = 1.0) -> torch.Tensor:
    """Return the mean KL per token that has a label, over all rows."""
    batch = TokenBatch(padding=1)(ROWS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logs = [F.log_softmax(model(**inputs).logits[:, :-1] / temperature, -1) for model in (student, teacher)]
    kl_BT = F.kl_div(*logs, log_target=True, reduction="none").sum(-1)
    return kl_BT[batch["labels"][:, 1:] != -100].mean()


def test_the_loss_is_the_weighed_sum(tmp_path: Path) -> None:
    options = TeacherOptions(teacher="x", alpha_ce=0.3, alpha_teacher=0.7, temperature=2.0)
    trainer = trainer_of(tmp_path, options, size=len(ROWS))
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    student = language_model("llama")
    with torch.no_grad():
        task = student(**TokenBatch(padding=1)(ROWS)).loss
        taught = 4 * divergence(student, teacher_model(), 2.0)
    assert logged["loss"] == pytest.approx(float(0.3 * task + 0.7 * taught), rel=1e-4)
    assert logged["distillation_loss"] == pytest.approx(float(0.7 * taught), rel=1e-4)


def test_only_the_last_layers_are_compared_also_with_a_taller_teacher(tmp_path: Path) -> None:
    options = TeacherOptions(teacher="x", alpha_ce=0, alpha_teacher=0, alpha_hidden=1, tail_layers=2)
    trainer = trainer_of(tmp_path, options, size=len(ROWS))
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    batch = TokenBatch(padding=1)(ROWS)
    mask_BT = batch["attention_mask"]
    with torch.no_grad():
        student, teacher = (
            model(**batch, output_hidden_states=True).hidden_states
            for model in (language_model("llama"), teacher_model())
        )
    losses = []
    for own_BTD, other_BTD in zip(student[-2:], teacher[-2:], strict=True):
        error_BT = (own_BTD - other_BTD).square().mean(-1) * mask_BT
        losses.append(error_BT.sum() / mask_BT.sum())
    assert logged["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)

    short, _ = prune(language_model("llama"), criterion="last", density={"layers": 0.67})
    check_teacher(short, teacher_model(), replace(options, tail_layers=1).weights)
    with pytest.raises(ArgumentError, match="tail_layers=2, and one of the models has"):
        check_teacher(short, teacher_model(), options.weights)
    with pytest.raises(ArgumentError, match="tail_layers: alpha_hidden is 0"):
        TeacherOptions(teacher="x", tail_layers=2)


@pytest.mark.parametrize("alpha_hidden", [0.0, 1.0])
def test_one_batch_of_eight_is_four_of_two(alpha_hidden: float, tmp_path: Path) -> None:
    """Also on rows with padding, where the tokens whose hidden states are compared are not those with labels."""
    options = TeacherOptions(teacher="x", alpha_ce=0.5, alpha_teacher=0.5, alpha_hidden=alpha_hidden)
    found = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path, options, size, gradient_accumulation_steps=steps, optim="sgd", max_grad_norm=0
        )
        trainer.train()
        found.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_the_student_comes_closer_and_the_teacher_stays(tmp_path: Path) -> None:
    options = TeacherOptions(teacher="x", alpha_ce=0.0, alpha_teacher=1.0, temperature=1.0)
    trainer = trainer_of(tmp_path, options, size=8, max_steps=20)
    teacher = trainer.coordinator.distiller.teacher
    with torch.no_grad():
        before = divergence(language_model("llama"), teacher)
    trainer.train()
    with torch.no_grad():
        after = divergence(trainer.model.eval(), teacher)
    assert after < 0.8 * before
    for mine, given in zip(teacher.parameters(), teacher_model().parameters(), strict=True):
        assert torch.equal(mine, given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_teacher": 0.0}, "both are 0, and the teacher would teach nothing"),
        ({"alpha_ce": -1.0}, "alpha_ce: -1.0 is negative"),
        ({"temperature": 0.0}, "temperature: 0.0 is not positive"),
    ],
)
def test_what_teaches_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TeacherOptions(teacher="x", **options)
