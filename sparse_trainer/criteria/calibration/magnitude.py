"""Magnitude: keep what is large. Needs no data; a control, and a bad choice for channels of language models."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from patchers.layers import linear_at, weight_OI
from patchers.units import KINDS, Features, Group, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.errors import one_of
from sparse_trainer.statistics.requests import Statistic

# Shape legend: U = units, W = features of a unit.


@final
@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Sum of |w| or w^2 over every weight of a unit."""

    kinds: ClassVar[tuple[Kind, ...]] = KINDS
    standardize: ClassVar[str] = "cost"
    norm: int = 2
    """1 or 2."""

    def __post_init__(self) -> None:
        one_of("magnitude.norm", self.norm, (1, 2))

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return nothing: weights are enough."""
        return ()

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the magnitudes."""
        return {g.name: magnitude(evidence.model, g, self.norm) for g in evidence.structure.groups}


@torch.no_grad()
def magnitude(model: nn.Module, group: Group, norm: int) -> Tensor:
    """Return the sum over a unit's weights of |w|^norm, shape [U]; stacked experts are tensors, not linears."""
    total_U: Tensor | None = None
    for s in group.slices:
        weight = weight_OI(linear_at(model, s.path)).float()
        powers = weight.abs() if norm == 1 else weight.square()
        per_feature = powers.sum(dim=1 if s.axis == "out" else 0)
        part_U = per_feature.sum().unsqueeze(0) if group.kind.is_whole else _per_unit(per_feature, s)
        total_U = part_U if total_U is None else total_U + part_U
    for t in group.tensors if not group.slices else ():
        tensor = attrgetter(t.name)(model).float()
        powers = (tensor.abs() if norm == 1 else tensor.square()).movedim(t.dim, 0)
        powers = powers.reshape(len(powers), -1).sum(1)
        part_U = _per_unit(powers, t) if group.kind.is_width else powers.sum().unsqueeze(0)
        total_U = part_U if total_U is None else total_U + part_U
    if total_U is None:
        block = model.get_submodule(group.block)
        parts = [
            (p.float().abs() if norm == 1 else p.float().square()).sum()
            for p in block.parameters()
            if p.dim() > 1
        ]
        return torch.stack(parts).sum().unsqueeze(0)
    return total_U


def _per_unit(per_feature: Tensor, s: Features) -> Tensor:
    """Sum over the features of each unit, shape [U]; contiguous runs need no index on the device."""
    if s.index is None:
        return per_feature.view(s.units, s.width).sum(dim=1)
    return per_feature[s.index_UW.to(per_feature.device)].sum(dim=1)
