"""From scores to masks: exact counts whatever the ties, floors, groups of four."""

import pytest
import torch

from sparse_trainer.budget.masks import n_of_m, top
from sparse_trainer.training.mask_selection import above, keep_by_method


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fraction", [0.001, 0.29, 0.5, 0.999, 1.0])
def test_top_keeps_an_exact_count_of_the_best(fraction: float, dtype: torch.dtype) -> None:
    score = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    for values in (score, score.round(), torch.zeros_like(score)):
        keep = top(values, fraction)
        assert int(keep.sum()) == max(1, int(fraction * 1000 + 1e-6))
        assert keep.all() or values[keep].min() >= values[~keep].max()


def test_thresholds_leave_a_floor() -> None:
    score = torch.arange(1000.0)
    assert int(above(score, 2000.0, 0.005).sum()) == 6
    assert int(above(score, 2000.0, 0.0).sum()) == 0
    assert int(above(score, 989.0, 0.005).sum()) == 10
    assert keep_by_method("sigmoid_threshold", torch.tensor([-3.0, 0.0, 3.0]), 0.5, 0.0).tolist() == [
        False,
        False,
        True,
    ]
    assert keep_by_method("l0", torch.tensor([-0.1, 0.1]), 7.0, 0.0).tolist() == [False, True]


def test_two_of_four_counts_along_the_inputs() -> None:
    score = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    keep = n_of_m(score)
    assert (keep.view(6, 4, 4).sum(-1) == 2).all()
    assert (score.view(6, 4, 4).masked_fill(~keep.view(6, 4, 4), torch.inf).min(-1).values
            > score.view(6, 4, 4).masked_fill(keep.view(6, 4, 4), -torch.inf).max(-1).values).all()  # fmt: skip
