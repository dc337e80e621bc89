"""Entries of gates and masks in a state dict, and marks that keep it from loading as that of a dense model.

Stock loaders ignore the entries of gates that they do not know. So one weight of every module that a gate or mask acts
on is stored with a leading axis of 1, whichever module of the tree is saved: stock loaders refuse that as a size
mismatch. peft stores adapters alone, so their weights are marked as well.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.layers import BASE
from patchers.patching.gates import GATE_SUFFIX, Gate
from patchers.patching.masks import MASK_NAME, WeightMask

PATCH_ENTRIES = (f"{GATE_SUFFIX}.keep_U", f"{MASK_NAME}.keep_O")
"""How the entry of every gate and mask ends in a state dict."""
_MARKED = "_stores_gated_weights"
_CONVERSIONS, _OTHER_CONVERSIONS = "_weight_conversions", "_weight_conversions_when_not_patched"


def mark(model: nn.Module, owners: Iterable[nn.Module]) -> None:
    """Let modules store a weight as no stock loader reads it, and the models around them keep the names of weights."""
    for owner in owners:
        if _MARKED not in vars(owner):
            save = owner.register_state_dict_post_hook(_mark_one_weight)
            load = owner.register_load_state_dict_pre_hook(_unmark_weights)
            object.__setattr__(owner, _MARKED, (save, load))
    if _MARKED not in vars(model):
        save = model.register_state_dict_post_hook(_mark_adapters)
        load = model.register_load_state_dict_pre_hook(_unmark_adapters)
        object.__setattr__(model, _MARKED, (save, load))
    for part in model.modules():
        fresh = isinstance(part, PreTrainedModel) and _OTHER_CONVERSIONS not in vars(part)
        if fresh and any(_MARKED in vars(m) for m in part.modules()):
            # `save_pretrained` writes many types under older names, which `load_state_dict`, and so a Trainer that
            # resumes, does not know (transformers 5.24). No conversion = the names of the model in memory.
            vars(part)[_OTHER_CONVERSIONS] = vars(part).get(_CONVERSIONS)
            vars(part)[_CONVERSIONS] = []


def unmark(module: nn.Module) -> None:
    """Take the marks of one module away; the inverse of `mark`."""
    for handle in vars(module).pop(_MARKED, ()):
        handle.remove()
    if _OTHER_CONVERSIONS in vars(module):
        before = vars(module).pop(_OTHER_CONVERSIONS)
        del vars(module)[_CONVERSIONS]
        if before is not None:
            vars(module)[_CONVERSIONS] = before


def _own_dims(owner: nn.Module) -> dict[str, int]:
    """Return the number of axes of each parameter below a module, without those of gates and masks."""
    ours = {id(p) for m in owner.modules() if isinstance(m, Gate | WeightMask) for p in m.parameters()}
    return {name: p.dim() for name, p in owner.named_parameters() if id(p) not in ours}


def _adapter_dims(model: nn.Module) -> dict[str, int]:
    """Return the number of axes of each parameter that wrappers inside a model hold beside what they wrap.

    Adapters that slice their own parameters when they are saved, as AdaLoRA does by rank, are left out.
    """
    return {
        f"{path}.{name}": parameter.dim()
        for path, wrapper in model.named_modules()
        if BASE in wrapper._modules and "ranknum" not in wrapper._modules
        for name, parameter in wrapper.named_parameters()
        if not name.startswith(f"{BASE}.")
    }


def _mark_one_weight(owner: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Mark one weight of `owner`, if a module inside has not done so already."""
    dims = _own_dims(owner)
    name = min(dims, key=lambda name: (name.rpartition(".")[2] != "weight", name))
    _add_axis(state, {prefix + name: dims[name]})


def _unmark_weights(owner: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    _drop_axis(state, {prefix + name: dim for name, dim in _own_dims(owner).items()})


def _mark_adapters(model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    _add_axis(state, {prefix + name: dim for name, dim in _adapter_dims(model).items()})


def _unmark_adapters(model: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    _drop_axis(state, {prefix + name: dim for name, dim in _adapter_dims(model).items()})


def _add_axis(state: dict[str, Tensor], dims: dict[str, int]) -> None:
    for name, dim in dims.items():
        if name in state and state[name].dim() == dim:
            state[name] = state[name].unsqueeze(0)


def _drop_axis(state: dict[str, Tensor], dims: dict[str, int]) -> None:
    for name, dim in dims.items():
        if name in state and state[name].dim() == dim + 1:
            state[name] = state[name].squeeze(0)
