"""What a linear in front of layers reads, beside what these layers do to the hidden states: for every run of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.units import CHANNELS, Group, Kind
from sparse_trainer.statistics.block_states import state_in
from sparse_trainer.statistics.calibration_pass import CalibrationPass, precise
from sparse_trainer.statistics.moments import RunningMoments
from sparse_trainer.statistics.requests import Statistic
from sparse_trainer.statistics.targets import Target, token_weights

# Shape legend: B = sequences, T = tokens, N = tokens of a batch, I = inputs of a linear, H = hidden features.


@final
@dataclass(frozen=True, kw_only=True)
class RunTargets:
    """What the next 1, 2, ... layers behind the groups' blocks add to the hidden states, by path of the consumer.

    Of the last blocks of a stack fewer.
    """

    kinds: ClassVar[tuple[Kind, ...]] = (CHANNELS,)
    in_stacked_experts: ClassVar[bool] = False
    loss: ClassVar[None] = None
    longest: int
    """Layers of the longest run."""

    def key(self, group: Group) -> str:
        """Return the path of the group's consumer."""
        return group.consumer

    @classmethod
    def collector(cls, requests: Sequence["RunTargets"], run: CalibrationPass) -> "RunTargetCollector":
        """Return a collector for the blocks of all groups."""
        (request,) = requests
        return RunTargetCollector(request, run)


@dataclass
class _Front:
    """What has come by one linear."""

    moments: RunningMoments
    tokens: Tensor | int
    cross_IH: dict[int, Tensor]
    """Sums of x t^T, by length of the run."""
    sum_H: dict[int, Tensor]


@dataclass(frozen=True)
class _Passing:
    """A batch between a block and the end of the longest run behind it."""

    x_NI: Tensor
    """Each token by its weight."""
    weight_N: Tensor
    state: Tensor
    """What the block returns."""


@final
class RunTargetCollector:
    """Streams products of what linears read and what the layers behind them add."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, request: RunTargets, run: CalibrationPass) -> None:
        self.request, self.run = request, run
        self.fronts = {(g.stack, g.layer): g for g in run.structure.groups}
        self.places = [
            (stack.path, layer)
            for stack in run.structure.stacks
            for layer in range(stack.size)
            if any((stack.path, layer - back) in self.fronts for back in range(request.longest + 1))
        ]
        self.paths = (*run.consumers, *(f"{stack}.{layer}" for stack, layer in self.places))
        self._x: dict[str, Tensor] = {}
        self._passing: dict[tuple[str, int], _Passing] = {}
        self._found: dict[str, _Front] = {}

    def attach(self) -> list[RemovableHandle]:
        """Register hooks in front of the linears and behind the blocks."""
        blocks = {place: self.run.model.get_submodule(f"{place[0]}.{place[1]}") for place in self.places}
        return [
            *self.run.show_inputs(self.run.consumers, self._x.__setitem__),
            *(
                block.register_forward_hook(partial(self._leave, place), prepend=True)
                for place, block in blocks.items()
            ),
        ]

    @torch.no_grad()
    def _leave(self, place: tuple[str, int], block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        state = precise(state_in(output).detach())
        (stack, layer), longest = place, self.request.longest
        self._passing.pop((stack, layer - longest - 1), None)
        for length in range(1, longest + 1):
            front = stack, layer - length
            if front in self._passing:
                self._add(self.fronts[front], self._passing[front], length, state)
        if place in self.fronts:
            self._passing[place] = self._begun(self.fronts[place], state)

    def _begun(self, group: Group, state: Tensor) -> _Passing:
        path = group.consumer
        x_BTI, _ = self.run.sequences(precise(self._x.pop(path)), path)
        state_BTH, real_BT = self.run.sequences(state, group.block)
        x_NI, weight_N = x_BTI.flatten(0, 1), token_weights(state_BTH, real_BT).flatten()
        x_NI = x_NI.masked_fill((weight_N == 0).unsqueeze(-1), 0.0)
        if path not in self._found:
            self._found[path] = _Front(RunningMoments(x_NI, covariance=True), 0, {}, {})
        found = self._found[path]
        self.run.watch(path, found.moments.add(x_NI, weight_N))
        found.tokens = found.tokens + (weight_N.numel() if real_BT is None else real_BT.sum())
        # Some blocks write into what they read.
        return _Passing(x_NI * weight_N.unsqueeze(-1), weight_N, state.clone())

    def _add(self, group: Group, passing: _Passing, length: int, state: Tensor) -> None:
        added_BTH, _ = self.run.sequences(state - passing.state, group.block)
        added_NH = added_BTH.flatten(0, 1).masked_fill((passing.weight_N == 0).unsqueeze(-1), 0.0)
        self.run.watch(group.consumer, added_NH)
        found = self._found[group.consumer]
        sum_H = (passing.weight_N @ added_NH).double()
        if length not in found.cross_IH:
            found.cross_IH[length] = passing.x_NI.T @ added_NH
            found.sum_H[length] = sum_H
        else:
            found.cross_IH[length].addmm_(passing.x_NI.T, added_NH)
            found.sum_H[length] += sum_H

    def results(self) -> Mapping[Statistic[Any], Mapping[str, dict[int, Target]]]:
        """Return the weighted means over all tokens, by length of the run."""
        return {self.request: {path: self._targets(front) for path, front in self._found.items()}}

    def _targets(self, front: _Front) -> dict[int, Target]:
        weight = front.moments.count
        moments = replace(front.moments.sums(), tokens=torch.as_tensor(front.tokens))
        return {
            length: Target(
                moments=moments,
                cross_IH=cross_IH / weight.to(cross_IH.dtype),
                mean_H=front.sum_H[length] / weight,
            )
            for length, cross_IH in front.cross_IH.items()
        }
