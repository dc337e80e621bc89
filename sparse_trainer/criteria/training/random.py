"""Random: keep what a seed says. The control that shows what a criterion adds to training alone."""

import zlib
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.units import Group, Structure
from sparse_trainer.criteria.training.base import Gates, Plain


@final
class Random(Plain):
    """Uniform scores, fixed by the seed and the name of the group."""

    standardize: ClassVar[str] = "none"
    learns: ClassVar[bool] = False

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self._drawn: dict[str, Tensor] = {}

    def make_gate(self, group: Group) -> Gate:
        """Return a bare gate."""
        return Gate(group.num_units, scored=False)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the same random scores at every call."""
        for name, gate in gates.items():
            if name not in self._drawn:
                self._drawn[name] = self._draw(name, gate)
        return {name: self._drawn[name] for name in gates}

    def _draw(self, name: str, gate: Gate) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.args.pruning_seed}/{name}".encode()))
        return torch.rand(gate.keep_U.shape, generator=generator).to(gate.keep_U.device)
