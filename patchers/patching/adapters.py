"""Gates under adapters: a gate acts exactly once, on its linear and on every adapter that wraps it.

Libraries such as peft put a module with a child `base_layer` in the place of a linear, and take it away again. The gate
and its hook stay with the linear, which outlives that. Around it the wrapper is given a hook of its own, at the moment
at which the linear becomes its child: what the adapter adds is multiplied too, and the linear inside does nothing.
"""

from collections.abc import Iterator
from typing import Any, Final, final

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from patchers.errors import UnsupportedModelError
from patchers.layers import BASE, LINEAR_TYPES
from patchers.patching.gated_norm import GatedNorm
from patchers.patching.gates import Gate, GatedForward, GatedParameter, GatedRouter, GateHook
from patchers.patching.masks import MaskedForward

_COPIED: Final = "original_module"
"""The child of which a wrapper trains a copy: peft's `modules_to_save`."""


@final
class WrapperHook:
    """Does the work of a `GateHook` for a wrapper around the gated linear: before and after its forward pass.

    Args:
        inner: The hook of the linear.
    """

    def __init__(self, inner: GateHook) -> None:
        self.inner, self.acts = inner, False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        """Serve as forward pre-hook, and as forward hook that is called after errors too, then without an output."""
        gate = self.inner.gate
        if not rest:
            if gate.is_applied:
                return None
            gate.is_applied = self.acts = True
            return self.inner.on_input(args) if self.inner.place == "input" else None
        if not self.acts:
            return None
        gate.is_applied = self.acts = False
        (output,) = rest
        is_output = self.inner.place == "output" and isinstance(output, Tensor)
        return self.inner.on_output(output) if is_output else None


def follow(linear: nn.Module, wrapper: nn.Module) -> None:
    """Let the gates of a linear, or of a wrapper in its place, act on a wrapper around it.

    Raises:
        UnsupportedModelError: the gate or mask there acts on more than the input or the output.
    """
    replaced = vars(linear).get("forward")
    if isinstance(replaced, MaskedForward | GatedParameter | GatedRouter | GatedNorm):
        raise UnsupportedModelError(
            type(linear).__name__,
            "is pruned by masks, or by gates on its own parameters, which know nothing of an adapter around it.",
            "Leave it out of the adapter (target_modules, target_parameters), or prune by gates on linears: "
            "structured methods, and units heads, channels, attention, ffn or layers.",
        )
    known = [id(hook.inner.gate) for hook in hooks_around(wrapper)]
    for hook in _hooks_of(linear):
        if id(hook.gate) not in known:
            around = WrapperHook(hook)
            wrapper.register_forward_pre_hook(around)
            wrapper.register_forward_hook(around, always_call=True)


def hooks_around(wrapper: nn.Module) -> list[WrapperHook]:
    """Return the hooks that act for linears inside a wrapper."""
    return [hook for hook in wrapper._forward_pre_hooks.values() if isinstance(hook, WrapperHook)]


def _hooks_of(linear: nn.Module) -> Iterator[GateHook]:
    yield from (hook.inner for hook in hooks_around(linear))
    replaced = vars(linear).get("forward")
    if isinstance(replaced, GatedForward):
        yield GateHook(replaced.gate, "input", replaced.width)
    for hook in (*linear._forward_pre_hooks.values(), *linear._forward_hooks.values()):
        if isinstance(hook, GateHook) and hook.place in ("input", "output"):
            yield hook


def chain(model: nn.Module, path: str) -> list[nn.Module]:
    """Return what stands at `path`: wrappers from the outside in, and last what they wrap."""
    found = [model.get_submodule(path)]
    while (inner := found[-1]._modules.get(BASE)) is not None:
        found.append(inner)
    return found


def without_wrappers(path: str) -> str:
    """Return the path that something inside a wrapped module has once the wrapper is gone.

    >>> without_wrappers("layers.0.down_proj.base_layer.channels_gate")
    'layers.0.down_proj.channels_gate'
    """
    return ".".join(part for part in path.split(".") if part != BASE)


def watch() -> None:
    """From now on follow every gated linear of this process that gets wrapped. Calling it again changes nothing."""
    if not _WATCHING:
        _WATCHING.append(register_module_module_registration_hook(_on_registration))


_WATCHING: Final[list[Any]] = []


def _on_registration(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Act on the moment at which a module becomes a child of another."""
    if child is None or name not in (BASE, _COPIED):
        return
    if name == BASE:
        follow(child, parent)
    elif any(isinstance(module, Gate) for module in child.modules()):
        raise _copied(type(child).__name__)


def refuse_copies(model: nn.Module, below: str) -> None:
    """Raise `UnsupportedModelError` where copies of linears stand for them, in the blocks at `below`."""
    for path, module in model.get_submodule(below).named_modules():
        original = module._modules.get(_COPIED)
        if original is not None and any(isinstance(m, LINEAR_TYPES) for m in original.modules()):
            raise _copied(f"{below}.{path}")


def _copied(where: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        where,
        "is to be pruned, and a copy of it would be trained in its place.",
        "Take it out of modules_to_save; an adapter (target_modules) may train it.",
    )
