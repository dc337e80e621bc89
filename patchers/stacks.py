"""Lists of blocks: which one a module lies in, and which of its blocks cannot go."""

from typing import Any

from torch import nn

from patchers.families.exceptions import LAYERS_STAY, PER_LAYER_INPUT, TAPPED
from patchers.sources import config_fields

_BESIDE_FIRST = "conv"
"""A convolution beside a list of blocks that takes the output of block 0 (DeBERTa-v2)."""


def stack_around(path: str, lists: dict[str, nn.ModuleList]) -> str | None:
    """Return the innermost list of blocks around a module; lists of unlike parts inside a block do not count."""
    around = [p for p in lists if path.startswith(f"{p}.") or (p == "" and path)]
    around.sort(key=len, reverse=True)
    alike = [p for p in around if len({type(block) for block in lists[p]}) == 1]
    return next(iter(alike or around), None)


def number_in(path: str, stack: str) -> int:
    return int(path.removeprefix(f"{stack}." if stack else "").partition(".")[0])


def fixed_layers(model: nn.Module, stack: str) -> set[int]:
    """Return the blocks of a list that cannot go as a whole."""
    whole: Any = model.get_submodule(stack)
    every = set(range(len(whole)))
    owner = model.get_submodule(stack.rpartition(".")[0])
    beside = dict(owner.named_children())
    twins = [
        m for m in beside.values() if isinstance(m, nn.ModuleList) and m is not whole and len(m) == len(whole)
    ]
    if any(type(block).__name__ in LAYERS_STAY for block in whole):
        return every
    if any(
        name.rpartition(".")[2] == PER_LAYER_INPUT for block in whole for name, _ in block.named_modules()
    ):
        return every
    if len(whole) > 1 and (twins or _is_tapped(model, stack)):
        return every
    return {0} if beside.get(_BESIDE_FIRST) is not None else set()


def _is_tapped(model: nn.Module, stack: str) -> bool:
    """Tell whether a module around a list of blocks takes the outputs of some by number."""
    path = stack
    while "." in path:
        path = path.rpartition(".")[0]
        if path.rpartition(".")[2].isdigit():
            # The list is inside a block of another, whose output is what counts.
            return False
        if _taps(model.get_submodule(path)):
            return True
    return stack.partition(".")[0] != "" and _taps(model)


def _taps(module: nn.Module) -> bool:
    kind: Any = type(module)
    config = vars(module).get("config")
    listed = {name: value for name, value in vars(module).items() if isinstance(value, list | tuple)}
    if config is not None:
        listed |= {name: vars(config).get(name) for name in config_fields(kind)}
    return any(part in name and value for name, value in listed.items() for part in TAPPED)


def taps_towers(model: nn.Module) -> bool:
    """Tell whether the config takes the output of a vision tower from a layer by its number (LLaVA)."""
    config = vars(model).get("config")
    layer = None if config is None else getattr(config, "vision_feature_layer", None)
    return layer not in (None, -1)
