"""`optimize_model`: from a patched model, a plan or a model with zeros to a smaller dense one."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.patching.merging import base_model, has_adapters, merge_adapters
from patchers.patching.patch import gated, gates_by_group, is_patched, masks_of, unpatch
from patchers.surgery import cut
from patchers.units import CHANNELS, HEADS, LAYERS
from patchers.zeros import bake_all, fold_constants
from sparse_trainer.cut.alignment import renumber_alignment
from sparse_trainer.cut.config_changes import Cut
from sparse_trainer.cut.decision import Decision, PlanLike, check_readable, decide, refuse_all_open
from sparse_trainer.cut.fold_blends import fold_cheaper, refuse_blends
from sparse_trainer.cut.model_class import record, take_class
from sparse_trainer.cut.self_check import check_same, outputs_of
from sparse_trainer.errors import ArgumentError, UnsupportedModelError, one_of
from sparse_trainer.plan.record import density_reached, make_plan, measure

M = TypeVar("M", bound=PreTrainedModel)
MODES = ("dense", "heads")


def optimize_model(
    model: M, mode: str = "dense", *, plan: PlanLike | None = None, inplace: bool = False, check: bool = True
) -> M:
    """Return the model without its closed units: smaller, dense, the same class name and the same outputs.

    The result saves with its own `save_pretrained` and loads with `AutoModelFor….from_pretrained(folder)`, with
    `trust_remote_code=True` where layers became uneven. `result.pruning_plan` records the decision.

    Args:
        model: A patched model (its gates decide, soft ones by their mask; weight masks become zeros); or a plain model
            and a `plan`; or a plain model that contains zeros: units that do nothing, or nothing but add a constant,
            are removed. Active adapters of peft, around or inside the model, are merged.
        mode: `dense` removes heads, channels and all else that is closed; `heads` only heads, and leaves zeros instead.
        plan: A plan, its JSON values, or a file or folder that holds one.
        inplace: Change `model` itself and spare the copy. If this raises, the model is not to be used.
        check: Compare outputs before and after on a small batch. Skipped on the meta device.

    Raises:
        SelfCheckError: the cut model does not compute what the masked one does.
        UnsupportedModelError: no model we can cut, e.g. one with adapters that do not merge, or with cheaper layers
            half blended in; or one that was patched for pruning and has nothing to cut.
        CheckpointError: the plan is damaged or was made for another model.
    """
    one_of("mode", mode, MODES)
    _check_model(model)
    if plan is None:
        refuse_all_open(base_model(model))
    return carry_out(model, mode, plan=plan, inplace=inplace, check=check)


def carry_out(
    model: M, mode: str = "dense", *, plan: PlanLike | None = None, inplace: bool = False, check: bool = True
) -> M:
    """Do what `optimize_model` does, where nothing to cut is fine too: in a step of many."""
    refuse_blends(model)
    compact: Any = model if inplace else copy.deepcopy(model)
    _drop_wrapped_forward(compact)
    if has_adapters(compact):
        compact = merge_adapters(compact)
        _drop_wrapped_forward(compact)
    cheaper = fold_cheaper(compact)
    check = check and next(compact.parameters()).device.type != "meta"
    zeroed = plan is None and (mode == "heads" or bool(masks_of(compact)))
    expected = outputs_of(compact) if zeroed and check else None
    if zeroed:
        _zero_closed(compact)
    decision = decide(compact, plan, zeroed=zeroed)
    if cheaper:
        decision = decision.naming(cheaper)
    unpatch(compact)
    if mode == "heads":
        decision = decision.of_heads()
    if expected is None and check:
        expected = _masked_outputs(compact, decision)
    _cut(compact, decision)
    if expected is not None:
        what = "the outputs before and after the cut"
        check_same(expected, compact, what=what, kept_K=decision.hidden_K)
    result: M = compact
    return result


def _check_model(model: Any) -> None:
    if isinstance(base_model(model), PreTrainedModel):
        return
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    inside = next((path for path, part in parts if isinstance(part, PreTrainedModel)), "")
    outer, _, name = inside.rpartition(".")
    wraps = f"Cut the one it wraps: part = model.get_submodule({outer!r}); part.{name} = optimize_model(part.{name})."
    raise UnsupportedModelError(
        type(model).__name__,
        "is no transformers model.",
        wraps if inside else "Unwrap it first: accelerator.unwrap_model(model).",
    )


def _drop_wrapped_forward(model: nn.Module) -> None:
    """Take off what a Trainer leaves on a trained model: accelerate's mixed precision, trl's fused head.

    The forward pass that such a wrapper remembers is that of the model before it was copied and cut.
    """
    vars(model).pop("_original_forward", None)
    if "_hf_hook" not in vars(model):
        vars(model).pop("forward", None)


def _zero_closed(model: nn.Module) -> None:
    """Turn masks, and the gates beside them, into zeros in the parameters."""
    if not is_patched(model):
        return
    structure = discover(model)
    check_readable(next(model.parameters()), "masks")
    gates = gates_by_group(model, structure)
    units = {name: gate for name, gate in gates.items() if structure[name].kind in (HEADS, CHANNELS)}
    whole = next((n for n, gate in gates.items() if n not in units and not bool(gate.keep_U.all())), None)
    if whole is not None:
        raise ArgumentError("mode", f"'heads' cannot leave {whole} as zeros.", "Take mode='dense'.")
    bake_all(model, structure, units)
    unpatch(model)


def _masked_outputs(model: nn.Module, decision: Decision) -> list[Tensor]:
    if decision.folds:
        return outputs_of(model)
    with gated(model, decision.structure, decision.keep):
        return outputs_of(model, whole=decision.reaches_heads)


def _cut(model: Any, decision: Decision) -> None:
    structure, keep, request = decision.structure, decision.keep, decision.request
    before = measure(model, structure, request.sequence_length)
    reached = density_reached(model, structure, keep, request)
    if decision.folds:
        fold_constants(model, structure, keep, lambda: outputs_of(model))
    cut(model, structure, keep)
    renumber_alignment(model, structure, keep)
    gone: dict[str, set[int]] = {}
    for group in structure.of([LAYERS]):
        if group.name in keep and not bool(keep[group.name].any()):
            gone.setdefault(group.stack, set()).add(group.layer)
    take_class(model, Cut(before=structure, after=discover(model, decision.kinds), gone=gone))
    plan = make_plan(model, request=request, structure=structure, keep=keep, reached=reached, before=before)
    record(model, plan)
