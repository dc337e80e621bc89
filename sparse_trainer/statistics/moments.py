"""Moments of what consumers read, merged batch by batch (Chan et al. 1983): exact also where means are large."""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.units import Group
from sparse_trainer.statistics.hooks import HookContext, first_tensor, precise, wide
from sparse_trainer.statistics.requests import MomentSums

# Shape legend: N = tokens, B = sequences, T = tokens of a sequence, I = features of a consumer's input.

_STRIP = 256
"""Features whose products are taken at once."""


@final
class MomentCollector:
    """Streams the moments of one group's consumer."""

    def __init__(
        self, flight: HookContext, group: Group, *, moments: bool, covariance: bool, sequence_means: bool
    ) -> None:
        self.flight, self.group = flight, group
        self.wants_moments, self.covariance, self.wants_means = moments, covariance, sequence_means
        self.count = self.mean_I = self.scatter_I = self.means_I = torch.zeros(())
        self.scatter_II: Tensor | None = None
        self.is_reached = False

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Hang the hook, in front of a gate: what closed units say counts."""
        consumer = model.get_submodule(self.group.consumer)
        return [consumer.register_forward_pre_hook(self._see, with_kwargs=True, prepend=True)]

    def finish_batch(self) -> None:
        """Do nothing: every call is complete in itself."""

    @torch.no_grad()
    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x_BTI, real_BT = self.flight.sequences(first_tensor(args, kwargs).detach(), self.group)
        x_BTI = precise(x_BTI)
        if real_BT is not None:
            x_BTI = x_BTI.masked_fill(~real_BT.unsqueeze(-1), 0.0)
        if not self.is_reached:
            self._make(x_BTI)
        if self.wants_moments:
            self._merge(x_BTI.flatten(0, 1), None if real_BT is None else real_BT.flatten())
        if self.wants_means:
            length = x_BTI.shape[1] if real_BT is None else real_BT.sum(1).clamp_min(1).unsqueeze(-1)
            mean_BI = x_BTI.abs().sum(1) / length
            self.flight.watch(self.group.name, mean_BI)
            self.means_I += mean_BI.square().sum(0)

    def _make(self, x_BTI: Tensor) -> None:
        size, dtype = x_BTI.shape[-1], wide(x_BTI.device)
        self.count = torch.zeros((), dtype=dtype, device=x_BTI.device)
        self.mean_I, self.scatter_I, self.means_I = (
            torch.zeros(size, dtype=dtype, device=x_BTI.device) for _ in range(3)
        )
        if self.covariance:
            self.scatter_II = torch.zeros(size, size, dtype=x_BTI.dtype, device=x_BTI.device)
        self.is_reached = True

    def _merge(self, x_NI: Tensor, real_N: Tensor | None) -> None:
        count = self.count.new_tensor(len(x_NI)) if real_N is None else real_N.sum().to(self.count.dtype)
        safe = count.clamp_min(1)
        mean_I = x_NI.sum(0) / safe.to(x_NI.dtype)
        centred_NI = x_NI - mean_I
        if real_N is not None:
            centred_NI.masked_fill_(~real_N.unsqueeze(-1), 0.0)
        scatter_I = centred_NI.square().sum(0)
        self.flight.watch(self.group.name, scatter_I)
        total = (self.count + count).clamp_min(1)
        step_I = mean_I.to(self.mean_I.dtype) - self.mean_I
        weight = self.count * count / total
        if self.scatter_II is not None:
            step = (step_I * weight.sqrt()).to(x_NI.dtype)
            _add_products(self.scatter_II, centred_NI)
            self.scatter_II.addr_(step, step)
        self.scatter_I += scatter_I + step_I.square() * weight
        self.mean_I += step_I * (count / total)
        self.count = self.count + count

    def moments(self) -> MomentSums:
        """Return the moments of all batches."""
        count = self.count.clamp_min(1)
        return MomentSums(
            tokens=self.count,
            mean_I=self.mean_I,
            variance_I=self.scatter_I / count,
            centred_II=None if self.scatter_II is None else self._covariance(count),
        )

    def _covariance(self, count: Tensor) -> Tensor:
        assert self.scatter_II is not None
        upper_II = self.scatter_II.triu_().div_(count.to(self.scatter_II.dtype))
        self.scatter_II = None
        return upper_II.add_(upper_II.triu(1).T)


def _add_products(sum_II: Tensor, x_NI: Tensor) -> None:
    """Add x^T x to the upper triangle, in strips: little more than half of the products of the whole square."""
    size = len(sum_II)
    for start in range(0, size, _STRIP):
        end = min(start + _STRIP, size)
        sum_II[start:end, start:].addmm_(x_NI[:, start:end].T, x_NI[:, start:])
