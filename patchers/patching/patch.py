"""Put gates and masks into a model and take them out again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from patchers.errors import UnsupportedModelError
from patchers.layers import BASE, LINEAR_TYPES
from patchers.patching.adapters import WrapperHook, chain, follow, refuse_copies, watch
from patchers.patching.gated_norm import GatedNorm, is_plain_norm
from patchers.patching.gates import GATE_SUFFIX, Gate, GatedForward, GatedParameter, GatedRouter, GateHook
from patchers.patching.marks import mark, unmark
from patchers.patching.masks import MASK_NAME, MaskedForward, WeightMask
from patchers.units import HIDDEN, KINDS, Group, Kind, Structure


def gate_name(kind: Kind) -> str:
    """Return the name of the child that is the gate of a group of this kind."""
    return f"{kind}{GATE_SUFFIX}"


def patch(model: nn.Module, structure: Structure, make_gate: Callable[[Group], Gate]) -> dict[str, Gate]:
    """Attach one gate per group to the model, in place, all open.

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
    gates = {group.name: _attach(model, group, make_gate(group)) for group in structure.groups}
    mark(model, (owner for group in structure.groups for owner in _owners(model, group)))
    return gates


def _owners(model: nn.Module, group: Group) -> Iterator[nn.Module]:
    """Yield the modules that the gate of a group acts on."""
    yield chain(model, group.consumer)[-1]
    yield from map(model.get_submodule, group.norms)


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


def _attach(model: nn.Module, group: Group, gate: Gate) -> Gate:
    *wrappers, owner = chain(model, group.consumer)
    reference = next(owner.parameters())
    gate.to(device=reference.device)
    place = group.kind.gated
    width = group.consumer_slice.width if place == "input" else 1
    tensor = group.consumer_tensor
    if place == "norm":
        _attach_to_norms(model, group, gate)
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
    return gate


def _attach_to_norms(model: nn.Module, group: Group, gate: Gate) -> None:
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


def attach_mask(model: nn.Module, paths: Sequence[str], mask: WeightMask) -> None:
    """Attach one mask to linears of one shape, in place; it becomes a child of the first. `unpatch` is the inverse.

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
    mark(model, map(model.get_submodule, paths))


def masks_of(model: nn.Module) -> dict[str, WeightMask]:
    """Return the mask of every masked linear, by the path of the linear; a shared one stands there several times."""
    forwards = {path: vars(module).get("forward") for path, module in model.named_modules()}
    return {path: forward.mask for path, forward in forwards.items() if isinstance(forward, MaskedForward)}


def unpatch(model: nn.Module) -> None:
    """Remove all gates and masks, in place; the tensors are the very same ones as before `patch`."""
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
        unmark(owner)


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """Return the gates of a model, by the path of the gate module."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Gate)}


def gated_kinds(model: nn.Module) -> set[Kind]:
    """Return the kinds of unit that have gates in a model."""
    names = {name for owner in model.modules() for name, m in owner.named_children() if isinstance(m, Gate)}
    return {kind for kind in KINDS if gate_name(kind) in names}


def is_patched(model: nn.Module) -> bool:
    """Tell whether a model has gates or masks."""
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
