"""Who divides a loss under gradient accumulation, and what share of its step a batch has."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparse_trainer.training.loss import divides, share_of_step


def told(**options: Any) -> SimpleNamespace:
    """Return what the rules read of a Trainer."""
    values: dict[str, Any] = {
        "loss_is_scaled_for_ga": None,
        "model_accepts_loss_kwargs": True,
        "compute_loss_func": None,
        "label_smoother": None,
        "_loss_shifts_labels": False,
        "args": SimpleNamespace(average_tokens_across_devices=False),
        **options,
    }
    return SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("options", "num_items", "expected"),
    [
        ({}, 8, False),
        ({}, None, True),
        ({"model_accepts_loss_kwargs": False}, None, True),
        ({"compute_loss_func": print}, None, False),
        ({"loss_is_scaled_for_ga": False}, 8, True),
        ({"loss_is_scaled_for_ga": True, "model_accepts_loss_kwargs": False}, None, False),
    ],
)
def test_division_follows_the_rule_of_training_step(
    options: dict[str, Any], num_items: int | None, expected: bool
) -> None:
    assert divides(told(**options), num_items) is expected


def test_share_counts_what_the_loss_averages_over() -> None:
    labels = torch.tensor([[1, 2, -100], [3, -100, 4]])
    assert share_of_step(told(), {"labels": labels}, 8) == 0.5
    assert share_of_step(told(_loss_shifts_labels=True), {"labels": labels}, 8) == 0.25
    shifted = {"labels": labels, "shift_labels": torch.tensor([[1, -100, -100]])}
    assert share_of_step(told(_loss_shifts_labels=True), shifted, 8) == 0.125
    assert share_of_step(told(), {}, 8) is None
    assert share_of_step(told(loss_is_scaled_for_ga=False), {"labels": labels}, 8) is None
