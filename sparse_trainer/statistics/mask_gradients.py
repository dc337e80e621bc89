"""Mask gradients: dL/dgate_u = sum over tokens of x_u dL/dx_u, per sequence, with no weight gradient anywhere."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, patch, unpatch
from patchers.units import BLOCK_KINDS, Group, Kind
from sparse_trainer.statistics.calibration_pass import LABELS, CalibrationPass, first_tensor, precise, wide
from sparse_trainer.statistics.requests import READ_BY_A_LINEAR, Statistic

# Shape legend: B = sequences, T = tokens, I = features of a consumer's input, U = units, W = features of a unit.


@final
@dataclass(frozen=True)
class MaskGradients:
    """dL/dgate of every unit, per sequence, by name of the group. Memory: three numbers per unit."""

    kinds: ClassVar[tuple[Kind, ...]] = BLOCK_KINDS
    in_stacked_experts: ClassVar[bool] = True
    loss: ClassVar[str] = LABELS

    def key(self, group: Group) -> str:
        """Return the group's name: the numbers are its units'."""
        return group.name

    @classmethod
    def collector(cls, requests: Sequence["MaskGradients"], run: CalibrationPass) -> "MaskGradientCollector":
        """Return a collector for all groups."""
        return MaskGradientCollector(run)


@dataclass(frozen=True, kw_only=True)
class MaskGradientSums:
    """Sums over sequences of g, |g| and g^2, where g is the gradient of a sequence's summed loss."""

    sum_U: Tensor
    absolute_U: Tensor
    square_U: Tensor


@final
class MaskGradientCollector:
    """Streams mask gradients: from what a linear reads, and elsewhere (branches, layers, experts) from a gate."""

    def __init__(self, run: CalibrationPass) -> None:
        self.run, self.paths, groups = run, run.consumers, run.structure.groups
        self._hooked = [g for g in groups if g.kind in READ_BY_A_LINEAR and g.consumer_tensor is None]
        hooked = {group.name for group in self._hooked}
        self._gated = tuple(group for group in groups if group.name not in hooked)
        self._gates: dict[str, Gate] = {}
        self._gradients: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        run.after_batch.append(self._take_up)

    @property
    def one_by_one(self) -> bool:
        """A gate has one gradient for the whole batch."""
        return bool(self._gated)

    def attach(self) -> list[AbstractContextManager[Any]]:
        """Register the hooks, and hang gates where they are what has the gradient."""
        places: list[AbstractContextManager[Any]] = [self._lent()] if self._gated else []
        for group in self._hooked:
            consumer = self.run.model.get_submodule(group.consumer)
            places.append(consumer.register_forward_pre_hook(partial(self._see, group), with_kwargs=True))
        return places

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Give every gate a fresh score, whose gradient counts; a model that is patched already lends its own gates."""
        model, structure = self.run.model, self.run.structure
        gates = gates_by_group(model, structure)
        own = not gates
        if own:
            part = replace(structure, groups=self._gated)
            gates = patch(model, part, lambda group: Gate(group.num_units, scored=True))
        self._gates = {group.name: gates[group.name] for group in self._gated}
        before = {name: gate.score_U for name, gate in self._gates.items()}
        for gate in self._gates.values():
            gate.score_U = nn.Parameter(torch.zeros_like(gate.keep_U))
        try:
            yield
        finally:
            for name, score_U in before.items():
                self._gates[name].score_U = score_U
            if own:
                unpatch(model)

    def _see(self, group: Group, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_tensor(args, kwargs)
        if not x.requires_grad:
            x.requires_grad_()
        x.register_hook(partial(self._arrive, group, x.detach()))

    @torch.no_grad()
    def _arrive(self, group: Group, x: Tensor, dx: Tensor) -> None:
        if self.run.loss != LABELS:
            return
        products_BTI, real_BT = self.run.sequences(precise(x) * precise(dx), group.consumer)
        if real_BT is not None:
            products_BTI = products_BTI.masked_fill(~real_BT.unsqueeze(-1), 0.0)
        per_feature_BI = products_BTI.sum(1)
        gradient_BU = per_feature_BI[:, group.consumer_slice.index_UW.to(x.device)].sum(-1)
        # A module that a forward pass calls twice (shared layers) has one gate, whose gradient is the sum.
        before_BU = self._gradients.get(group.name)
        self._gradients[group.name] = gradient_BU if before_BU is None else before_BU + gradient_BU

    def _take_up(self) -> None:
        """Add what the backward pass of a batch left."""
        for name, gate in self._gates.items():
            assert gate.score_U is not None
            if gate.score_U.grad is not None:
                self._gradients[name] = gate.score_U.grad.unsqueeze(0)
                gate.score_U.grad = None
        for name, gradient_BU in self._gradients.items():
            self.run.watch(name, gradient_BU)
            g_BU = gradient_BU.to(wide(gradient_BU.device))
            sums_3U = torch.stack([g_BU.sum(0), g_BU.abs().sum(0), g_BU.square().sum(0)])
            self._sums[name] = self._sums[name] + sums_3U if name in self._sums else sums_3U
        self._gradients.clear()

    def results(self) -> Mapping[Statistic[Any], Mapping[str, MaskGradientSums]]:
        """Return the sums of all sequences."""
        found = {
            name: MaskGradientSums(sum_U=sums_3U[0], absolute_U=sums_3U[1], square_U=sums_3U[2])
            for name, sums_3U in self._sums.items()
        }
        return {MaskGradients(): found}
