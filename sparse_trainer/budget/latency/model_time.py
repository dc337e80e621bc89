"""What one model takes, by how many of its units stay."""

from collections.abc import Mapping, Sequence
from typing import final

from torch import nn

from patchers.units import ATTENTION, FFN, LAYERS, Group, Structure
from sparse_trainer.budget.latency.curve import Curve
from sparse_trainer.budget.latency.sorts import timed_blocks
from sparse_trainer.budget.latency.table import LatencyTable
from sparse_trainer.errors import CheckpointError

Counts = Mapping[str, int]
"""Units that stay, by group name; a group that is not named stays whole."""
_NANO = 1e9


@final
class ModelTime:
    """Seconds of one forward pass of a model, at any widths and depth, from a table.

    As a cost model (`budget.cost.CostModel`) it counts nanoseconds: of a unit what the units of its group take on
    average, of a branch or layer all that is in it.

    Args:
        structure: All that was found in the model.

    Raises:
        CheckpointError: the table says nothing of a part of the model.
    """

    def __init__(self, table: LatencyTable, model: nn.Module, structure: Structure) -> None:
        self.table = table
        self.rest = table.rest
        blocks = timed_blocks(model, structure)
        self._alone = {block.path: table.block_of(block) for block in blocks}
        self._inside = {block.path: block.groups for block in blocks}
        self._curves, self._steps = {}, {}
        for block in blocks:
            for sort, group in zip(block.sorts, block.groups, strict=True):
                self._curves[group.name] = _covering(table.curve_of(sort, group), group)
                self._steps[group.name] = table.steps.get(sort, 1)
        self._branch = {g.inner: g.name for g in structure.of([ATTENTION, FFN]) if g.inner is not None}
        self._layer = {g.block: g.name for g in structure.of([LAYERS])}
        self._whole = {g.name: g.num_units for g in structure.groups}
        self.dense = self.seconds({})
        """Seconds of the model as it is."""

    def seconds(self, kept: Counts) -> float:
        """Return what the model would take with so many units."""
        return self.rest + sum(self._of_block(path, kept) for path in self._alone)

    def _of_block(self, path: str, kept: Counts) -> float:
        if self._stays(self._layer.get(path), kept):
            return self._alone[path] + sum(self._of_group(group, kept) for group in self._inside[path])
        return 0.0

    def _of_group(self, group: Group, kept: Counts) -> float:
        if not self._stays(self._branch.get(group.name), kept):
            return 0.0
        return self._curves[group.name].at(kept.get(group.name, group.num_units))

    @staticmethod
    def _stays(name: str | None, kept: Counts) -> bool:
        return name is None or kept.get(name, 1) > 0

    def of_group(self, name: str, count: float) -> float:
        """Return what so many units of a group add to their block."""
        return self._curves[name].at(count)

    def unit(self, model: nn.Module, group: Group) -> int:
        """Return nanoseconds of one unit, as in `CostModel`."""
        return self.unit_of(group)

    def unit_of(self, group: Group) -> int:
        """Return nanoseconds of one unit, 1 at least."""
        if group.kind == LAYERS:
            seconds = self._of_block(group.block, {})
        elif group.kind in (ATTENTION, FFN):
            seconds = self._of_group(self._inner(group), {})
        else:
            seconds = self._of_group(group, {}) / group.num_units
        return max(1, round(seconds * _NANO))

    def _inner(self, branch: Group) -> Group:
        return next(group for group in self._inside[branch.block] if group.name == branch.inner)

    def per_feature(self, model: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
        """Return nothing: with a hidden feature no time is known to go."""
        return {}

    def least_multiple(self, group: Group) -> int:
        """Return the least multiple of which no number of units is slower than a larger one."""
        return self._steps.get(group.name, 1)

    def free_units(self, group: Group, count: int) -> int:
        """Return the most units that take no longer than `count` of them."""
        curve = self._curves.get(group.name)
        if curve is None or not 0 < count < group.num_units:
            return count
        wider = (w for w in curve.widths if count < w <= group.num_units and curve.at(w) <= curve.at(count))
        return max(wider, default=count)

    def parts(self, kept: Counts) -> dict[str, float]:
        """Return what the time at these widths is made of: for messages on what limits a speed-up."""
        blocks = sum(self._alone[path] for path in self._alone if self._stays(self._layer.get(path), kept))
        return {
            "embeddings, head and the call itself": self.rest,
            "norms, residuals and kernel launches in blocks": blocks,
            "units that must stay": self.seconds(kept) - self.rest - blocks,
        }


def _covering(curve: Curve, group: Group) -> Curve:
    """Return a curve that reaches as far as a group; raise `CheckpointError` for one that ends before."""
    if group.num_units <= curve.widths[-1]:
        return curve
    raise CheckpointError(
        "latency_table",
        f"says nothing of more than {curve.widths[-1]} {group.kind}, and {group.name} has {group.num_units}.",
        f"Add the time of {group.num_units} {group.kind}, or take the table of this model.",
    )
