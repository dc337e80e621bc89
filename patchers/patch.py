"""Put gates and masks into a model and take them out again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from patchers.errors import UnsupportedModelError
from patchers.gates import Gate, GatedForward, GatedParameter, GatedRouter, GateHook, Place
from patchers.groups import Group, Structure
from patchers.layers import LINEAR_TYPES, linear_at
from patchers.masks import MASK_NAME, MaskedForward, WeightMask
from patchers.norms import GatedNorm, is_plain_norm

_PLACES: dict[str, Place] = {
    "heads": "input",
    "channels": "input",
    "experts": "router",
    "attention": "output",
    "ffn": "output",
    "layers": "block",
    "hidden": "norm",
}
GATE_SUFFIX = "_gate"
"""Gates are children named `heads_gate`, `channels_gate`, … of the module they hang on."""
PATCH_ENTRIES = (f"{GATE_SUFFIX}.keep_U", f"{MASK_NAME}.keep_O")
"""How the entry of every gate and mask ends in a state dict."""
SCORE_ENTRIES = (f"{GATE_SUFFIX}.score_U", ".score_RC")
"""How the names of learned scores end: parameters, but not of the model's own."""


def patch(model: nn.Module, structure: Structure, make_gate: Callable[[Group], Gate]) -> dict[str, Gate]:
    """Hang one gate per group on the model, in place, all open.

    The modules stay what and where they are: names, types and tensors do not change. Each consumer gets a child with
    the gate, and a forward hook; of a plain linear whose input is gated the `forward` is replaced instead, which spares
    memory. `unpatch` is the exact inverse.

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
    for group in structure.groups:
        _refuse_wrapped(model, group)
    return {group.name: _hang(model, group, make_gate(group)) for group in structure.groups}


def _refuse_wrapped(model: nn.Module, group: Group) -> None:
    """Raise where a gate would have to take the place of a `forward` that is not the class's own."""
    replaced = group.norms if group.kind == "hidden" else (group.consumer,)
    if _PLACES[group.kind] not in ("norm", "router") and group.consumer_tensor is None:
        return
    wrapped = next((path for path in replaced if "forward" in vars(model.get_submodule(path))), None)
    if wrapped is not None:
        raise UnsupportedModelError(
            wrapped,
            "its forward pass is wrapped, by a device map or a kernel.",
            f"Load the model on one device, without kernels, or take {group.kind!r} out of units.",
        )


def _hang(model: nn.Module, group: Group, gate: Gate) -> Gate:
    owner = model.get_submodule(group.consumer)
    reference = next(owner.parameters())
    gate.to(device=reference.device)
    place = _PLACES[group.kind]
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
    owner.add_module(f"{group.kind}{GATE_SUFFIX}", gate)
    if not getattr(model, _MARKED, False):
        _mark(model)
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
            "Take 'hidden' out of units, or leave LayerNorm in its place.",
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
        linear = linear_at(model, path)
        if type(linear) not in LINEAR_TYPES or "forward" in vars(linear):
            raise UnsupportedModelError(
                path,
                f"is no plain linear ({type(linear).__name__}), or is patched already.",
                "Merge adapters first, prune before quantizing, and call unpatch(model) before patching again.",
            )
        vars(linear)["forward"] = MaskedForward(linear, mask)
    model.get_submodule(paths[0]).add_module(MASK_NAME, mask)
    if not getattr(model, _MARKED, False):
        _mark(model)


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
            for key in [k for k, hook in hooks.items() if isinstance(hook, GateHook)]:
                del hooks[key]
                flags.pop(key, None)
    _unmark(model)


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """Return the gates that hang in a model, by the path of the gate module."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Gate)}


def is_patched(model: nn.Module) -> bool:
    """Tell whether gates or masks hang in a model."""
    return bool(gates_of(model)) or bool(masks_of(model))


def gates_by_group(model: nn.Module, structure: Structure) -> dict[str, Gate]:
    """Return the gates of a patched model by group name; groups without a gate are left out."""
    hung = gates_of(model)
    paths = {group.name: f"{group.consumer}.{group.kind}{GATE_SUFFIX}" for group in structure.groups}
    return {name: hung[path] for name, path in paths.items() if path in hung}


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


# A patched checkpoint must not load as a dense model in silence: stock loaders ignore the unknown gate entries. So the
# gated weights are stored with a leading axis of 1, which every stock loader refuses as a size mismatch.
_MARKED = "_stores_gated_weights"


def _mark(model: nn.Module) -> None:
    save = model.register_state_dict_post_hook(_add_axis)
    load = model.register_load_state_dict_pre_hook(_drop_axis)
    object.__setattr__(model, _MARKED, (save, load))


def _unmark(model: nn.Module) -> None:
    handles = getattr(model, _MARKED, None)
    if handles is not None:
        for handle in handles:
            handle.remove()
        object.__delattr__(model, _MARKED)


def gated_weight_names(names: Any) -> set[str]:
    """Return the weights beside a gate or a mask, from the entry names of a state dict.

    >>> sorted(gated_weight_names(["a.weight", "b.weight", "b.bias", "b.channels_gate.keep_U"]))
    ['b.weight']
    """
    present = sorted(names)
    owners = {n.rpartition(".")[0].rpartition(".")[0] for n in present if n.endswith(PATCH_ENTRIES)}
    tensors = [n for n in present if GATE_SUFFIX not in n and f".{MASK_NAME}." not in n]
    tensors.sort(key=lambda name: not name.endswith(".weight"))
    first_below = (next((t for t in tensors if t.startswith(f"{owner}.")), None) for owner in owners)
    return {weight for weight in first_below if weight is not None}


def _add_axis(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in gated_weight_names(state):
        if name.startswith(prefix):
            state[name] = state[name].unsqueeze(0)


def _drop_axis(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    own = dict(module.named_parameters())
    for name in gated_weight_names(state):
        weight = own.get(name.removeprefix(prefix))
        if weight is not None and state[name].dim() == weight.dim() + 1:
            state[name] = state[name].squeeze(0)
