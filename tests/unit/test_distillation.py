"""Distillation counts only what counts, and leaves the teacher alone."""

from typing import Any

import pytest
import torch

from sparse_trainer import ModelPatchingCoordinator, SparseTrainingArguments
from sparse_trainer.distillation.teacher import Distiller, hidden_loss, logit_loss, valid_distributions
from sparse_trainer.errors import ArgumentError
from tests.compact_models import batch, tiny


def test_logit_loss_is_kl_times_temperature_squared() -> None:
    student, teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.randn(4, 3)
    p, q = (torch.softmax(z / 3.0, -1) for z in (teacher, student))
    expected = (p * (p.log() - q.log())).sum(-1).mean() * 9
    torch.testing.assert_close(logit_loss(student, teacher, 3.0), expected)


def test_token_losses_are_normalised_by_valid_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([[1, 2, -100, -100, -100], [1, 1, 1, 1, -100]])
    counts = valid_distributions(student, {"labels": labels}, shifted=False)
    chosen = labels != -100
    expected = logit_loss(student[chosen], teacher[chosen], 2.0)
    torch.testing.assert_close(logit_loss(student, teacher, 2.0, counts), expected)
    longer = [torch.cat([z, torch.randn(2, 3, 7)], dim=1) for z in (student, teacher)]
    padded = torch.cat([labels, torch.full((2, 3), -100)], dim=1)
    counts = valid_distributions(longer[0], {"labels": padded}, shifted=False)
    torch.testing.assert_close(logit_loss(*longer, 2.0, counts), expected)


def test_causal_positions_are_judged_by_the_next_label() -> None:
    labels = torch.tensor([[-100, -100, 5, 6]])
    counts = valid_distributions(torch.zeros(1, 4, 9), {"labels": labels}, shifted=True)
    assert counts.tolist() == [[False, True, True, False]]


def test_hidden_loss_ignores_padding() -> None:
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    rows = [(student[0] - teacher[0]).square().mean(), (student[1, :2] - teacher[1, :2]).square().mean()]
    torch.testing.assert_close(hidden_loss(student, teacher, mask), torch.stack(rows).mean())


def distil_args(**options: Any) -> SparseTrainingArguments:
    return SparseTrainingArguments(distil_teacher_name_or_path="self", **options)


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "deberta-v2"])
def test_own_copy_as_teacher_costs_nothing_while_gates_are_open(family: str) -> None:
    model = tiny(family)
    coordinator = ModelPatchingCoordinator(distil_args(distil_alpha_hidden=1.0))
    coordinator.patch_model(model)
    inputs = {**batch(model), "labels": torch.tensor([0, 1])}
    outputs = model(**inputs, output_hidden_states=True)
    extra = coordinator.extra_losses(inputs, outputs)
    assert extra.distillation is not None
    assert float(extra.distillation.detach()) == pytest.approx(0.0, abs=1e-6)
    next(iter(coordinator.gates.values())).keep_U.zero_()
    changed = coordinator.extra_losses(inputs, model(**inputs, output_hidden_states=True))
    assert changed.distillation is not None
    assert float(changed.distillation.detach()) > 1e-4


def test_teacher_is_frozen_and_in_evaluation_mode() -> None:
    teacher = tiny().train()
    distiller = Distiller(teacher, distil_args(), shifted=False)
    assert not distiller.teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_teacher_that_is_the_student_is_refused() -> None:
    model = tiny()
    with pytest.raises(ArgumentError, match="student itself"):
        ModelPatchingCoordinator(SparseTrainingArguments(), teacher=model).patch_model(model)


def test_teacher_with_other_labels_is_refused_with_both_shapes() -> None:
    model, other = tiny(), tiny()
    other.classifier = torch.nn.Linear(32, 5).double()
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(), teacher=other)
    coordinator.patch_model(model)
    inputs = batch(model)
    with pytest.raises(ArgumentError, match=r"\(2, 5\).*\(2, 3\)"):
        coordinator.extra_losses(inputs, model(**inputs))


def test_closed_layers_are_not_compared() -> None:
    model = tiny()
    args = distil_args(
        scoring="magnitude", units=["layers"], distil_alpha_hidden=1.0, distil_alpha_teacher=0.0
    )
    coordinator = ModelPatchingCoordinator(args)
    coordinator.patch_model(model)
    coordinator.gates["bert.encoder.layer.2.layer"].keep_U.zero_()
    inputs = batch(model)
    extra = coordinator.extra_losses(inputs, model(**inputs, output_hidden_states=True))
    assert extra.distillation is not None
    assert float(extra.distillation.detach()) == pytest.approx(0.0, abs=1e-6)
    coordinator.gates["bert.encoder.layer.2.layer"].keep_U.fill_(1)
    coordinator.gates["bert.encoder.layer.0.layer"].keep_U.zero_()
    extra = coordinator.extra_losses(inputs, model(**inputs, output_hidden_states=True))
    assert extra.distillation is not None
    assert float(extra.distillation.detach()) > 1e-4
