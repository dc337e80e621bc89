"""Second moments of the loss gradient at the output of linears: the output factor of K-FAC (arXiv 1503.05671)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.units import Group, Kind
from sparse_trainer.statistics.calibration_pass import LABELS, CalibrationPass, first_tensor, precise
from sparse_trainer.statistics.requests import READ_BY_A_LINEAR, Statistic

# Shape legend: N = tokens, B = sequences, T = tokens of a sequence, O = outputs of a linear.


@final
@dataclass(frozen=True)
class OutputGradients:
    """E[g g^T] over real tokens, by module path of the consumer; g is dL/dy of a sequence's summed loss, y its output.

    Memory: O x O numbers per linear.
    """

    kinds: ClassVar[tuple[Kind, ...]] = READ_BY_A_LINEAR
    in_stacked_experts: ClassVar[bool] = False
    loss: ClassVar[str] = LABELS

    def key(self, group: Group) -> str:
        """Return the path of the group's consumer."""
        return group.consumer

    @classmethod
    def collector(cls, requests: Sequence["OutputGradients"], run: CalibrationPass) -> "GradientCollector":
        """Return a collector for all consumers."""
        return GradientCollector(run)


@dataclass(frozen=True, kw_only=True)
class OutputGradientMoments:
    """What one linear's output means to the loss."""

    second_OO: Tensor
    """E[g g^T] per real token."""


@final
class GradientCollector:
    """Streams products of gradients, as the backward pass brings them."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, run: CalibrationPass) -> None:
        self.run, self.paths = run, run.consumers
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, Tensor] = {}

    def attach(self) -> list[RemovableHandle]:
        """Register two hooks for each consumer."""
        handles = []
        for path in self.paths:
            linear = self.run.model.get_submodule(path)
            handles += [
                linear.register_forward_pre_hook(_track, with_kwargs=True),
                linear.register_forward_hook(partial(self._see, path)),
            ]
        return handles

    def _see(self, path: str, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        output.register_hook(partial(self._arrive, path))

    @torch.no_grad()
    def _arrive(self, path: str, gradient: Tensor) -> None:
        if self.run.loss != LABELS:
            return
        g_BTO, real_BT = self.run.sequences(precise(gradient), path)
        g_NO = g_BTO.flatten(0, 1)
        count = g_NO.new_tensor(len(g_NO))
        if real_BT is not None:
            g_NO = g_NO.masked_fill(~real_BT.flatten().unsqueeze(-1), 0.0)
            count = real_BT.sum().to(g_NO.dtype)
        self.run.watch(path, g_NO)
        if path not in self._sums:
            self._sums[path] = g_NO.new_zeros(g_NO.shape[-1], g_NO.shape[-1])
            self._tokens[path] = torch.zeros_like(count)
        self._sums[path].addmm_(g_NO.T, g_NO)
        self._tokens[path] += count

    def results(self) -> Mapping[Statistic[Any], Mapping[str, OutputGradientMoments]]:
        """Return the means over all tokens."""
        found = {
            path: OutputGradientMoments(second_OO=sum_OO / self._tokens[path].clamp_min(1))
            for path, sum_OO in self._sums.items()
        }
        return {OutputGradients(): found}


def _track(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let the first linear of a frozen model have an output with a gradient."""
    x = first_tensor(args, kwargs)
    if not x.requires_grad:
        x.requires_grad_()
