"""Where masks go: which matrices share which scores, and how their blocks lie."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchers.layers import features, linear_at, weight_OI
from patchers.patching.gates import Gate
from patchers.patching.masks import MaskFactor, block_sum
from patchers.units import Group
from sparse_trainer.criteria.calibration.magnitude import magnitude
from sparse_trainer.training.mask_options import Part, PartOptions

# Shape legend: R x C = blocks, O x I = weights, U = units.


@dataclass(frozen=True, kw_only=True)
class Site:
    """One score tensor, and all it decides on."""

    part: Part
    in_decoder: bool
    """Whether it sits in the decoder of an encoder-decoder."""
    method: str
    """A method of `rules`, or how 2 of 4 are found, `annealing` among them."""
    options: PartOptions | None
    """None for 2 of 4."""
    paths: tuple[str, ...]
    """The linears it masks."""
    holder: MaskFactor | Gate
    group: Group
    """The heads or channels that the linears belong to."""
    root: float = 1.0
    """Its share of the density, as an exponent: rows and columns that meet keep the root of what is asked."""

    @property
    def score(self) -> nn.Parameter | None:
        """What is learned, if anything."""
        return self.holder.score_U if isinstance(self.holder, Gate) else self.holder.score_RC

    @torch.no_grad()
    def norms(self, model: nn.Module) -> Tensor:
        """Return the squared norm of the weights behind each score."""
        if isinstance(self.holder, Gate):
            return magnitude(model, self.group, 2)
        blocks = self.holder.keep_RC.shape
        squares = [block_sum(weight_OI(linear_at(model, p)).float().square(), blocks) for p in self.paths]
        return torch.stack(squares).sum(0) if len(squares) > 1 else squares[0]


def protected_blocks(model: nn.Module, site: Site, keep_U: Tensor) -> Tensor:
    """Return the blocks of a site, or the channels of its gate, that hold a feature of the units in `keep_U`."""
    if isinstance(site.holder, Gate):
        return keep_U
    covered_RC = torch.zeros(site.holder.keep_RC.shape, dtype=torch.bool)
    for piece in (s for s in site.group.slices if s.path in site.paths):
        axis = 0 if piece.axis == "out" else 1
        size = features(linear_at(model, piece.path))[axis] // covered_RC.shape[axis]
        covered_RC.index_fill_(axis, piece.index_UW[keep_U].flatten() // size, True)
    return covered_RC
