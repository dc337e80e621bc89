"""Mean activations of every sequence, as Minitron scores units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from patchers.units import Group, Kind
from sparse_trainer.statistics.calibration_pass import CalibrationPass, precise, wide
from sparse_trainer.statistics.requests import READ_BY_A_LINEAR, Statistic

# Shape legend: B = sequences, T = tokens, I = input features of a consumer.


@final
@dataclass(frozen=True)
class SequenceMeans:
    """Squared mean over tokens of |x|, summed over sequences: shape [I], by module path of the consumer."""

    kinds: ClassVar[tuple[Kind, ...]] = READ_BY_A_LINEAR
    in_stacked_experts: ClassVar[bool] = False
    loss: ClassVar[None] = None

    def key(self, group: Group) -> str:
        """Return the path of the group's consumer."""
        return group.consumer

    @classmethod
    def collector(cls, requests: Sequence["SequenceMeans"], run: CalibrationPass) -> "SequenceMeanCollector":
        """Return a collector for the consumers of all groups."""
        return SequenceMeanCollector(run)


@final
class SequenceMeanCollector:
    """Streams the means of what consumers read."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, run: CalibrationPass) -> None:
        self.run, self.paths = run, run.consumers
        self._sums: dict[str, Tensor] = {}

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks."""
        return self.run.show_inputs(self.paths, self._see)

    def _see(self, path: str, x: Tensor) -> None:
        x_BTI, real_BT = self.run.sequences(x, path)
        size_BTI = precise(x_BTI).abs()
        length: int | Tensor = x_BTI.shape[1]
        if real_BT is not None:
            size_BTI = size_BTI.masked_fill(~real_BT.unsqueeze(-1), 0.0)
            length = real_BT.sum(1).clamp_min(1).unsqueeze(-1)
        mean_BI = size_BTI.sum(1) / length
        self.run.watch(path, mean_BI)
        if path not in self._sums:
            self._sums[path] = torch.zeros(mean_BI.shape[-1], dtype=wide(x_BTI.device), device=x_BTI.device)
        self._sums[path] += mean_BI.square().sum(0)

    def results(self) -> Mapping[Statistic[Any], Mapping[str, Tensor]]:
        """Return the sums of all sequences."""
        return {SequenceMeans(): self._sums}
