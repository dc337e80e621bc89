"""Lists of blocks: which one a module lies in, and which of its blocks cannot go."""

from typing import Any

from torch import nn

from patchers.discovery.source_code import config_fields
from patchers.discovery.tables.exceptions import FIRST_STAYS, LAYERS_STAY, PER_LAYER_INPUT, TAPPED, TOWERS

_BESIDE_FIRST = "conv"
"""A convolution beside a list of blocks that takes the output of block 0 (DeBERTa-v2)."""


def stack_around(path: str, lists: dict[str, nn.ModuleList]) -> str | None:
    """Return the innermost list of blocks around a module; lists of unlike parts inside a block do not count."""
    around = [p for p in lists if path.startswith(f"{p}.") or (p == "" and path)]
    around.sort(key=len, reverse=True)
    alike = [p for p in around if len({type(block) for block in lists[p]}) == 1]
    return next(iter(alike or around), None)


def number_in(path: str, stack: str) -> int:
    """Return the number of the block of a list that a module lies in."""
    return int(path.removeprefix(f"{stack}." if stack else "").partition(".")[0])


def fixed_layers(model: nn.Module, stack: str) -> dict[int, str]:
    """Return the blocks of a list that cannot go as a whole, with the reason."""
    whole: Any = model.get_submodule(stack)
    if len(whole) < 2:
        return {}
    beside = dict(model.get_submodule(stack.rpartition(".")[0]).named_children())
    every = _why_all_stay(model, stack, whole, beside)
    if every is not None:
        return dict.fromkeys(range(len(whole)), every)
    if beside.get(_BESIDE_FIRST) is not None:
        return {0: "a convolution takes its output"}
    first = FIRST_STAYS.get(type(whole[0]).__name__)
    return {} if first is None else {0: first}


def _why_all_stay(model: nn.Module, stack: str, whole: Any, beside: dict[str, nn.Module]) -> str | None:
    listed = (LAYERS_STAY.get(type(block).__name__) for block in whole)
    named = (name.rpartition(".")[2] for block in whole for name, _ in block.named_modules())
    twins = (m for m in beside.values() if isinstance(m, nn.ModuleList) and m is not whole)
    by_class = next((reason for reason in listed if reason is not None), None)
    if by_class is not None:
        return by_class
    if PER_LAYER_INPUT in named:
        return "each block has an input made for its number"
    if any(len(twin) == len(whole) for twin in twins):
        return "another list runs beside this one, block by block"
    if _taps_towers(model) and any(tower in stack for tower in TOWERS):
        return "config.vision_feature_layer takes the output of a layer by its number"
    return "outputs of its blocks are taken by number" if _is_tapped(model, stack) else None


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


def _taps_towers(model: nn.Module) -> bool:
    """Tell whether the config takes the output of a vision tower from a layer by its number (LLaVA)."""
    config = vars(model).get("config")
    layer = None if config is None else getattr(config, "vision_feature_layer", None)
    return layer not in (None, -1)
