"""What a study of layer importance looks at: outputs of layers, and gradients of their feed-forward weights.

After the study that comes with AVSS (arXiv 2411.02117), with two differences: numbers are of single sequences and then
averaged, so that they do not depend on how sequences are shared out over batches; and padding counts nowhere.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.discovery.discover import discover
from patchers.layers import linear_at
from patchers.units import CHANNELS, LAYERS, Group, Kind
from sparse_trainer.statistics.block_states import state_in
from sparse_trainer.statistics.calibration_pass import LABELS, CalibrationPass, first_tensor, precise, wide
from sparse_trainer.statistics.requests import Statistic

# Shape legend: B = sequences, T = tokens, H = hidden features, O = outputs, I = inputs of a linear.


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a layer returns, averaged over sequences; scalars."""

    variance: Tensor
    """Variance over features of the mean over a sequence's tokens."""
    sparsity: Tensor
    """Share of the entries that are nearly 0."""


@final
@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """Variance and sparsity of what layers return, by path of the layer: `Activations`."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    in_stacked_experts: ClassVar[bool] = True
    loss: ClassVar[None] = None
    tiny: float = 1e-5
    """What an entry counts as nearly 0 below, as it is."""

    def key(self, group: Group) -> str:
        """Return the path of the layer."""
        return group.block

    @classmethod
    def collector(cls, requests: Sequence["LayerActivations"], run: CalibrationPass) -> "ActivationCollector":
        """Return a collector for all layers."""
        return ActivationCollector(requests, run)


@final
class ActivationCollector:
    """Streams sums over sequences."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, requests: Sequence[LayerActivations], run: CalibrationPass) -> None:
        self.requests, self.run = requests, run
        self.paths = tuple(dict.fromkeys(group.block for group in run.structure.groups))
        self._sums: dict[tuple[LayerActivations, str], Tensor] = {}
        self._sequences: Counter[str] = Counter()

    def attach(self) -> list[RemovableHandle]:
        """Register a hook behind each layer."""
        return [
            self.run.model.get_submodule(path).register_forward_hook(partial(self._see, path))
            for path in self.paths
        ]

    @torch.no_grad()
    def _see(self, path: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        y_BTH, real_BT = self.run.sequences(precise(state_in(output)), path)
        if real_BT is None:
            real_BT = torch.ones(y_BTH.shape[:2], dtype=torch.bool, device=y_BTH.device)
        length_B1 = real_BT.sum(1, keepdim=True).clamp_min(1)
        not_real_BT1 = ~real_BT.unsqueeze(-1)
        mean_BH = y_BTH.masked_fill(not_real_BT1, 0.0).sum(1) / length_B1
        self.run.watch(path, mean_BH)
        self._sequences[path] += len(y_BTH)
        for request in self.requests:
            small_BT = (y_BTH.abs() < request.tiny).to(y_BTH.dtype).mean(-1).masked_fill(~real_BT, 0.0)
            sparsity_B = small_BT.sum(1) / length_B1.squeeze(1)
            sums_2 = torch.stack([mean_BH.var(dim=1).sum(), sparsity_B.sum()]).to(wide(y_BTH.device))
            before = self._sums.get((request, path))
            self._sums[request, path] = sums_2 if before is None else before + sums_2

    def results(self) -> Mapping[Statistic[Any], Mapping[str, Activations]]:
        """Return the means over all sequences."""
        found: dict[Statistic[Any], dict[str, Activations]] = {request: {} for request in self.requests}
        for (request, path), sums_2 in self._sums.items():
            variance, sparsity = sums_2 / self._sequences[path]
            found[request][path] = Activations(variance=variance, sparsity=sparsity)
        return found


@dataclass(frozen=True, kw_only=True)
class GradientNorms:
    """Norms of the gradients of a layer's feed-forward weights, summed over these; means over sequences, scalars."""

    l1: Tensor
    """Sum of |dL/dw|."""
    l2: Tensor
    """Root of the sum of (dL/dw)^2, of each weight by itself."""


@final
@dataclass(frozen=True)
class FfnGradients:
    """Norms of dL/dW of the feed-forward linears, by path of the layer: `GradientNorms`.

    L is the loss of one sequence, summed over its labels. A layer without feed-forward linears of its own (stacked
    experts are none) has 0.
    """

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    in_stacked_experts: ClassVar[bool] = True
    loss: ClassVar[str] = LABELS

    def key(self, group: Group) -> str:
        """Return the path of the layer."""
        return group.block

    @classmethod
    def collector(cls, requests: Sequence["FfnGradients"], run: CalibrationPass) -> "FfnGradientCollector":
        """Return a collector for all layers."""
        return FfnGradientCollector(run)


@final
class FfnGradientCollector:
    """Makes the gradient of one weight and one sequence at a time (dy^T x), takes its norms, and drops it."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, run: CalibrationPass) -> None:
        self.run = run
        self._layers = tuple(dict.fromkeys(group.block for group in run.structure.groups))
        linears = ffn_linears(run.model)
        self._layer_of = {path: layer for layer in self._layers for path in linears.get(layer, ())}
        self.paths = tuple(self._layer_of)
        self._calls: Counter[str] = Counter()
        self._pending: dict[str, list[Tensor]] = {}
        self._sums: dict[str, Tensor] = {}
        self._sequences = 0
        run.after_batch.append(self._count)

    def attach(self) -> list[RemovableHandle]:
        """Register a hook on every feed-forward linear."""
        return [
            linear_at(self.run.model, path).register_forward_hook(partial(self._see, path), with_kwargs=True)
            for path in self.paths
        ]

    def _see(
        self, path: str, linear: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
    ) -> None:
        if not y.requires_grad:
            y.requires_grad_()
        self._calls[path] += 1
        y.register_hook(partial(self._arrive, path, first_tensor(args, kwargs).detach()))

    @torch.no_grad()
    def _arrive(self, path: str, x: Tensor, dy: Tensor) -> None:
        if self.run.loss != LABELS:
            return
        x_BTI, _ = self.run.sequences(precise(x), path)
        dy_BTO, _ = self.run.sequences(precise(dy), path)
        self._calls[path] -= 1
        if self._calls[path] == 0 and path not in self._pending:
            for dy_TO, x_TI in zip(dy_BTO, x_BTI, strict=True):
                self._add(path, dy_TO.T @ x_TI)
            return
        # A linear that a forward pass calls several times (shared layers) has one gradient, the sum.
        products = [dy_TO.T @ x_TI for dy_TO, x_TI in zip(dy_BTO, x_BTI, strict=True)]
        before = self._pending.get(path)
        self._pending[path] = (
            products if before is None else [a + b for a, b in zip(before, products, strict=True)]
        )
        if self._calls[path] == 0:
            for gradient_OI in self._pending.pop(path):
                self._add(path, gradient_OI)

    def _add(self, path: str, gradient_OI: Tensor) -> None:
        norms_2 = torch.stack([gradient_OI.abs().sum(), torch.linalg.vector_norm(gradient_OI)])
        layer, norms_2 = self._layer_of[path], norms_2.to(wide(norms_2.device))
        self.run.watch(layer, norms_2)
        self._sums[layer] = norms_2 if layer not in self._sums else self._sums[layer] + norms_2

    def _count(self) -> None:
        assert self.run.batch is not None
        self._sequences += self.run.batch.rows
        self._calls.clear()
        self._pending.clear()

    def results(self) -> Mapping[Statistic[Any], Mapping[str, GradientNorms]]:
        """Return the means over all sequences."""
        found = {}
        for layer in self._layers:
            sums_2 = self._sums.get(layer, torch.zeros(2, dtype=torch.float64))
            l1, l2 = sums_2 / max(self._sequences, 1)
            found[layer] = GradientNorms(l1=l1, l2=l2)
        return {FfnGradients(): found}


def ffn_linears(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the paths of the feed-forward linears of each layer that has some, by path of the layer."""
    found: dict[str, dict[str, None]] = {}
    for group in discover(model, [CHANNELS]).groups:
        found.setdefault(group.block, {}).update(dict.fromkeys(s.path for s in group.slices))
    return {layer: tuple(paths) for layer, paths in found.items() if paths}
