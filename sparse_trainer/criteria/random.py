"""Random: keep what a seed says. The control that shows what a criterion adds to training alone."""

import zlib
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from patchers.gates import Gate
from patchers.groups import Group, Structure
from sparse_trainer.criteria.base import Gates, Plain


@final
class Random(Plain):
    """Uniform scores, fixed by the seed and the name of the group."""

    standardize: ClassVar[str] = "none"
    learns: ClassVar[bool] = False

    def make_gate(self, group: Group) -> Gate:
        """Return a bare gate."""
        return Gate(group.num_units, scored=False)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the same random scores at every call."""
        return {name: self._draw(name, gate) for name, gate in gates.items()}

    def _draw(self, name: str, gate: Gate) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.args.seed}/{name}".encode()))
        return torch.rand(gate.keep_U.shape, generator=generator).to(gate.keep_U.device, non_blocking=True)
