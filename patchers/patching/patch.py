"""Put gates and masks into a model and take them out again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.errors import UnsupportedModelError
from patchers.layers import LINEAR_TYPES
from patchers.patching.adapters import BASE, WrapperHook, adapter_dims, chain, follow, refuse_copies, watch
from patchers.patching.gated_norm import GatedNorm, is_plain_norm
from patchers.patching.gates import Gate, GatedForward, GatedParameter, GatedRouter, GateHook
from patchers.patching.masks import MASK_NAME, MaskedForward, WeightMask
from patchers.units import HIDDEN, KINDS, Group, Kind, Structure

GATE_SUFFIX = "_gate"
"""Gates are children named `heads_gate`, `channels_gate`, … of the module they stand at."""
PATCH_ENTRIES = (f"{GATE_SUFFIX}.keep_U", f"{MASK_NAME}.keep_O")
"""How the entry of every gate and mask ends in a state dict."""
SCORE_ENTRIES = (f"{GATE_SUFFIX}.score_U", ".score_RC")
"""How the names of learned scores end: parameters, but not of the model's own."""


def gate_name(kind: Kind) -> str:
    """Return the name of the child that is the gate of a group of this kind."""
    return f"{kind}{GATE_SUFFIX}"


def patch(model: nn.Module, structure: Structure, make_gate: Callable[[Group], Gate]) -> dict[str, Gate]:
    """Hang one gate per group on the model, in place, all open.

    The modules stay what and where they are: names, types and tensors do not change. Each consumer gets a child with
    the gate, and a forward hook; of a plain linear whose input is gated the `forward` is replaced instead, which spares
    memory. Adapters around a consumer, now or later, are gated with it. `unpatch` is the exact inverse.

    Args:
        make_gate: Called once per group.

    Returns:
        The gates by group name.

    Raises:
        UnsupportedModelError: the model has gates already.
    """
    if gates_of(model):
        raise UnsupportedModelError(
            type(model).__name__, "the model is patched already.", "Call unpatch(model) first, or reload it."
        )
    for stack in structure.stacks:
        refuse_copies(model, stack.path)
    for group in structure.groups:
        _refuse_wrapped(model, group)
    return {group.name: _hang(model, group, make_gate(group)) for group in structure.groups}


def _refuse_wrapped(model: nn.Module, group: Group) -> None:
    """Raise where a gate would have to take the place of a `forward` that is not the class's own."""
    replaced = group.norms if group.kind == HIDDEN else (group.consumer,)
    if group.kind.gated not in ("norm", "router") and group.consumer_tensor is None:
        return
    adapted = next((path for path in replaced if path.rpartition(".")[2] == BASE), None)
    if adapted is not None:
        raise UnsupportedModelError(
            adapted,
            f"is wrapped by an adapter, beside which {group.kind} cannot be gated.",
            f"Leave it out of the adapter (target_parameters), or take {group.kind!r} out of `units`.",
        )
    wrapped = next((path for path in replaced if "forward" in vars(model.get_submodule(path))), None)
    if wrapped is not None:
        raise UnsupportedModelError(
            wrapped,
            "its forward pass is wrapped, by a device map or a kernel.",
            f"Load the model on one device, without kernels, or take {group.kind!r} out of `units`.",
        )


def _hang(model: nn.Module, group: Group, gate: Gate) -> Gate:
    *wrappers, owner = chain(model, group.consumer)
    reference = next(owner.parameters())
    gate.to(device=reference.device)
    place = group.kind.gated
    width = group.consumer_slice.width if place == "input" else 1
    tensor = group.consumer_tensor
    if place == "norm":
        _hang_on_norms(model, group, gate)
    elif place == "router":
        vars(owner)["forward"] = GatedRouter(owner, gate)
    elif tensor is not None:
        leaf = tensor.name.rpartition(".")[2]
        vars(owner)["forward"] = GatedParameter(owner, gate, leaf, tensor.dim)
    elif place == "input" and type(owner) is nn.Linear and "forward" not in vars(owner):
        vars(owner)["forward"] = GatedForward(owner, gate, width)
    elif place == "input":
        owner.register_forward_pre_hook(GateHook(gate, place, width))
    else:
        owner.register_forward_hook(GateHook(gate, place), with_kwargs=True)
    for wrapper in reversed(wrappers):
        follow(owner, wrapper)
    watch()
    owner.add_module(gate_name(group.kind), gate)
    _mark(model, [owner, *map(model.get_submodule, group.norms)])
    return gate


def _hang_on_norms(model: nn.Module, group: Group, gate: Gate) -> None:
    """Let all norms of a stream, and what writes to it first, see one gate."""
    owners = {path: model.get_submodule(path) for path in group.norms}
    strange = next(
        (p for p, m in owners.items() if not (isinstance(m, LINEAR_TYPES) or is_plain_norm(m))), None
    )
    if strange is not None:
        raise UnsupportedModelError(
            strange,
            f"is a {type(owners[strange]).__name__} now, which is no norm over the open hidden features.",
            "Take 'hidden' out of `units`, or leave LayerNorm in its place.",
        )
    for module in owners.values():
        if isinstance(module, LINEAR_TYPES):
            module.register_forward_hook(GateHook(gate, "output"), with_kwargs=True)
        else:
            vars(module)["forward"] = GatedNorm(module, gate)


def hang_mask(model: nn.Module, paths: Sequence[str], mask: WeightMask) -> None:
    """Hang one mask on linears of one shape, in place; it becomes a child of the first. `unpatch` is the inverse.

    Masks go on before gates: a gate finds its place in front of a masked linear.
    """
    for path in paths:
        linear = model.get_submodule(path)
        if (
            not isinstance(linear, LINEAR_TYPES)
            or type(linear) not in LINEAR_TYPES
            or "forward" in vars(linear)
        ):
            raise UnsupportedModelError(
                path,
                f"is no plain linear ({type(linear).__name__}), or is patched already.",
                "Merge adapters first, prune before quantizing, and call unpatch(model) before patching again.",
            )
        vars(linear)["forward"] = MaskedForward(linear, mask)
    watch()
    model.get_submodule(paths[0]).add_module(MASK_NAME, mask)
    _mark(model, map(model.get_submodule, paths))


def masks_of(model: nn.Module) -> dict[str, WeightMask]:
    """Return the mask of every masked linear, by the path of the linear; a shared one stands there several times."""
    forwards = {path: vars(module).get("forward") for path, module in model.named_modules()}
    return {path: forward.mask for path, forward in forwards.items() if isinstance(forward, MaskedForward)}


def unpatch(model: nn.Module) -> None:
    """Remove all that `patch` and `hang_mask` hung, in place; the tensors are the very same ones."""
    replaced = GatedForward | GatedNorm | GatedParameter | GatedRouter | MaskedForward
    for owner in list(model.modules()):
        for name in _gate_names(owner):
            delattr(owner, name)
        if isinstance(vars(owner).get("forward"), replaced):
            del vars(owner)["forward"]
        for hooks, flags in (
            (owner._forward_pre_hooks, owner._forward_pre_hooks_with_kwargs),
            (owner._forward_hooks, owner._forward_hooks_with_kwargs),
        ):
            for key in [k for k, hook in hooks.items() if isinstance(hook, GateHook | WrapperHook)]:
                del hooks[key]
                flags.pop(key, None)
                owner._forward_hooks_always_called.pop(key, None)
        _unmark(owner)


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """Return the gates that hang in a model, by the path of the gate module."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Gate)}


def gated_kinds(model: nn.Module) -> set[Kind]:
    """Return the kinds of unit that gates stand for in a model."""
    names = {name for owner in model.modules() for name, m in owner.named_children() if isinstance(m, Gate)}
    return {kind for kind in KINDS if gate_name(kind) in names}


def is_patched(model: nn.Module) -> bool:
    """Tell whether gates or masks hang in a model."""
    return bool(gates_of(model)) or bool(masks_of(model))


def gates_by_group(model: nn.Module, structure: Structure) -> dict[str, Gate]:
    """Return the gates of a patched model by group name; groups without a gate are left out."""
    found = {}
    for group in structure.groups:
        gate = chain(model, group.consumer)[-1]._modules.get(gate_name(group.kind))
        if isinstance(gate, Gate):
            found[group.name] = gate
    return found


@contextmanager
def gated(model: nn.Module, structure: Structure, keep: Mapping[str, Tensor]) -> Iterator[dict[str, Gate]]:
    """Close the units that `keep` marks False for the time of a `with` block; others stay open."""

    def make(group: Group) -> Gate:
        gate = Gate(group.num_units, scored=False)
        if group.name in keep:
            gate.set_keep(keep[group.name])
        return gate

    try:
        yield patch(model, structure, make)
    finally:
        unpatch(model)


def _gate_names(owner: nn.Module) -> list[str]:
    return [name for name, child in owner.named_children() if isinstance(child, Gate | WeightMask)]


# A patched checkpoint must not load as a dense model in silence: stock loaders ignore the unknown gate entries. So one
# weight of every module that a gate or mask acts on is stored with a leading axis of 1, whichever module of the tree is
# saved: stock loaders refuse that as a size mismatch. peft stores adapters alone, so their weights are marked as well.
_MARKED = "_stores_gated_weights"
_CONVERSIONS, _OTHER_CONVERSIONS = "_weight_conversions", "_weight_conversions_when_not_patched"


def _mark(model: nn.Module, owners: Iterable[nn.Module]) -> None:
    """Let modules store a weight as no stock loader reads it, and the models around them keep their names."""
    for owner in owners:
        if _MARKED not in vars(owner):
            save = owner.register_state_dict_post_hook(_add_axis)
            load = owner.register_load_state_dict_pre_hook(_drop_axis)
            object.__setattr__(owner, _MARKED, (save, load))
    if _MARKED not in vars(model):
        save = model.register_state_dict_post_hook(_add_axis_to_adapters)
        load = model.register_load_state_dict_pre_hook(_drop_axis_of_adapters)
        object.__setattr__(model, _MARKED, (save, load))
    for part in model.modules():
        fresh = isinstance(part, PreTrainedModel) and _OTHER_CONVERSIONS not in vars(part)
        if fresh and any(_MARKED in vars(m) for m in part.modules()):
            # `save_pretrained` writes many types under older names, which `load_state_dict`, and so a Trainer that
            # resumes, does not know (transformers 5.24). No conversion = the names of the model in memory.
            vars(part)[_OTHER_CONVERSIONS] = vars(part).get(_CONVERSIONS)
            vars(part)[_CONVERSIONS] = []


def _unmark(module: nn.Module) -> None:
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


def _add_axis(owner: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Mark one weight of `owner`, if a module inside has not done so already."""
    dims = _own_dims(owner)
    name = min(dims, key=lambda name: (name.rpartition(".")[2] != "weight", name))
    stored = state.get(prefix + name)
    if stored is not None and stored.dim() == dims[name]:
        state[prefix + name] = stored.unsqueeze(0)


def _drop_axis(owner: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Take off the marks of all weights below `owner`."""
    for name, dim in _own_dims(owner).items():
        stored = state.get(prefix + name)
        if stored is not None and stored.dim() == dim + 1:
            state[prefix + name] = stored.squeeze(0)


def _add_axis_to_adapters(model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, dim in adapter_dims(model).items():
        stored = state.get(prefix + name)
        if stored is not None and stored.dim() == dim:
            state[prefix + name] = stored.unsqueeze(0)


def _drop_axis_of_adapters(model: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for name, dim in adapter_dims(model).items():
        stored = state.get(prefix + name)
        if stored is not None and stored.dim() == dim + 1:
            state[prefix + name] = stored.squeeze(0)
