"""Repairs against brute-force least squares on the data themselves."""

import logging

import pytest
import torch
from torch import Tensor

from sparse_trainer.errors import DataError, NonFiniteError
from sparse_trainer.one_shot.repairs.bias import FoldMean
from sparse_trainer.one_shot.repairs.least_squares import LeastSquares
from sparse_trainer.one_shot.repairs.scale import Scale
from sparse_trainer.statistics.moments import MomentSums
from tests.fixtures.oneshot_models import error, refit

# Shape legend: N = tokens, I = input features, O = outputs, K = kept features.

FEATURES, OUTPUTS, TOKENS = 12, 5, 400


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return correlated inputs with a mean, a weight, and what stays."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(FEATURES, FEATURES, generator=generator, dtype=torch.float64)
    x_NI = torch.randn(TOKENS, FEATURES, generator=generator, dtype=torch.float64) @ mixing
    x_NI += torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    weight_OI = torch.randn(OUTPUTS, FEATURES, generator=generator, dtype=torch.float64)
    keep_I = torch.ones(FEATURES, dtype=torch.bool)
    keep_I[torch.randperm(FEATURES, generator=generator)[:4]] = False
    return x_NI, weight_OI, keep_I


def moments_of(x_NI: Tensor) -> MomentSums:
    mean_I = x_NI.mean(0)
    centred = x_NI - mean_I
    return MomentSums(
        tokens=torch.tensor(float(len(x_NI))),
        mean_I=mean_I,
        variance_I=centred.square().mean(0),
        centred_II=centred.T @ centred / len(x_NI),
    )


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_is_lstsq(seed: int) -> None:
    x_NI, weight_OI, keep_I = data(seed)
    y_NO = x_NI @ weight_OI.T
    found = refit(LeastSquares(damping=0.0, reconstruct_bias=False), weight_OI, moments_of(x_NI), keep_I)
    expected = torch.linalg.lstsq(x_NI[:, keep_I], y_NO).solution.T
    torch.testing.assert_close(found.weight_OK, expected, rtol=1e-8, atol=1e-9)
    assert found.shift_O is None


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_with_bias_is_lstsq_with_a_column_of_ones(seed: int) -> None:
    x_NI, weight_OI, keep_I = data(seed)
    ones = torch.ones(len(x_NI), 1, dtype=torch.float64)
    found = refit(LeastSquares(damping=0.0, reconstruct_bias=True), weight_OI, moments_of(x_NI), keep_I)
    expected = torch.linalg.lstsq(torch.cat([x_NI[:, keep_I], ones], 1), x_NI @ weight_OI.T).solution.T
    assert found.shift_O is not None
    torch.testing.assert_close(found.weight_OK, expected[:, :-1], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.shift_O, expected[:, -1], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_error_is_that_on_the_data_and_no_repair_makes_it_larger(seed: int) -> None:
    x_NI, weight_OI, keep_I = data(seed)
    moments = moments_of(x_NI)
    y_NO = x_NI @ weight_OI.T

    def on_data(weight_OK: Tensor, shift_O: Tensor | None) -> Tensor:
        predicted = x_NI[:, keep_I] @ weight_OK.T + (0.0 if shift_O is None else shift_O)
        return (y_NO - predicted).square().sum(1).mean()

    without = on_data(weight_OI[:, keep_I], None)
    units = torch.arange(FEATURES)
    repairs = {"bias": refit(FoldMean(), weight_OI, moments, keep_I)}
    for damping in (0.0, 1e-3, 0.1, 10.0):
        repairs[f"scale {damping}"] = refit(Scale(damping=damping), weight_OI, moments, keep_I, units)
        repairs[f"pairs {damping}"] = refit(Scale(damping=damping), weight_OI, moments, keep_I, units // 2)
        for bias in (False, True):
            repairs[f"{bias} {damping}"] = refit(
                LeastSquares(damping=damping, reconstruct_bias=bias), weight_OI, moments, keep_I
            )
    for name, repaired in repairs.items():
        measured = on_data(repaired.weight_OK, repaired.shift_O)
        torch.testing.assert_close(
            error(weight_OI, moments, keep_I, repaired), measured, rtol=1e-8, atol=1e-9
        )
        assert measured <= without * (1 + 1e-9) or name.startswith("True"), name
    for damping in (0.0, 1e-3, 0.1, 10.0):
        with_bias = error(weight_OI, moments, keep_I, repairs[f"True {damping}"])
        assert with_bias <= error(weight_OI, moments, keep_I, repairs["bias"]) * (1 + 1e-9)


def test_scale_is_the_best_factor_per_unit() -> None:
    x_NI, weight_OI, keep_I = data()
    keep_I = torch.tensor([True, True, False, False, *[True] * 8])
    unit_I = torch.arange(FEATURES) // 2
    found = refit(Scale(damping=0.0), weight_OI, moments_of(x_NI), keep_I, unit_I)
    contributions = torch.stack(
        [(x_NI[:, unit_I == u] @ weight_OI[:, unit_I == u].T).flatten() for u in (0, 2, 3, 4, 5)], 1
    )
    factors = torch.linalg.lstsq(
        contributions, (x_NI @ weight_OI.T).flatten().unsqueeze(1)
    ).solution.flatten()
    expected = weight_OI[:, keep_I] * factors.repeat_interleave(2)
    torch.testing.assert_close(found.weight_OK, expected, rtol=1e-8, atol=1e-9)


def test_damping_pulls_towards_the_old_weight() -> None:
    x_NI, weight_OI, keep_I = data()
    found = refit(LeastSquares(damping=1e12, reconstruct_bias=False), weight_OI, moments_of(x_NI), keep_I)
    torch.testing.assert_close(found.weight_OK, weight_OI[:, keep_I], rtol=1e-6, atol=1e-6)


def test_too_few_tokens_say_how_many_are_needed() -> None:
    x_NI, weight_OI, keep_I = data()
    with pytest.raises(DataError, match=r"6 calibration tokens for 8 kept features.*at least 8.*80"):
        refit(LeastSquares(damping=0.1, reconstruct_bias=False), weight_OI, moments_of(x_NI[:6]), keep_I)


def test_ill_conditioned_moments_get_more_damping_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    x_NI, weight_OI, keep_I = data()
    x_NI[:, keep_I.nonzero().flatten()[1]] = x_NI[:, keep_I.nonzero().flatten()[0]]
    moments = moments_of(x_NI)
    with caplog.at_level(logging.WARNING):
        found = refit(LeastSquares(damping=0.0, reconstruct_bias=False), weight_OI, moments, keep_I)
    assert "down_proj: ill-conditioned" in caplog.text
    kept = refit(FoldMean(), weight_OI, moments, keep_I)
    plain = error(weight_OI, moments, keep_I, type(kept)(weight_OK=kept.weight_OK))
    assert error(weight_OI, moments, keep_I, found) < plain


def test_moments_that_cannot_be_solved_are_an_error() -> None:
    x_NI, weight_OI, keep_I = data()
    x_NI[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="down_proj"):
        refit(LeastSquares(damping=0.1, reconstruct_bias=False), weight_OI, moments_of(x_NI), keep_I)


def test_nothing_kept_leaves_only_the_bias() -> None:
    x_NI, weight_OI, keep_I = data()
    found = refit(
        LeastSquares(damping=0.1, reconstruct_bias=True), weight_OI, moments_of(x_NI), keep_I & False
    )
    assert found.weight_OK.shape == (OUTPUTS, 0)
    torch.testing.assert_close(found.shift_O, weight_OI @ x_NI.mean(0))
