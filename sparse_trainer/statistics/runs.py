"""What runs of blocks add to the hidden states, beside what the linear in front of each run reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.units import LAYERS, Group, Kind
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.statistics.block_states import state_in
from sparse_trainer.statistics.calibration_pass import CalibrationPass, precise
from sparse_trainer.statistics.moments import MomentSums, RunningMoments
from sparse_trainer.statistics.requests import Statistic

# Shape legend: B = sequences, T = tokens, N = tokens of a batch, I = inputs of a linear, H = hidden features.


@dataclass(frozen=True, kw_only=True)
class Run:
    """Consecutive blocks that go, and the linear that can take over what they did."""

    first: str
    """Path of the first of these blocks."""
    last: str
    before: str
    """Path of the block in front of them."""
    linear: str
    """Path of the linear whose output that block adds to the hidden states last."""


@final
@dataclass(frozen=True, kw_only=True)
class RunTargets:
    """What each run adds, by the path of its first block."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    in_stacked_experts: ClassVar[bool] = True
    loss: ClassVar[None] = None
    runs: tuple[Run, ...]

    def key(self, group: Group) -> str:
        """Return the path of the group's block."""
        return group.block

    @classmethod
    def collector(cls, requests: Sequence["RunTargets"], run: CalibrationPass) -> "RunCollector":
        """Return a collector for all runs."""
        return RunCollector(requests, run)


@dataclass(frozen=True, kw_only=True)
class RunTarget:
    """Moments of x, what the linear reads, and of t, what the run adds, over real tokens."""

    moments: MomentSums
    """Of x, with all products."""
    cross_IH: Tensor
    """E[x t^T]."""
    mean_H: Tensor
    """E[t]."""


@final
class RunCollector:
    """Streams products of what the linears read and what the runs add."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, requests: Sequence[RunTargets], run: CalibrationPass) -> None:
        self.requests, self.run = requests, run
        self.runs = tuple(dict.fromkeys(one for request in requests for one in request.runs))
        self.paths = tuple({path for one in self.runs for path in (one.before, one.last)})
        self._checked: set[Run] = set()
        self._probing = False
        self._inputs: dict[Run, Tensor] = {}
        self._before: dict[Run, Tensor] = {}
        self._moments: dict[Run, RunningMoments] = {}
        self._sums: dict[Run, tuple[Tensor, Tensor]] = {}

    def attach(self) -> list[RemovableHandle]:
        """Register three hooks for each run."""
        handles = []
        for one in self.runs:
            linear, before, last = (
                self.run.model.get_submodule(path) for path in (one.linear, one.before, one.last)
            )
            handles += [
                linear.register_forward_hook(partial(self._read, one)),
                before.register_forward_hook(partial(self._enter, one), with_kwargs=True, prepend=True),
                last.register_forward_hook(partial(self._leave, one), prepend=True),
            ]
        return handles

    def _read(self, one: Run, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._probing:
            return output + _probe(output)
        self._inputs[one] = args[0].detach()
        return None

    @torch.no_grad()
    def _enter(
        self, one: Run, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._probing:
            return
        state = state_in(output)
        if one not in self._checked:
            self._checked.add(one)
            self._check(one, block, args, kwargs, state)
        self._before[one] = state.detach()

    def _check(
        self, one: Run, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor
    ) -> None:
        """Run the block again with something added behind the linear: the block must add just that to its output."""
        self._probing = True
        try:
            moved = precise(state_in(block(*args, **kwargs)) - state)
        finally:
            self._probing = False
        added = _probe(precise(state))
        tolerance = 0.02 + 8 * torch.finfo(state.dtype).eps * float(state.abs().amax())
        if moved.shape != added.shape or float((moved - added).abs().amax()) > tolerance:
            raise UnsupportedModelError(
                one.before,
                f"does not add the output of {one.linear} to its hidden states as it is: a norm stands behind it.",
                "Set no reconstruct.",
            )

    @torch.no_grad()
    def _leave(self, one: Run, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._probing:
            return
        change = precise(state_in(output)) - precise(self._before.pop(one))
        change_BTH, real_BT = self.run.sequences(change, one.last)
        x_BTI, _ = self.run.sequences(precise(self._inputs.pop(one)), one.last)
        x_NI, change_NH = x_BTI.flatten(0, 1), change_BTH.flatten(0, 1)
        real_N = None if real_BT is None else real_BT.flatten()
        if real_N is not None:
            change_NH = change_NH.masked_fill(~real_N.unsqueeze(-1), 0.0)
        if one not in self._moments:
            self._moments[one] = RunningMoments(x_NI, covariance=True)
        self.run.watch(one.first, self._moments[one].add(x_NI, real_N))
        sums = (x_NI.T @ change_NH).double(), change_NH.sum(0, dtype=torch.float64)
        before = self._sums.get(one)
        self._sums[one] = sums if before is None else (before[0].add_(sums[0]), before[1].add_(sums[1]))

    def results(self) -> Mapping[Statistic[Any], Mapping[str, RunTarget]]:
        """Return the means over all tokens."""
        found: dict[str, RunTarget] = {}
        for one, (cross_IH, sum_H) in self._sums.items():
            moments = self._moments[one].sums()
            found[one.first] = RunTarget(
                moments=moments, cross_IH=cross_IH / moments.tokens, mean_H=sum_H / moments.tokens
            )
        return {request: {one.first: found[one.first] for one in request.runs} for request in self.requests}


def _probe(like: Tensor) -> Tensor:
    """Return numbers of every size up to 1, none of which a norm leaves alone."""
    features = like.shape[-1]
    probe_H = torch.linspace(0.1, 1.0, features, device=like.device, dtype=like.dtype)
    return probe_H.expand(like.shape)
