"""Random: the control that any criterion has to beat."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sparse_trainer.one_shot.elements.base import Compare
from sparse_trainer.statistics.requests import Statistic, Statistics


@final
@dataclass(frozen=True, kw_only=True)
class RandomOfWeights:
    """Uniform scores, fixed by the seed and the path of the linear."""

    compare: ClassVar[Compare] = "tensor"
    seed: int = 42

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return nothing."""
        return ()

    def scores(self, weights: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """Return the random scores."""
        return {path: self._draw(path, weight_OI).to(weight_OI.device) for path, weight_OI in weights.items()}

    def _draw(self, path: str, weight_OI: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{path}".encode()))
        return torch.rand(weight_OI.shape, generator=generator)
