"""Mask gradients: dL/dgate_u = sum over tokens of x_u dL/dx_u, per sequence, with no weight gradient anywhere."""

from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.patching.gates import Gate
from patchers.units import Group
from sparse_trainer.statistics.hooks import HookContext, first_tensor, precise, wide
from sparse_trainer.statistics.requests import MaskGradientSums

# Shape legend: B = sequences, T = tokens, I = features of a consumer's input, U = units, W = features of a unit.


class _Sums:
    """Running sums over sequences of g, |g| and g^2."""

    def __init__(self, flight: HookContext, group: Group) -> None:
        self.flight, self.group = flight, group
        self.sums_3U: Tensor | None = None

    @property
    def is_reached(self) -> bool:
        return self.sums_3U is not None

    def add(self, gradient_BU: Tensor) -> None:
        self.flight.watch(self.group.name, gradient_BU)
        g_BU = gradient_BU.to(wide(gradient_BU.device))
        parts_3U = torch.stack([g_BU.sum(0), g_BU.abs().sum(0), g_BU.square().sum(0)])
        self.sums_3U = parts_3U if self.sums_3U is None else self.sums_3U + parts_3U

    def result(self) -> MaskGradientSums:
        assert self.sums_3U is not None
        return MaskGradientSums(sum_U=self.sums_3U[0], absolute_U=self.sums_3U[1], square_U=self.sums_3U[2])


@final
class MaskGradientCollector:
    """Streams the mask gradients of a group whose consumer is a linear."""

    def __init__(self, flight: HookContext, group: Group) -> None:
        self.flight, self.group = flight, group
        self.sums = _Sums(flight, group)
        self.index_UW = group.consumer_slice.index_UW
        self._gradient_BU: Tensor | None = None

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Hang the hook."""
        return [
            model.get_submodule(self.group.consumer).register_forward_pre_hook(self._see, with_kwargs=True)
        ]

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_tensor(args, kwargs)
        if not x.requires_grad:
            x.requires_grad_()
        x.register_hook(partial(self._arrive, x.detach()))

    @torch.no_grad()
    def _arrive(self, x: Tensor, dx: Tensor) -> None:
        if self.flight.loss != "labels":
            return
        products_BTI, real_BT = self.flight.sequences(precise(x) * precise(dx), self.group)
        if real_BT is not None:
            products_BTI = products_BTI.masked_fill(~real_BT.unsqueeze(-1), 0.0)
        per_feature_BI = products_BTI.sum(1)
        gradient_BU = per_feature_BI[:, self.index_UW.to(x.device)].sum(-1)
        # A module that a forward pass calls twice (shared layers) has one gate, whose gradient is the sum.
        self._gradient_BU = gradient_BU if self._gradient_BU is None else self._gradient_BU + gradient_BU

    def finish_batch(self) -> None:
        """Take up what the backward pass of a batch left."""
        if self._gradient_BU is not None:
            self.sums.add(self._gradient_BU)
            self._gradient_BU = None

    def result(self) -> MaskGradientSums:
        """Return the sums of all batches."""
        return self.sums.result()


@final
class GateGradientCollector:
    """Streams the mask gradients of stacked experts from a gate; batches must hold one sequence."""

    def __init__(self, flight: HookContext, group: Group) -> None:
        self.flight, self.group = flight, group
        self.sums = _Sums(flight, group)
        self.gate: Gate | None = None

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Hang nothing: the gate hangs already."""
        return []

    def finish_batch(self) -> None:
        """Take up the gate's gradient, and clear it."""
        assert self.gate is not None
        assert self.gate.score_U is not None
        if self.gate.score_U.grad is not None:
            self.sums.add(self.gate.score_U.grad.unsqueeze(0))
            self.gate.score_U.grad = None

    def result(self) -> MaskGradientSums:
        """Return the sums of all batches."""
        return self.sums.result()
