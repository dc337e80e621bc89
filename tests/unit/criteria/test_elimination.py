"""What single units cost is read off the factor of their moments; nothing of the inverse is formed for it."""

import pytest
import torch

from sparse_trainer.criteria import elimination
from sparse_trainer.criteria.elimination import block_costs, blocks_of_inverse, damped, rounds_of_removal
from sparse_trainer.statistics.moments import RunningMoments


def moments(size: int) -> torch.Tensor:
    """Return second moments of inputs that hang together."""
    x_NI = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    x_NI[:, 1:] += 0.5 * x_NI[:, :-1]
    return x_NI.T @ x_NI / len(x_NI)


@pytest.mark.parametrize(("units", "width"), [(19, 1), (7, 1), (6, 3), (2, 9)])
def test_blocks_of_the_inverse_are_those_of_the_inverse(
    units: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "_STRIP", 4)
    second_II = moments(19)
    inverse_II = torch.linalg.inv(second_II)
    found_UWW = blocks_of_inverse(torch.linalg.cholesky(second_II), units, width)
    for unit, block_WW in enumerate(found_UWW):
        place = slice(unit * width, (unit + 1) * width)
        torch.testing.assert_close(block_WW, inverse_II[place, place])


@pytest.mark.parametrize("shuffled", [False, True])
def test_one_round_costs_what_the_first_of_several_does(*, shuffled: bool) -> None:
    second_II, weight_OI = damped(moments(12), 0.01), torch.randn(5, 12, dtype=torch.float64)
    order_I = torch.randperm(12) if shuffled else torch.arange(12)
    index_UW = order_I[:10].reshape(5, 2)
    (one,) = rounds_of_removal(weight_OI, second_II, index_UW, 1)
    first = next(rounds_of_removal(weight_OI, second_II, index_UW, 3))
    torch.testing.assert_close(one.cost_R, first.cost_R)
    assert sorted(one.going_G.tolist()) == list(range(5))
    inverse_II = torch.linalg.inv(second_II)
    for unit, columns_W in enumerate(index_UW):
        block_WW = inverse_II[columns_W][:, columns_W]
        columns_OW = weight_OI[:, columns_W]
        expected = (columns_OW @ torch.linalg.inv(block_WW) @ columns_OW.T).trace()
        torch.testing.assert_close(one.cost_R[unit], expected)
    assert block_costs(weight_OI[:, :2], torch.ones(2, 1, 1, dtype=torch.float64)).shape == (2,)


def test_damping_leaves_the_moments_as_they_are() -> None:
    second_II = moments(5)
    before = second_II.clone()
    assert bool((damped(second_II, 0.1).diagonal() > before.diagonal()).all())
    assert torch.equal(second_II, before)


@pytest.mark.parametrize("size", [5, 256, 300])
def test_batches_with_other_means_give_the_covariance_of_all(size: int) -> None:
    x_NI = torch.randn(700, size, dtype=torch.float64) + 100 * torch.randn(size, dtype=torch.float64)
    x_NI[300:] += 3.0
    running = RunningMoments(x_NI[:1], covariance=True)
    for part_NI in x_NI.split([300, 150, 250]):
        running.add(part_NI, None)
    found = running.sums()
    assert found.centred_II is not None
    torch.testing.assert_close(found.centred_II, x_NI.T.cov(correction=0))
    torch.testing.assert_close(found.second_II, x_NI.T @ x_NI / 700)
    assert torch.equal(found.centred_II, found.centred_II.T)
