"""`optimize_model`: from a patched model, a plan or a model with zeros to a smaller dense one."""

import copy
import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers import Structure, cut, discover, gated, gates_by_group, gates_of, is_patched, masks_of, unpatch
from patchers.groups import BLOCK_KINDS, KINDS, Kind
from patchers.modeling_pruned import FORMAT, pruned_class, stock_class_of
from patchers.zeros import fold_constants, removable
from sparse_trainer.auto_classes import auto_map_for
from sparse_trainer.cut.changes import Cut
from sparse_trainer.cut.cheaper import fold_cheaper, refuse_blends
from sparse_trainer.cut.fit import fit_config
from sparse_trainer.cut.layout import (
    check_builds,
    earlier_layout,
    follow_counts,
    is_native,
    layout_of,
    mark_skips,
)
from sparse_trainer.cut.probe import check_same, outputs_of
from sparse_trainer.errors import ArgumentError, UnsupportedModelError, nearest
from sparse_trainer.masking.driver import bake_all
from sparse_trainer.plan import Plan
from sparse_trainer.plan.record import (
    Request,
    attach_plan,
    compose,
    density_reached,
    make_plan,
    measure,
    plan_of,
    take_request,
    target_named,
)

# Shape legend: U = units of a group, K = hidden features that stay.

M = TypeVar("M", bound=PreTrainedModel)
PlanLike = Plan | Mapping[str, Any] | str | os.PathLike[str]
MODES = ("dense", "heads")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """Which units stay, and who said so."""

    structure: Structure
    keep: Mapping[str, Tensor]
    request: Request
    folds: bool
    """Whether removed units may leave constants behind: of weights that are zero, not of gates."""

    @property
    def reaches_heads(self) -> bool:
        """Whether task heads are cut too: they read hidden features."""
        return bool(self.structure.of(["hidden"]))

    @property
    def hidden_K(self) -> Tensor | None:
        """Hidden features that stay, where some may go."""
        group = next(iter(self.structure.of(["hidden"])), None)
        if group is None:
            return None
        return self.keep.get(group.name, torch.ones(group.num_units)).nonzero().flatten()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit that were looked for."""
        return KINDS if self.reaches_heads else BLOCK_KINDS


def optimize_model(
    model: M, mode: str = "dense", *, plan: PlanLike | None = None, inplace: bool = False, check: bool = True
) -> M:
    """Return the model without its closed units: smaller, dense, the same class name and the same outputs.

    The result saves with its own `save_pretrained` and loads with `AutoModelFor….from_pretrained(folder)`, with
    `trust_remote_code=True` where layers became uneven. `result.pruning_plan` records the decision.

    Args:
        model: A patched model (its gates decide, soft ones by their mask; weight masks become zeros); or a plain model
            and a `plan`; or a plain model that contains zeros: units that do nothing, or nothing but add a constant,
            are removed.
        mode: `dense` removes heads, channels and all else that is closed; `heads` only heads, and leaves zeros instead.
        plan: A plan, its JSON values, or a file or folder that holds one.
        inplace: Change `model` itself and spare the copy. If this raises, the model is not to be used.
        check: Compare outputs before and after on a small batch. Skipped on the meta device.

    Raises:
        SelfCheckError: the cut model does not compute what the masked one does.
        UnsupportedModelError: no model we can cut, e.g. one with adapters, or with cheaper layers half blended in.
        CheckpointError: the plan is damaged or was made for another model.
    """
    if mode not in MODES:
        raise ArgumentError("mode", f"unknown value {mode!r}.", nearest(mode, MODES))
    _check_model(model)
    refuse_blends(model)
    compact = model if inplace else copy.deepcopy(model)
    _drop_autocast(compact)
    cheaper = fold_cheaper(compact)
    check = check and next(compact.parameters()).device.type != "meta"
    zeroed = plan is None and (mode == "heads" or bool(masks_of(compact)))
    expected = outputs_of(compact) if zeroed and check else None
    if zeroed:
        _zero_closed(compact)
    decision = _decide(compact, plan, zeroed=zeroed)
    if cheaper:
        method = f"{decision.request.method}, {cheaper}"
        decision = dataclasses.replace(decision, request=dataclasses.replace(decision.request, method=method))
    unpatch(compact)
    if mode == "heads":
        decision = _of_heads(decision)
    if expected is None and check:
        expected = _masked_outputs(compact, decision)
    _cut(compact, decision)
    if expected is not None:
        what = "the outputs before and after the cut"
        check_same(expected, compact, what=what, kept_K=decision.hidden_K)
    return compact


def _check_model(model: object) -> None:
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            type(model).__name__,
            "is no transformers model.",
            "Unwrap it first: accelerator.unwrap_model(model), or merge_and_unload() of a peft model.",
        )
    adapters = [p for p, m in model.named_modules() if type(m).__module__.partition(".")[0] == "peft"]
    if adapters:
        raise UnsupportedModelError(
            adapters[0],
            "is a peft adapter, which would not fit the smaller layer.",
            "Call merge_and_unload() first.",
        )


def _drop_autocast(model: nn.Module) -> None:
    """Take off the mixed-precision wrapper that accelerate leaves on a trained model."""
    if vars(model).pop("_original_forward", None) is not None:
        vars(model).pop("forward", None)


def _decide(model: Any, plan: PlanLike | None, *, zeroed: bool) -> _Decision:
    loaded = None if plan is None else _as_plan(plan)
    names = [*gates_of(model), *({} if loaded is None else loaded.groups)]
    hidden = any(name.rpartition(".")[2].startswith("hidden") for name in names)
    structure = discover(model, KINDS if hidden else BLOCK_KINDS)
    request = take_request(model)
    if gates_of(model):
        if plan is not None:
            raise ArgumentError(
                "plan", "the model is patched, and its gates decide.", "Drop plan, or unpatch(model)."
            )
        keep = _keep_of_gates(model, structure)
        request = request or Request(method="gates")
        return _Decision(structure=structure, keep=keep, request=request, folds=False)
    if loaded is not None:
        asked = Request(
            method=loaded.method,
            target=target_named(loaded.target),
            scope=loaded.scope,
            density=loaded.density_asked,
        )
        return _Decision(structure=structure, keep=loaded.keep_for(structure), request=asked, folds=False)
    _check_readable(next(model.parameters()), "weights")
    keep = removable(model, structure)
    if all(bool(keep_U.all()) for keep_U in keep.values()):
        logger.warning("%s: no gates, no plan and no removable zeros: nothing to cut.", type(model).__name__)
    return _Decision(
        structure=structure,
        keep=keep,
        request=request if zeroed and request is not None else Request(method="zeros"),
        folds=True,
    )


def _keep_of_gates(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    hung, gates = gates_of(model), gates_by_group(model, structure)
    strangers = [path for path, gate in hung.items() if gate not in gates.values()]
    if strangers:
        raise UnsupportedModelError(
            strangers[0],
            "is a gate of no group that the model has now.",
            "Was the model changed after patching?",
        )
    _check_readable(next(iter(gates.values())).keep_U, "gates")
    return {name: (gate.keep_U > 0).cpu() for name, gate in gates.items()}


def _check_readable(tensor: Tensor, what: str) -> None:
    if tensor.device.type == "meta":
        raise UnsupportedModelError("model", f"{what} on the meta device decide nothing.", "Pass plan=.")


def _as_plan(plan: PlanLike) -> Plan:
    if isinstance(plan, Plan):
        return plan
    return Plan.from_dict(dict(plan)) if isinstance(plan, Mapping) else Plan.load(Path(plan))


def _zero_closed(model: nn.Module) -> None:
    """Turn masks, and the gates beside them, into zeros in the parameters."""
    if not is_patched(model):
        return
    structure = discover(model)
    _check_readable(next(model.parameters()), "masks")
    gates = gates_by_group(model, structure)
    units = {name: gate for name, gate in gates.items() if structure[name].kind in ("heads", "channels")}
    whole = next((n for n, gate in gates.items() if n not in units and not bool(gate.keep_U.all())), None)
    if whole is not None:
        raise ArgumentError("mode", f"'heads' cannot leave {whole} as zeros.", "Take mode='dense'.")
    bake_all(model, structure, units)
    unpatch(model)


def _of_heads(decision: _Decision) -> _Decision:
    heads = {g.name for g in decision.structure.of(["heads"])}
    keep = {name: keep_U for name, keep_U in decision.keep.items() if name in heads}
    return dataclasses.replace(decision, keep=keep)


def _masked_outputs(model: nn.Module, decision: _Decision) -> list[Tensor]:
    if decision.folds:
        return outputs_of(model)
    with gated(model, decision.structure, decision.keep):
        return outputs_of(model, whole=decision.reaches_heads)


def _cut(model: Any, decision: _Decision) -> None:
    structure, keep, request = decision.structure, decision.keep, decision.request
    before = measure(model, structure, request.sequence_length)
    reached = density_reached(model, structure, keep, request)
    if decision.folds:
        fold_constants(model, structure, keep, lambda: outputs_of(model))
    cut(model, structure, keep)
    gone: dict[str, set[int]] = {}
    for group in structure.of(["layers"]):
        if group.name in keep and not bool(keep[group.name].any()):
            gone.setdefault(group.stack, set()).add(group.layer)
    _take_class(model, Cut(before=structure, after=discover(model, decision.kinds), gone=gone))
    plan = make_plan(model, request=request, structure=structure, keep=keep, reached=reached, before=before)
    _record(model, plan)


def adopt(model: Any, method: str) -> None:
    """Give a model of which nothing was cut, but layers exchanged, the class that builds it and a plan that says so."""
    structure, request = discover(model), Request(method=method)
    _take_class(model, Cut(before=structure, after=structure, gone={}))
    before = measure(model, structure, request.sequence_length)
    plan = make_plan(model, request=request, structure=structure, keep={}, reached=1.0, before=before)
    _record(model, plan)


def _record(model: Any, plan: Plan) -> None:
    earlier = plan_of(model)
    attach_plan(model, plan if earlier is None else compose(earlier, plan))


def _take_class(model: Any, done: Cut) -> None:
    """Make the model an instance of the class that can build it: the stock one where that is possible."""
    earlier = earlier_layout(model.config)
    fit = fit_config(model, done, earlier["build"])
    follow_counts(model, fit.built, [stack.path for stack in done.after.stacks])
    layout = layout_of(model, fit, done.gone, earlier["layers"])
    if is_native(layout):
        model.__class__ = stock_class_of(model)
    else:
        mark_skips(model, fit.built)
        model.config.pruning = {"format": FORMAT, "layout": dict(layout)}
        model.__class__ = pruned_class(stock_class_of(model))
        # Conversions of names that `from_pretrained` applied are those of the stock class, and not undone by this one.
        vars(model).pop("_weight_conversions", None)
        _say_where_to_find(model)
    # The class registers what it can record (output_hidden_states=True) when an instance is built, and only then.
    check_builds(model)


def _say_where_to_find(model: Any) -> None:
    auto_map = auto_map_for(model)
    if auto_map:
        model.config.auto_map = auto_map
    else:
        logger.warning(
            "%s is no class of transformers: its folder loads with pruned_class(%s).from_pretrained(folder).",
            *[type(model).__name__] * 2,
        )
