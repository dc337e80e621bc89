"""Functions of p = w dL/dw, one sequence at a time: sums over a unit's weights, or of every weight by itself.

A linear's weight gradient of one sequence is dy^T x: it is made when dy arrives in the backward pass, reduced to one
number per unit, and dropped. All sequences together cost what the ordinary weight gradient costs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, Literal, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.layers import linear_at, weight_OI
from patchers.units import Group, Kind, Slice
from sparse_trainer.statistics.calibration_pass import CalibrationPass, first_tensor, precise, wide
from sparse_trainer.statistics.requests import READ_BY_A_LINEAR, Statistic

# Shape legend: B = sequences, T = tokens, O = outputs, I = inputs of a linear, U = units, W = features of a unit,
# H = hidden features, the axis of a linear that does not run over units. p_OI = w * dL/dw of one sequence.

_EACH: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "absolute": lambda p: p.abs(),
    "upper": lambda p: p.abs() + 0.5 * p.square(),
    "removal": lambda p: (p - 0.5 * p.square()).abs(),
    "signed_removal": lambda p: 0.5 * p.square() - p,
}


Loss = Literal["labels", "output_norm"]
Form = Literal["absolute", "vector", "upper", "removal", "signed_removal", "trimmed"]


@final
@dataclass(frozen=True, kw_only=True)
class Elements:
    """Sums over a unit's weights of a function of p = w dL/dw, where dL/dw is that of one sequence.

    By name of the group: per linear and unit, shape [T, U], in the order of `group.slices`; of the trimmed form [1, U].
    """

    kinds: ClassVar[tuple[Kind, ...]] = READ_BY_A_LINEAR
    in_stacked_experts: ClassVar[bool] = False
    loss: Loss = "labels"
    """`labels`: the model's loss, summed over tokens. `output_norm`: Frobenius norms of the linears' outputs."""
    form: Form = "absolute"
    """What is summed over sequences: absolute sum |p|; vector |sum p|; upper sum |p| + p^2/2; removal
    sum |p - p^2/2|; signed_removal sum -p + p^2/2; trimmed |trimmed mean of p over the hidden features|."""
    trim: float = 0.0
    """Of `trimmed`: share of the hidden features left out on either side."""

    def key(self, group: Group) -> str:
        """Return the group's name: the numbers are its units'."""
        return group.name

    @classmethod
    def collector(cls, requests: Sequence["Elements"], run: CalibrationPass) -> "ElementCollector":
        """Return a collector of all forms: they share the gradients of weights."""
        return ElementCollector(requests, run)


Gather = Callable[[str, Tensor, Tensor | None, int], None]
"""Takes the path of a linear, its p_OI and that of its bias for one sequence, and the number of the sequence."""


@final
class _Products:
    """Makes p of some linears for each sequence, in the backward passes of the losses that are asked for."""

    def __init__(
        self, run: CalibrationPass, paths: Sequence[str], losses: frozenset[Loss], gather: Gather
    ) -> None:
        self.run, self.paths, self.losses, self.gather = run, paths, losses, gather
        self._calls: Counter[str] = Counter()
        self._pending: dict[tuple[str, str], tuple[list[Tensor], list[Tensor]]] = {}
        self._arrived: Counter[tuple[str, str]] = Counter()
        run.after_batch.append(self._forget)

    def attach(self) -> list[RemovableHandle]:
        """Register a hook on every linear."""
        return [
            linear_at(self.run.model, path).register_forward_hook(partial(self._see, path), with_kwargs=True)
            for path in self.paths
        ]

    def _see(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
    ) -> None:
        if not y.requires_grad:
            y.requires_grad_()
        self._calls[path] += 1
        x = first_tensor(args, kwargs).detach()
        y.register_hook(partial(self._arrive, path, module, x))
        if "output_norm" in self.losses:
            y_BTO, real_BT = self.run.sequences(y, path)
            if real_BT is not None:
                y_BTO = y_BTO.masked_fill(~real_BT.unsqueeze(-1), 0.0)
            norm = torch.linalg.vector_norm(precise(y_BTO), dim=(1, 2)).sum()
            self.run.add_loss("output_norm", norm)

    @torch.no_grad()
    def _arrive(self, path: str, module: Any, x: Tensor, dy: Tensor) -> None:
        if self.run.loss not in self.losses:
            return
        x_BTI, _ = self.run.sequences(precise(x), path)
        dy_BTO, _ = self.run.sequences(precise(dy), path)
        weights = precise(weight_OI(module))
        products = [(dy_TO.T @ x_TI).mul_(weights) for dy_TO, x_TI in zip(dy_BTO, x_BTI, strict=True)]
        biases = [] if module.bias is None else [precise(module.bias) * dy_TO.sum(0) for dy_TO in dy_BTO]
        if self._calls[path] > 1:
            products, biases = self._together(path, products, biases)
        for row, p_OI in enumerate(products):
            self.gather(path, p_OI, biases[row] if biases else None, row)

    def _together(
        self, path: str, products: list[Tensor], biases: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Sum over the calls of a shared module; empty until the last of them."""
        key = (path, self.run.loss)
        if key in self._pending:
            before = self._pending[key]
            products = [a + b for a, b in zip(before[0], products, strict=True)]
            biases = [a + b for a, b in zip(before[1], biases, strict=True)]
        self._pending[key] = products, biases
        self._arrived[key] += 1
        if self._arrived[key] < self._calls[path]:
            return [], []
        return self._pending.pop(key)

    def _forget(self) -> None:
        """Drop what holds for one batch only."""
        self._calls.clear()
        self._arrived.clear()
        self._pending.clear()


@final
class ElementCollector:
    """Streams element sums of all groups: a fused linear belongs to several of them."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, requests: Sequence[Elements], run: CalibrationPass) -> None:
        self.run, self.requests = run, requests
        self.slices: dict[str, list[tuple[Group, int]]] = {}
        for group in run.structure.groups:
            for number, s in enumerate(group.slices):
                self.slices.setdefault(s.path, []).append((group, number))
        self.paths = tuple(self.slices)
        self._sums: dict[Elements, dict[str, Tensor]] = {request: {} for request in requests}
        self._signed: dict[tuple[str, Elements, int], Tensor] = {}
        self._parts: Counter[tuple[str, Elements, int]] = Counter()
        losses = frozenset(request.loss for request in requests)
        self._products = _Products(run, self.paths, losses, self._reduce)
        run.after_batch.append(self._forget)

    def attach(self) -> list[RemovableHandle]:
        """Register a hook on every linear of the groups."""
        return self._products.attach()

    def results(self) -> Mapping[Statistic[Any], Mapping[str, Tensor]]:
        """Return the sums of all sequences."""
        return dict(self._sums.items())

    def _reduce(self, path: str, p_OI: Tensor, bias_O: Tensor | None, row: int) -> None:
        for request in (request for request in self.requests if request.loss == self.run.loss):
            if request.form == "trimmed":
                for group, number in self.slices[path]:
                    self._hold(request, group, number, p_OI, row)
                continue
            each = _EACH.get(request.form, torch.clone)
            each_OI = each(p_OI)
            by_axis = {"out": each_OI.sum(1), "in": each_OI.sum(0)}
            if bias_O is not None:
                by_axis["out"] = by_axis["out"] + each(bias_O)
            for group, number in self.slices[path]:
                s = group.slices[number]
                value_U = _per_unit(by_axis[s.axis], s)
                self._add(request, group, number, value_U.abs() if request.form == "vector" else value_U)

    def _hold(self, request: Elements, group: Group, number: int, p_OI: Tensor, row: int) -> None:
        """Add up the signed products of a unit over its linears, and reduce once the last linear has come."""
        s = group.slices[number]
        signed_HU = _per_unit(p_OI.T if s.axis == "out" else p_OI, s)
        key = (group.name, request, row)
        self._signed[key] = self._signed[key] + signed_HU if key in self._signed else signed_HU
        self._parts[key] += 1
        if self._parts[key] == len(group.slices):
            self._add(request, group, 0, _trimmed_mean(self._signed.pop(key), request.trim).abs())
            del self._parts[key]

    def _add(self, request: Elements, group: Group, number: int, value_U: Tensor) -> None:
        self.run.watch(group.name, value_U)
        sums = self._sums[request]
        if group.name not in sums:
            rows = 1 if request.form == "trimmed" else len(group.slices)
            dtype = wide(value_U.device)
            sums[group.name] = torch.zeros(rows, len(value_U), dtype=dtype, device=value_U.device)
        sums[group.name][number] += value_U

    def _forget(self) -> None:
        """Drop what holds for one batch only."""
        self._signed.clear()
        self._parts.clear()


@final
@dataclass(frozen=True, kw_only=True)
class WeightProducts:
    """Sum over sequences of |p| of every weight, p = w dL/dw: shape [O, I] in float32, by path of the linear.

    As many numbers as there are weights.
    """

    kinds: ClassVar[tuple[Kind, ...]] = READ_BY_A_LINEAR
    in_stacked_experts: ClassVar[bool] = False
    loss: Loss = "labels"
    """`labels`: the model's loss, summed over tokens. `output_norm`: Frobenius norms of the linears' outputs."""

    def key(self, group: Group) -> str:
        """Return the path of the group's consumer, one of its linears."""
        return group.consumer

    @classmethod
    def collector(
        cls, requests: Sequence["WeightProducts"], run: CalibrationPass
    ) -> "WeightProductCollector":
        """Return a collector for both losses: they share the passes."""
        return WeightProductCollector(requests, run)


@final
class WeightProductCollector:
    """Streams sums of |p| of every weight of the groups' linears."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, requests: Sequence[WeightProducts], run: CalibrationPass) -> None:
        self.run, self.requests = run, requests
        self.paths = tuple(dict.fromkeys(s.path for group in run.structure.groups for s in group.slices))
        self._sums: dict[str, dict[str, Tensor]] = {request.loss: {} for request in requests}
        losses = frozenset(request.loss for request in requests)
        self._products = _Products(run, self.paths, losses, self._add)

    def attach(self) -> list[RemovableHandle]:
        """Register a hook on every linear of the groups."""
        return self._products.attach()

    def results(self) -> Mapping[Statistic[Any], Mapping[str, Tensor]]:
        """Return the sums of all sequences."""
        return {request: self._sums[request.loss] for request in self.requests}

    def _add(self, path: str, p_OI: Tensor, bias_O: Tensor | None, row: int) -> None:
        sums, size_OI = self._sums[self.run.loss], p_OI.abs_()
        self.run.watch(path, size_OI)
        sums[path] = sums[path].add_(size_OI) if path in sums else size_OI


def _per_unit(per_feature: Tensor, s: Slice) -> Tensor:
    """Sum over the features of each unit along the last axis: [..., features] -> [..., U]."""
    if s.width == 1 and s.index is None:
        return per_feature
    return per_feature[..., s.index_UW.to(per_feature.device)].sum(-1)


def _trimmed_mean(p_HU: Tensor, trim: float) -> Tensor:
    """Return the mean over H without the share `trim` of the largest and of the smallest entries, shape [U].

    >>> _trimmed_mean(torch.tensor([[9.0], [1.0], [2.0], [-9.0]]), 0.25)
    tensor([1.5000])
    """
    out = int(trim * len(p_HU))
    total_U = p_HU.sum(0)
    if out:
        total_U = total_U - p_HU.topk(out, dim=0).values.sum(0)
        total_U = total_U - p_HU.topk(out, dim=0, largest=False).values.sum(0)
    return total_U / (len(p_HU) - 2 * out)
