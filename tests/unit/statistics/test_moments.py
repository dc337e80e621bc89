"""Moments of what linears read: shared where several read the same, products of many features."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from patchers.units import Stack, Structure
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.calibration_pass import CalibrationPass
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments, MomentSums, RunningMoments
from tests.fixtures.oneshot_models import model_of, sequences, widths

# Shape legend: B = sequences, T = tokens, N = tokens, I = features that a linear reads.


class TwoReaders(nn.Module):
    """A block of two linears that read the same; the second reads something else where the first feature says so."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.one, self.two, self.writes = nn.Linear(4, 4), nn.Linear(4, 4), writes

    def forward(self, x_BTI: Tensor) -> Tensor:
        first = self.one(x_BTI)
        if self.writes:
            x_BTI += 1.0
        found: Tensor = first + self.two(x_BTI if float(x_BTI.flatten()[0]) > 0 else x_BTI + 1.0)
        return found


def moments_of_two(x_BTI: Sequence[Tensor], *, writes: bool = False) -> dict[str, MomentSums]:
    """Return the moments of both linears, of batches."""
    model = nn.ModuleDict({"blocks": nn.ModuleList([TwoReaders(writes=writes)])})
    stack = Stack(path="blocks", size=1)
    run = CalibrationPass(model, Structure(groups=(), stacks=(stack,)))
    request = Moments(every_linear=True, covariance=True)
    collector = Moments.collector([request], run)
    handles = collector.attach()
    for number, x in enumerate(x_BTI):
        run.batch = Batch(
            number=number, inputs={}, rows=1, real_BT=None, has_decoder_beside=False,
            decoder_real_BT=None, terms=None,
        )  # fmt: skip
        with torch.no_grad():
            model["blocks"][0](x)
        for finish in run.after_batch:
            finish()
    for handle in handles:
        handle.remove()
    return dict(collector.results()[request])


def test_linears_that_read_the_same_share_their_moments() -> None:
    model = model_of("llama")
    request = Moments(every_linear=True, covariance=True)
    found = collect(model, widths(model), sequences(model, (20, 13)), [request]).of(request)
    q, k, v, o, gate, up, _ = [
        found[f"model.layers.0.{name}"]
        for name in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
    ]
    assert q is k is v
    assert gate is up
    assert len({id(moments) for moments in (q, o, gate)}) == 3
    assert found["model.layers.1.self_attn.q_proj"] is not q


def test_linears_that_read_one_tensor_before_and_after_it_is_written_into_share_nothing() -> None:
    x = torch.rand(1, 6, 4) + 0.1
    mean_I = x.mean((0, 1)).double()
    found = moments_of_two([x.clone(), x.clone()], writes=True)
    torch.testing.assert_close(found["blocks.0.one"].mean_I, mean_I, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["blocks.0.two"].mean_I, mean_I + 1.0, rtol=1e-5, atol=1e-6)


def test_linears_that_read_the_same_only_now_and_then_are_told_apart_or_refused() -> None:
    x = torch.rand(1, 6, 4) + 0.1
    found = moments_of_two([-x, x, x])
    mean_I = x.mean((0, 1)).double()
    torch.testing.assert_close(found["blocks.0.one"].mean_I, mean_I / 3, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["blocks.0.two"].mean_I, mean_I / 3 + 1 / 3, rtol=1e-5, atol=1e-6)
    with pytest.raises(UnsupportedModelError, match="in some calibration batches, and not in others"):
        moments_of_two([x, -x])


@pytest.mark.parametrize("size", [5, 700])
def test_products_of_many_features_are_all_there_on_both_sides(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_NI = torch.randn(40, size, generator=generator, dtype=torch.float64)
    running = RunningMoments(x_NI, covariance=True)
    for part_NI in x_NI.split(15):
        running.add(part_NI, None)
    centred_II = running.sums().centred_II
    assert centred_II is not None
    torch.testing.assert_close(centred_II, torch.cov(x_NI.T, correction=0))
    assert torch.equal(centred_II, centred_II.T)
