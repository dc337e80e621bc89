"""The command `inspect`: what of a model can be pruned, what it costs, and what stays untouched and why."""

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from torch import nn

from patchers.discovery.discover import discover
from patchers.units import BLOCK_KINDS, KINDS, Group, Kind
from sparse_trainer.budget.cost import unit_cost
from sparse_trainer.budget.counting import mac_count, parameter_count
from sparse_trainer.cli.console import print_result
from sparse_trainer.cli.options import Json
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.tables import joined_rows, table
from sparse_trainer.fields import check_counts
from sparse_trainer.folders.load_shape import load_shape


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCost:
    """One group and what all of its units cost."""

    name: str
    kind: Kind
    layer: int
    units: int
    parameters: int
    macs: int
    """Multiply-accumulates per token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The prunable and the untouched part of a model."""

    model: str
    forms: tuple[str, ...]
    parameters: int
    macs: int
    """Multiply-accumulates per token of the whole model."""
    sequence_length: int
    groups: tuple[GroupCost, ...]
    untouched: dict[str, str]
    """Path of every linear outside all groups -> the reason."""

    def totals(self) -> dict[str, dict[str, int]]:
        """Return groups, units, parameters and MACs of each kind. Kinds contain each other: they do not add up."""
        kinds = dict.fromkeys(group.kind for group in self.groups)
        return {kind: _sums([group for group in self.groups if group.kind == kind]) for kind in kinds}

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self) | {"totals": self.totals()}


def inspect_model(
    model: nn.Module,
    *,
    kinds: Iterable[Kind] = BLOCK_KINDS,
    exclude: Iterable[str] = (),
    sequence_length: int = 128,
) -> Inspection:
    """Return the groups of a model with their costs; a model on the meta device will do.

    Args:
        sequence_length: Tokens per sequence, for the MACs of attention.

    Raises:
        UnsupportedModelError: No known family.
    """
    structure = discover(model, tuple(kinds), tuple(exclude))
    return Inspection(
        model=type(model).__name__,
        forms=structure.forms,
        parameters=parameter_count(model),
        macs=mac_count(model, discover(model), sequence_length),
        sequence_length=sequence_length,
        groups=tuple(_cost(model, group, sequence_length) for group in structure.groups),
        untouched=dict(structure.untouched),
    )


def _cost(model: nn.Module, group: Group, sequence_length: int) -> GroupCost:
    return GroupCost(
        name=group.name,
        kind=group.kind,
        layer=group.layer,
        units=group.num_units,
        parameters=group.num_units * unit_cost(model, group, "params"),
        macs=group.num_units * unit_cost(model, group, "macs", sequence_length),
    )


def _sums(groups: list[GroupCost]) -> dict[str, int]:
    return {
        "groups": len(groups),
        "units": sum(group.units for group in groups),
        "parameters": sum(group.parameters for group in groups),
        "macs": sum(group.macs for group in groups),
    }


def inspect_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id; weights are not read.")],
    sequence_length: Annotated[
        int, typer.Option(help="Tokens per sequence, for the MACs of attention.")
    ] = 128,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Hidden features too, or the reason why they cannot go.")
    ] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show what of a model can be pruned, what it costs, and what stays untouched and why."""
    check_counts(sequence_length=sequence_length)
    with redirect_stdout(sys.stderr):
        kinds = KINDS if hidden else BLOCK_KINDS
        inspection = inspect_model(load_shape(model), kinds=kinds, sequence_length=sequence_length)
    print_result(as_json, inspection.to_json(), inspection_tables(inspection))


def inspection_tables(result: Inspection) -> list[RenderableType]:
    """Return totals per kind, the groups per layer, and what stays untouched."""
    totals = [["kind", "groups", "units", "parameters", "MACs per token"]]
    totals += [[kind, *(f"{number:,}" for number in sums.values())] for kind, sums in result.totals().items()]
    groups = [["group", "units each", "parameters each", "MACs per token"]]
    groups += joined_rows(
        [[g.name, f"{g.units:,}", f"{g.parameters:,}", f"{g.macs:,}"] for g in result.groups]
    )
    untouched = [
        ["untouched", "reason"],
        *joined_rows([[path, why] for path, why in result.untouched.items()]),
    ]
    return [
        f"{result.model}, forms {', '.join(result.forms)}: {result.parameters:,} parameters, "
        f"{result.macs:,} MACs per token at {result.sequence_length} tokens",
        table(groups, "groups"),
        table(totals, "per kind (kinds contain each other: they do not add up)"),
        table(untouched, None, "left"),
    ]
