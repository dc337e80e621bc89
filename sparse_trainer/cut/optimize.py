"""`optimize_model`: from a patched model, a plan or a model with zeros to a smaller dense one."""

from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from patchers.patching.merging import base_model
from patchers.patching.patch import masks_of, unpatch
from patchers.patching.scales import fold_scales
from patchers.patching.shards import is_sharded
from sparse_trainer.cut.bare import bare
from sparse_trainer.cut.carry_out import carry_out
from sparse_trainer.cut.decide import decide, found_in, refuse_all_open, write_zeros
from sparse_trainer.cut.self_check import outputs_of
from sparse_trainer.errors import UnsupportedModelError, one_of
from sparse_trainer.plan.document import PlanLike, as_plan

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
        UnsupportedModelError: no model we can cut, e.g. one whose weights are shared out by FSDP, with adapters
            that do not merge, or with cheaper layers half blended in; or one that was patched for pruning and has
            nothing to cut.
        CheckpointError: the plan is damaged or was made for another model.
    """
    one_of("mode", mode, MODES)
    _check_model(model)
    if plan is None:
        refuse_all_open(base_model(model))
    compact, cheaper = bare(model, inplace=inplace)
    check = check and next(compact.parameters()).device.type != "meta"
    loaded = None if plan is None else as_plan(plan)
    structure = found_in(compact, loaded)
    fold_scales(compact, structure)
    zeroed = plan is None and (mode == "heads" or bool(masks_of(compact)))
    expected = outputs_of(compact) if zeroed and check else None
    if zeroed:
        write_zeros(compact, structure)
    decision = decide(compact, structure, loaded, zeroed=zeroed).naming(cheaper)
    unpatch(compact)
    carry_out(compact, decision.of_heads() if mode == "heads" else decision, check=check, expected=expected)
    result: M = compact
    return result


def _check_model(model: Any) -> None:
    if is_sharded(model):
        raise UnsupportedModelError(
            type(model).__name__,
            "its weights lie in parts on several processes.",
            "In all processes trainer.save_model(folder), then in one optimize_model(load_patched(folder)).",
        )
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
