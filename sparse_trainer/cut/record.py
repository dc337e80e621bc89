"""Write down what a cut did, as a plan; and what two cuts in a row did."""

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from patchers.discovery.towers import is_inside, towers_of
from patchers.units import LAYERS, Structure
from sparse_trainer.budget.cost import feature_costs, unit_cost
from sparse_trainer.budget.counting import mac_count, parameter_count
from sparse_trainer.budget.nesting import Nesting
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.plan.document import Plan, called
from sparse_trainer.plan.parts import GroupPlan, KeptTokens

# Shape legend: U = units of a group.

_REQUEST = "pruning_request"
_PLAN = "pruning_plan"


@dataclass(frozen=True, kw_only=True)
class Measures:
    """A model's sizes at one moment."""

    params: int
    macs: int
    shapes: Mapping[str, list[int]]


def remember_request(model: nn.Module, request: Request) -> None:
    """Leave a note on a patched model and on each model inside, for the plan that `optimize_model` writes.

    What is cut may be the inner one: adapters and other wrappers are taken off first.
    """
    for part in _models(model):
        vars(part)[_REQUEST] = request


def forget_request(model: nn.Module) -> None:
    """Take the note off a model, and off each model inside."""
    for part in _models(model):
        vars(part).pop(_REQUEST, None)


def request_of(model: nn.Module) -> Request | None:
    """Return the note on a model, if any."""
    request: Request | None = vars(model).get(_REQUEST)
    return request


def _models(model: nn.Module) -> list[nn.Module]:
    return [
        model,
        *(part for part in model.modules() if isinstance(part, PreTrainedModel) and part is not model),
    ]


def attach_plan(model: nn.Module, plan: Plan) -> None:
    """Make `model.pruning_plan` the record of how it was cut."""
    vars(model)[_PLAN] = plan


def plan_of(model: nn.Module) -> Plan | None:
    """Return the plan that a model carries, if any."""
    plan: Plan | None = vars(model).get(_PLAN)
    return plan


def measures_of(model: nn.Module, structure: Structure, sequence_length: int) -> Measures:
    """Return the sizes of a model without gates."""
    return Measures(
        params=parameter_count(model),
        macs=mac_count(model, structure, sequence_length),
        shapes={name: list(p.shape) for name, p in model.named_parameters()},
    )


def density_reached(model: nn.Module, decision: Decision) -> float | None:
    """Return the kept share of the cost of all groups that are decided on, each once; None when they cost nothing."""
    groups, request = decision.groups, decision.request
    if request.timing is not None:
        nesting = Nesting(groups, {g.name: request.timing.unit_of(g) for g in groups})
    else:
        costs = {g.name: unit_cost(model, g, request.target, request.sequence_length) for g in groups}
        nesting = Nesting(groups, costs, feature_costs(model, groups, request.target))
    return nesting.kept(decision.keep) / nesting.total if nesting.total else None


def make_plan(
    model: Any, decision: Decision, *, before: Measures, after: Measures, reached: float | None = None
) -> Plan:
    """Return the plan of a cut.

    Args:
        model: Before or after the cut: what names its class and type.
        before: What `measures_of` says of it before the cut; `after` likewise.
        reached: The kept share of the cost.
    """
    structure, keep, request = decision.structure, decision.keep, decision.request
    recorded = [g for g in structure.groups if g.name in keep or g.kind.is_width]
    whole = {g.name: torch.ones(g.num_units, dtype=torch.bool) for g in recorded}
    groups = {
        g.name: GroupPlan(
            kind=g.kind,
            layer=g.layer,
            size=g.num_units,
            keep=keep.get(g.name, whole[g.name]).nonzero().flatten().tolist(),
        )
        for g in recorded
    }
    moved = {f"{old}.": f"{new}." for old, new in _moved_blocks(structure, groups).items()}
    shapes = _changed_shapes(before.shapes, after.shapes, moved)
    return Plan(
        model=called(str(model.config.name_or_path or "")),
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        method=request.method,
        target=request.target,
        scope=request.scope,
        density_asked=request.density,
        density_reached=reached,
        params={"dense": before.params, "compact": after.params},
        macs={"dense": before.macs, "compact": after.macs},
        groups=groups,
        shapes=shapes,
        versions=_versions(),
        untouched_towers=whole_among(towers_of(model), shapes),
        kv_groups=any(g.is_shared for g in recorded),
        speed=None if request.timing is None else request.timing.speed(keep),
    )


def whole_among(towers: tuple[str, ...], changed: Iterable[str]) -> tuple[str, ...]:
    """Return the towers in which none of these parameters lies.

    >>> whole_among(("vision_tower", "audio_tower"), ["audio_tower.layers.0.fc1.weight"])
    ('vision_tower',)
    """
    names = list(changed)
    return tuple(tower for tower in towers if not any(is_inside(name, (tower,)) for name in names))


def _moved_blocks(structure: Structure, groups: Mapping[str, GroupPlan]) -> dict[str, str]:
    """Return the path after the cut of every block, by its path before; "" for the blocks that are gone."""
    moved = {}
    for stack in structure.stacks:
        position = 0
        for layer in range(stack.size):
            gone = groups.get(f"{stack.path}.{layer}.layer", {"keep": [0]})["keep"] == []
            moved[f"{stack.path}.{layer}"] = "" if gone else f"{stack.path}.{position}"
            position += not gone
    return moved


def _changed_shapes(
    before: Mapping[str, list[int]], after: Mapping[str, list[int]], moved: Mapping[str, str]
) -> dict[str, tuple[list[int], list[int] | None]]:
    changed = {}
    for name, shape in before.items():
        old = next((block for block in moved if name.startswith(block)), "")
        gone = old != "" and moved[old] == "."
        now = None if gone else after.get(moved.get(old, "") + name.removeprefix(old))
        if now != shape:
            changed[name] = (shape, now)
    return changed


def _versions() -> dict[str, str]:
    return {
        "sparse_trainer": importlib.metadata.version("sparse-trainer"),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def compose(first: Plan, second: Plan) -> Plan:
    """Return one plan, over the units of the first model, that does what the two plans do in a row."""
    origin = _Origin(first)
    groups = dict(first.groups)
    for name, group in second.groups.items():
        original = origin.name(name)
        if original in groups:
            groups[original] = {**groups[original], "keep": _both(original, groups[original]["keep"], group)}
        else:
            groups[original] = {**group, "layer": origin.layer(name, group["layer"])}
    shapes = dict(first.shapes)
    for name, (before, after) in second.shapes.items():
        original = origin.name(name)
        shapes[original] = (shapes.get(original, (before, None))[0], after)
    asked = first if _is_whole(second) else second
    return Plan(
        model=first.model or second.model,
        model_type=second.model_type,
        architecture=second.architecture,
        method=first.method if first.method == second.method else f"{first.method}, then {second.method}",
        target=asked.target,
        scope=asked.scope,
        density_asked=asked.density_asked,
        density_reached=_both_densities(first, second),
        params={"dense": first.params["dense"], "compact": second.params["compact"]},
        macs={"dense": first.macs["dense"], "compact": second.macs["compact"]},
        groups=groups,
        shapes=shapes,
        versions=second.versions,
        recoveries=(*first.recoveries, *second.recoveries),
        speed=asked.speed,
        kv_groups=first.kv_groups or second.kv_groups,
        untouched_towers=tuple(tower for tower in first.untouched_towers if tower in second.untouched_towers),
        vocabulary=_both_vocabularies(first.vocabulary, second.vocabulary),
        searches=(*first.searches, *second.searches),
    )


def _both_vocabularies(first: KeptTokens | None, second: KeptTokens | None) -> KeptTokens | None:
    """Return the tokens of the first model that two cuts in a row leave."""
    if first is None or second is None:
        return first or second
    return {
        "size": first["size"],
        "keep": [first["keep"][number] for number in second["keep"]],
        "minimum_count": second["minimum_count"],
        "corpora": {**first["corpora"], **second["corpora"]},
    }


def _is_whole(plan: Plan) -> bool:
    """Tell whether a plan keeps everything, as that of exchanged layers does."""
    return all(len(group["keep"]) == group["size"] for group in plan.groups.values())


def _both_densities(first: Plan, second: Plan) -> float | None:
    if _is_whole(first) or _is_whole(second):
        return (second if _is_whole(first) else first).density_reached
    reached = (first.density_reached, second.density_reached)
    if first.target != second.target or reached[0] is None or reached[1] is None:
        return None
    return reached[0] * reached[1]


def _both(name: str, kept: list[int], second: GroupPlan) -> list[int]:
    """Return the units of the first model that two cuts in a row leave."""
    if len(kept) == second["size"]:
        return [kept[i] for i in second["keep"]]
    assert len(second["keep"]) in (0, second["size"]), f"{name}: ask counts_anew"
    return kept if second["keep"] else []


def counts_anew(first: Plan, second: Plan) -> bool:
    """Tell whether a second cut chose among other units than the first left, so that no one plan says both.

    One KV group that is left alone is one key for several query heads, each of which is a unit then.
    """
    origin = _Origin(first)
    for name, group in second.groups.items():
        earlier = first.groups.get(origin.name(name))
        recounted = earlier is not None and len(earlier["keep"]) != group["size"]
        if recounted and 0 < len(group["keep"]) < group["size"]:
            return True
    return False


class _Origin:
    """Gives the names of the first model to names of the model after the first plan."""

    def __init__(self, first: Plan) -> None:
        self.gone: dict[str, set[int]] = {}
        for name, group in first.groups.items():
            if group["kind"] == LAYERS and not group["keep"]:
                stack = name.removesuffix(f".{group['layer']}.layer")
                self.gone.setdefault(stack, set()).add(group["layer"])

    def name(self, name: str) -> str:
        """Return a group's or parameter's name before the first plan."""
        for stack in self.gone:
            if name.startswith(f"{stack}."):
                number, _, rest = name.removeprefix(f"{stack}.").partition(".")
                return f"{stack}.{self._before(stack, int(number))}.{rest}"
        return name

    def layer(self, name: str, layer: int) -> int:
        """Return a group's layer before the first plan."""
        stack = next((stack for stack in self.gone if name.startswith(f"{stack}.")), None)
        return layer if stack is None else self._before(stack, layer)

    def _before(self, stack: str, layer: int) -> int:
        gone, before = self.gone[stack], 0
        while before in gone:
            before += 1
        for _ in range(layer):
            before += 1
            while before in gone:
                before += 1
        return before
