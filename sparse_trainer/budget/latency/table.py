"""A table of times: what the blocks of a model take without units, what these add, and what lies outside."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

from patchers.units import Group
from sparse_trainer.budget.latency.conditions import TimingConditions
from sparse_trainer.budget.latency.curve import Curve
from sparse_trainer.budget.latency.sorts import Block
from sparse_trainer.errors import CheckpointError

FORMAT = 1
T = TypeVar("T")
_REMEDY = "Remove the file, and it is measured again."


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Seconds of one forward pass, by part of the model. Keys are sorts of blocks and groups, or names of kinds."""

    conditions: TimingConditions | None
    """None = those of another device, which somebody else vouches for."""
    rest: float
    """What lies outside the blocks: embeddings, head, last norm, the start of a call."""
    blocks: Mapping[str, float]
    """A block without units: norms, residuals, routers, the start of its kernels."""
    curves: Mapping[str, Curve]
    """What units add to a block."""
    steps: Mapping[str, int]
    """Least multiple of which no number of units is slower than a larger one."""
    noise: float
    """Uncertainty of the least certain time, relative to it."""

    def curve_of(self, sort: str, group: Group) -> Curve:
        """Return what the units of a group add."""
        return _found(self.curves, sort, group.kind)

    def block_of(self, block: Block) -> float:
        """Return what a block takes without units."""
        return _found(self.blocks, block.sort, "layers")

    def values(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """Return the table as JSON text."""
        return json.dumps(self.values(), indent=1) + "\n"

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str, remedy: str = _REMEDY) -> Self:
        """Return the table in JSON values; raise `CheckpointError` where they are damaged."""
        fields = {"format", "conditions", "rest", "blocks", "curves", "steps", "noise"}
        if set(values) != fields:
            raise CheckpointError(
                where, f"does not have exactly the fields {', '.join(sorted(fields))}.", remedy
            )
        if values["format"] != FORMAT:
            raise CheckpointError(where, f"is of the format {values['format']!r}, not {FORMAT}.", remedy)
        for name, is_valid in (("blocks", _is_time), ("steps", _is_count)):
            if not isinstance(values[name], dict) or not all(map(is_valid, values[name].values())):
                raise CheckpointError(f"{where}: {name}", "does not hold numbers.", remedy)
        for name in ("rest", "noise"):
            if not _is_time(values[name]):
                raise CheckpointError(f"{where}: {name}", f"{values[name]!r} is no time.", remedy)
        if not isinstance(values["curves"], dict) or not all(map(_is_curve, values["curves"].values())):
            raise CheckpointError(f"{where}: curves", "does not hold widths and times that rise.", remedy)
        curves = {
            sort: Curve(widths=tuple(each["widths"]), seconds=tuple(each["seconds"]))
            for sort, each in values["curves"].items()
        }
        conditions = TimingConditions.read(values["conditions"], f"{where}: conditions", remedy)
        parts = {name: values[name] for name in ("rest", "blocks", "steps", "noise")}
        return cls(conditions=conditions, curves=curves, **parts)


def _found(known: Mapping[str, T], sort: str, kind: str) -> T:
    """Return what a table says of a sort, or of all of a kind."""
    if sort in known or kind in known:
        return known[sort] if sort in known else known[kind]
    raise CheckpointError(
        "latency_table",
        f"says nothing of {sort}.",
        f"Add rows of the kind {kind}, or take the table of this model.",
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_curve(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"widths", "seconds"}:
        return False
    widths, seconds = value["widths"], value["seconds"]
    if not isinstance(widths, list) or not isinstance(seconds, list) or not len(widths) == len(seconds) > 1:
        return False
    numbers = all(type(w) is int for w in widths) and all(map(_is_time, seconds))
    return (
        numbers
        and widths == sorted(set(widths))
        and widths[0] == 0 == seconds[0]
        and seconds == sorted(seconds)
    )
