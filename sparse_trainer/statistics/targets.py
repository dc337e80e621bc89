"""What a linear of a block reads, beside what the hidden states behind it lack to be given ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.units import CHANNELS, HEADS, Group, Kind
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.statistics.block_states import state_in
from sparse_trainer.statistics.calibration_pass import CalibrationPass, precise
from sparse_trainer.statistics.moments import MomentSums, RunningMoments
from sparse_trainer.statistics.requests import Statistic

# Shape legend: B = sequences, T = tokens, N = tokens of a batch, I = inputs of a linear, H = hidden features.


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StateTargets:
    """What is missing behind the linear that reads one group's units, by its path."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    in_stacked_experts: ClassVar[bool] = False
    loss: ClassVar[None] = None
    states: Sequence[Any]
    """What the block is to return: one entry per forward pass, a hidden state first."""
    last: str | None = None
    """Path of the block's last linear, where the group's stands before it: `states` are without what that one adds."""
    norm: str | None = None
    """Path of the norm that stands behind, in the block: `states` are what it reads."""

    def key(self, group: Group) -> str:
        """Return the path of the group's consumer."""
        return group.consumer

    @classmethod
    def collector(cls, requests: Sequence["StateTargets"], run: CalibrationPass) -> "TargetCollector":
        """Return a collector for one block: requests hold the states of one."""
        (request,), (group,) = requests, run.structure.groups
        return TargetCollector(request, group, run)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Moments of x, what the linear reads, and of t, what is missing behind it, over real tokens.

    A token weighs 1 / mean(y^2), y being the state that the block is to return: what comes next reads states behind a
    norm, so errors count relative to their size, and the few tokens with huge states do not decide alone.
    """

    moments: MomentSums
    """Of x, with all products."""
    cross_IH: Tensor
    """E[x t^T]."""
    mean_H: Tensor
    """E[t]."""


@final
class TargetCollector:
    """Streams products of what the linear reads and what is missing."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, request: StateTargets, group: Group, run: CalibrationPass) -> None:
        self.request, self.run = request, run
        self.path, self.linear = group.block, group.consumer
        self.paths = (self.path, self.linear)
        self._added: Tensor | None = None
        self._in_front: Tensor | None = None
        self._pass = 0
        self._probing = False
        self._x: Tensor | None = None
        self._dtype = torch.float32
        self._moments: RunningMoments | None = None
        self._sums: tuple[Tensor, Tensor] | None = None
        self._tokens: Tensor | int = 0

    def attach(self) -> list[RemovableHandle]:
        """Register hooks behind the linear, the block's last one and the block, and in front of the norm."""
        linear, block = (self.run.model.get_submodule(path) for path in (self.linear, self.path))
        last = None if self.request.last is None else self.run.model.get_submodule(self.request.last)
        norm = None if self.request.norm is None else self.run.model.get_submodule(self.request.norm)
        return [
            *([] if last is None else [last.register_forward_hook(self._note)]),
            *([] if norm is None else [norm.register_forward_pre_hook(self._note_in_front)]),
            linear.register_forward_hook(self._read),
            block.register_forward_hook(self._leave, with_kwargs=True, prepend=True),
        ]

    def _note(self, last: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._added = output.detach().clone()  # Falcon writes into it

    def _note_in_front(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        self._in_front = args[0].detach()

    def _state(self, output: Any) -> Tensor:
        """Return the hidden state that a block returns, without what its last linear added where that counts apart.

        Where a norm stands behind, what that one read.
        """
        if self._in_front is not None:
            return self._in_front
        return state_in(output) if self._added is None else without_added(state_in(output), self._added)

    def _read(self, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._probing:
            return output + _probe(output)
        self._x, self._dtype = args[0].detach(), output.dtype
        return None

    @torch.no_grad()
    def _leave(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state, x = self._state(output), self._x
        assert x is not None
        if self._moments is None:
            self._check(block, args, kwargs, state)
        wanted = precise(state_in(self.request.states[self._pass]).to(state.device))
        self._pass += 1
        wanted_BTH, real_BT = self.run.sequences(wanted, self.path)
        missing_BTH, _ = self.run.sequences(wanted - precise(state), self.path)
        x_BTI, _ = self.run.sequences(precise(x), self.path)
        self._add(
            x_BTI.flatten(0, 1), missing_BTH.flatten(0, 1), token_weights(wanted_BTH, real_BT).flatten()
        )
        self._tokens = self._tokens + (wanted_BTH[..., 0].numel() if real_BT is None else real_BT.sum())

    def _add(self, x_NI: Tensor, missing_NH: Tensor, weight_N: Tensor) -> None:
        missing_NH = missing_NH.masked_fill((weight_N == 0).unsqueeze(-1), 0.0) * weight_N.unsqueeze(-1)
        x_NI = x_NI.masked_fill((weight_N == 0).unsqueeze(-1), 0.0)
        if self._moments is None:
            self._moments = RunningMoments(x_NI, covariance=True)
        self.run.watch(self.linear, self._moments.add(x_NI, weight_N))
        self.run.watch(self.linear, missing_NH)
        sums = (x_NI.T @ missing_NH).double(), missing_NH.sum(0, dtype=torch.float64)
        before = self._sums
        self._sums = sums if before is None else (before[0].add_(sums[0]), before[1].add_(sums[1]))

    def _check(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor) -> None:
        """Run the block again with something added behind the linear: the block must add just that to its output."""
        self._probing = True
        try:
            moved = precise(self._state(block.forward(*args, **kwargs)) - state)
        finally:
            self._probing = False
        added = _probe(precise(state))
        largest = float(state.abs().amax()) + (
            0.0 if self._added is None else float(self._added.abs().amax())
        )
        # Under autocast the linear is coarser than the states.
        eps = max(torch.finfo(dtype).eps for dtype in (state.dtype, self._dtype))
        tolerance = 0.02 + 8 * eps * largest
        if moved.shape != added.shape or float((moved - added).abs().amax()) > tolerance:
            raise UnsupportedModelError(
                self.path,
                f"does not add the output of {self.linear} to its hidden states as it is: a norm stands "
                "behind it.",
                "Set no reconstruct.",
            )

    def results(self) -> Mapping[Statistic[Any], Mapping[str, Target]]:
        """Return the weighted means over all tokens; nothing where none came by."""
        if self._moments is None or self._sums is None:
            return {self.request: {}}
        weight, moments = self._moments.count, self._moments.sums()
        target = Target(
            moments=replace(moments, tokens=torch.as_tensor(self._tokens)),
            cross_IH=self._sums[0] / weight,
            mean_H=self._sums[1] / weight,
        )
        return {self.request: {self.linear: target}}


@final
@dataclass(frozen=True, kw_only=True)
class StatesBetween:
    """Hidden states of a block without what its last linear adds, by path of that linear; or in front of a norm."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    in_stacked_experts: ClassVar[bool] = False
    loss: ClassVar[None] = None
    norm: str | None = None
    """Path of a norm in the block: the states are what it reads."""

    def key(self, group: Group) -> str:
        """Return the path of the group's consumer."""
        return group.consumer

    @classmethod
    def collector(cls, requests: Sequence["StatesBetween"], run: CalibrationPass) -> "BetweenCollector":
        """Return a collector for one block."""
        (group,) = run.structure.groups
        return BetweenCollector(requests, group, run)


@final
class BetweenCollector:
    """Keeps the states of one block on the CPU, one entry per forward pass."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, requests: Sequence[StatesBetween], group: Group, run: CalibrationPass) -> None:
        self.run, self.linear, self.block = run, group.consumer, group.block
        self.paths = (self.linear, self.block)
        self._added: Tensor | None = None
        self._states: dict[StatesBetween, list[Tensor]] = {request: [] for request in requests}

    def attach(self) -> list[RemovableHandle]:
        """Register a hook behind the linear and one behind the block, or one in front of each norm."""
        linear, block = (self.run.model.get_submodule(path) for path in self.paths)
        hooks = [linear.register_forward_hook(self._note)]
        for request, states in self._states.items():
            if request.norm is None:
                hooks.append(block.register_forward_hook(partial(self._leave, states), prepend=True))
            else:
                norm = self.run.model.get_submodule(request.norm)
                hooks.append(norm.register_forward_pre_hook(partial(_keep, states)))
        return hooks

    def _note(self, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._added = output.detach().clone()  # Falcon writes into it

    def _leave(self, states: list[Tensor], block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        assert self._added is not None
        states.append(without_added(state_in(output).detach(), self._added).cpu())

    def results(self) -> Mapping[Statistic[Any], Mapping[str, list[Tensor]]]:
        """Return the states; nothing where no batch came by."""
        return {request: {self.linear: states} if states else {} for request, states in self._states.items()}


def _keep(states: list[Tensor], norm: nn.Module, args: tuple[Any, ...]) -> None:
    states.append(args[0].detach().cpu())


def without_added(state: Tensor, added: Tensor) -> Tensor:
    """Return a hidden state without what a linear added to it, whatever shape the linear saw it in."""
    return state - added.reshape(state.shape)


def token_weights(state_BTH: Tensor, real_BT: Tensor | None) -> Tensor:
    """Return what each token weighs, [B, T]; padding weighs nothing."""
    weight_BT = state_BTH.square().mean(-1).clamp_min(torch.finfo(state_BTH.dtype).tiny ** 0.5).reciprocal()
    return weight_BT if real_BT is None else weight_BT.masked_fill(~real_BT, 0.0)


def _probe(like: Tensor) -> Tensor:
    """Return numbers of every size up to 1, none of which a norm leaves alone."""
    features = like.shape[-1]
    probe_H = torch.linspace(0.1, 1.0, features, device=like.device, dtype=like.dtype)
    return probe_H.expand(like.shape)
