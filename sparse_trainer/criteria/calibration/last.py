"""Last: drop the deepest layers but the very last one. Needs no data; a control.

Lu et al. 2024 ("Reassessing layer pruning in LLMs") find that it is hard to beat once the model is fine-tuned.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from patchers.units import LAYERS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class Last:
    """A layer counts for the less the deeper it lies; the last one of its stack counts most."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    standardize: ClassVar[str] = "none"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return nothing: places are known."""
        return ()

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return 1 for the last layer of a stack, else what part of the stack lies behind the layer."""
        sizes = {stack.path: stack.size for stack in evidence.structure.stacks}
        behind = {g.name: (sizes[g.stack] - 1 - g.layer) / sizes[g.stack] for g in evidence.structure.groups}
        return {name: torch.tensor([share or 1.0]) for name, share in behind.items()}
