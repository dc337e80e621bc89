"""Random: the control that shows what a criterion adds to repair, or to training, alone."""

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from patchers.units import KINDS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Random:
    """Uniform scores, fixed by the seed and the name of the group."""

    kinds: ClassVar[tuple[Kind, ...]] = KINDS
    standardize: ClassVar[str] = "none"
    seed: int = 42

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return nothing."""
        return ()

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the random scores."""
        return {g.name: self._draw(g.name, g.num_units) for g in evidence.structure.groups}

    def _draw(self, name: str, units: int) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        return torch.rand(units, generator=generator)
