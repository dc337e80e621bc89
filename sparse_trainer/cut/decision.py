"""Which units an `optimize_model` keeps: gates say it, a plan, or zeros."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchers.discovery.discover import discover
from patchers.patching.masks import MaskFactor
from patchers.patching.patch import gated_kinds, gates_by_group, gates_of, masks_of
from patchers.units import BLOCK_KINDS, HEADS, HIDDEN, KINDS, Kind, Structure
from patchers.zeros import removable
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.plan.document import Density, Plan
from sparse_trainer.plan.record import Request, request_of, take_request, target_named

# Shape legend: U = units of a group, K = hidden features that stay.

PlanLike = Plan | Mapping[str, Any] | str | os.PathLike[str]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which units stay, and who said so."""

    structure: Structure
    keep: Mapping[str, Tensor]
    request: Request
    folds: bool
    """Whether removed units may leave constants behind: of weights that are zero, not of gates."""

    @property
    def reaches_heads(self) -> bool:
        """Whether task heads are cut too: they read hidden features."""
        return bool(self.structure.of([HIDDEN]))

    @property
    def hidden_K(self) -> Tensor | None:
        """Hidden features that stay, where some may go."""
        group = next(iter(self.structure.of([HIDDEN])), None)
        if group is None:
            return None
        return self.keep.get(group.name, torch.ones(group.num_units)).nonzero().flatten()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit that were looked for."""
        return KINDS if self.reaches_heads else BLOCK_KINDS

    def of_heads(self) -> "Decision":
        """Return what it says of heads, nothing else."""
        heads = {g.name for g in self.structure.of([HEADS])}
        keep = {name: keep_U for name, keep_U in self.keep.items() if name in heads}
        return dataclasses.replace(self, keep=keep)

    def naming(self, more: str) -> "Decision":
        """Return the same decision, its method named with something that was done beside it."""
        request = dataclasses.replace(self.request, method=f"{self.request.method}, {more}")
        return dataclasses.replace(self, request=request)


def decide(model: Any, plan: PlanLike | None, *, zeroed: bool) -> Decision:
    """Read the decision off the gates of a model, off a plan, or off zeros.

    Args:
        zeroed: Whether the zeros stand for gates and masks, whose method is on record.
    """
    loaded = None if plan is None else _as_plan(plan)
    planned = {} if loaded is None else loaded.groups
    hidden = any(group["kind"] == HIDDEN for group in planned.values()) or HIDDEN in gated_kinds(model)
    structure = discover(model, KINDS if hidden else BLOCK_KINDS)
    request = take_request(model)
    if gates_of(model):
        if plan is not None:
            raise ArgumentError(
                "plan", "the model is patched, and its gates decide.", "Drop plan, or unpatch(model)."
            )
        keep = _keep_of_gates(model, structure)
        request = request or Request(method="gates")
        return Decision(structure=structure, keep=keep, request=request, folds=False)
    if loaded is not None:
        asked = Request(
            method=loaded.method,
            target=target_named(loaded.target),
            scope=loaded.scope,
            density=loaded.density_asked,
        )
        return Decision(structure=structure, keep=loaded.keep_for(structure), request=asked, folds=False)
    check_readable(next(model.parameters()), "weights")
    keep = removable(model, structure)
    if all(bool(keep_U.all()) for keep_U in keep.values()):
        if (
            request is not None
            and not zeroed
            and request.density is not None
            and not _is_one(request.density)
        ):
            raise UnsupportedModelError(
                type(model).__name__,
                f"was patched for pruning to {request.density}, and its gates are gone. Nothing to cut.",
                "Call optimize_model before unpatch, or load a checkpoint together with its gates.",
            )
        logger.warning("%s: no gates, no plan and no removable zeros: nothing to cut.", type(model).__name__)
    return Decision(
        structure=structure,
        keep=keep,
        request=request if zeroed and request is not None else Request(method="zeros"),
        folds=True,
    )


def refuse_all_open(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` for a model that was patched for pruning and has nothing closed.

    A density of 1 that was asked for is fine.
    """
    request = request_of(model)
    if request is not None and _is_one(request.density):
        return
    gates, masks = gates_of(model), masks_of(model)
    if not gates and not masks:
        return
    check_readable(
        next(iter([*gates.values(), *masks.values()])).get_buffer("keep_U" if gates else "keep_O"), "gates"
    )
    kept = [gate.keep_U for gate in gates.values()]
    kept += [
        factor.keep_RC
        for mask in masks.values()
        for factor in mask.modules()
        if isinstance(factor, MaskFactor)
    ]
    if all(bool((keep != 0).all()) for keep in kept):
        asked = "" if request is None or request.density is None else f", asked for {request.density}"
        raise UnsupportedModelError(
            type(model).__name__,
            f"was patched for pruning, and all its units are open: density 1.0 reached{asked}. Nothing to cut.",
            "Train until the schedule closes units, from a checkpoint together with its gates; or call unpatch(model) "
            "for the dense model.",
        )


def _is_one(density: Density) -> bool:
    if density is None:
        return False
    return all(part == 1 for part in (density.values() if isinstance(density, Mapping) else [density]))


def _keep_of_gates(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    hung, gates = gates_of(model), gates_by_group(model, structure)
    strangers = [path for path, gate in hung.items() if gate not in gates.values()]
    if strangers:
        raise UnsupportedModelError(
            strangers[0],
            "is a gate of no group that the model has now.",
            "Was the model changed after patching?",
        )
    check_readable(next(iter(gates.values())).keep_U, "gates")
    return {name: (gate.keep_U > 0).cpu() for name, gate in gates.items()}


def check_readable(tensor: Tensor, what: str) -> None:
    """Raise unless a tensor has values."""
    if tensor.device.type == "meta":
        raise UnsupportedModelError("model", f"{what} on the meta device decide nothing.", "Pass plan=.")


def _as_plan(plan: PlanLike) -> Plan:
    if isinstance(plan, Plan):
        return plan
    return Plan.from_dict(dict(plan)) if isinstance(plan, Mapping) else Plan.load(Path(plan))
