"""Read a decision off a model: its gates say which units stay, a plan, or zeros."""

import logging
from typing import Any

from torch import Tensor, nn

from patchers.discovery.discover import discover
from patchers.patching.masks import MaskFactor
from patchers.patching.patch import gated_kinds, gates_by_group, gates_of, is_patched, masks_of, unpatch
from patchers.units import BLOCK_KINDS, CHANNELS, HEADS, HIDDEN, KINDS, Structure
from patchers.zeros import bake_all, removable
from sparse_trainer.budget.cost import COSTS
from sparse_trainer.budget.options import keeps_all
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.layout import earlier_layout, refuse_shared
from sparse_trainer.cut.record import request_of
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.plan.document import Density, Plan

# Shape legend: U = units of a group.

logger = logging.getLogger(__name__)


def found_in(model: Any, plan: Plan | None = None) -> Structure:
    """Return what a cut of a model may concern; hidden features where gates, the plan or an earlier cut speak of them.

    Looked for once: a decision takes it along.

    Raises:
        UnsupportedModelError: layers share their weights, or nothing follows a known form.
    """
    refuse_shared(model)
    planned = () if plan is None else plan.groups.values()
    hidden = HIDDEN in gated_kinds(model) or any(group["kind"] == HIDDEN for group in planned)
    narrowed = bool(earlier_layout(model.config)["heads"])
    return discover(model, KINDS if hidden or narrowed else BLOCK_KINDS)


def write_zeros(model: nn.Module, structure: Structure) -> None:
    """Turn masks, and the gates beside them, into zeros in the parameters, in place.

    Raises:
        ArgumentError: something is closed that zeros cannot stand for.
    """
    if not is_patched(model):
        return
    check_readable(next(model.parameters()), "masks")
    gates = gates_by_group(model, structure)
    units = {name: gate for name, gate in gates.items() if structure[name].kind in (HEADS, CHANNELS)}
    whole = next((n for n, gate in gates.items() if n not in units and not bool(gate.keep_U.all())), None)
    if whole is not None:
        raise ArgumentError("mode", f"'heads' cannot leave {whole} as zeros.", "Take mode='dense'.")
    bake_all(model, structure, units)
    unpatch(model)


def decide(model: Any, structure: Structure, plan: Plan | None, *, zeroed: bool) -> Decision:
    """Return what the gates of a model say, or a plan, or its zeros.

    Args:
        structure: `found_in` the model.
        zeroed: Whether the zeros stand for gates and masks, whose method is on record.
    """
    request = request_of(model)
    if gates_of(model):
        if plan is not None:
            raise ArgumentError(
                "plan", "the model is patched, and its gates decide.", "Drop plan, or unpatch(model)."
            )
        keep = _keep_of_gates(model, structure)
        return Decision(structure=structure, keep=keep, request=request or Request(method="gates"))
    if plan is not None:
        asked = Request(
            method=plan.method,
            target=plan.target if plan.target in COSTS else "params",
            scope=plan.scope,
            density=plan.density_asked,
        )
        return Decision(structure=structure, keep=plan.keep_for(structure), request=asked)
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
    by_zeros = request if zeroed and request is not None else Request(method="zeros")
    return Decision(structure=structure, keep=keep, request=by_zeros, folds=True)


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
    return density is not None and keeps_all(density)


def _keep_of_gates(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    hung, gates = gates_of(model), gates_by_group(model, structure)
    strangers = [path for path, gate in hung.items() if gate not in gates.values()]
    if strangers:
        raise UnsupportedModelError(
            strangers[0],
            "is a gate of no group that the model has now.",
            "Patch the model as it is now, or undo changes made after patching.",
        )
    check_readable(next(iter(gates.values())).keep_U, "gates")
    return {name: (gate.keep_U > 0).cpu() for name, gate in gates.items()}


def check_readable(tensor: Tensor, what: str) -> None:
    """Raise unless a tensor has values."""
    if tensor.device.type == "meta":
        raise UnsupportedModelError("model", f"{what} on the meta device decide nothing.", "Pass plan=.")
