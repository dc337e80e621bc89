"""Routers that lost unlike numbers of experts: what a model records of them is added up over the layers."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from patchers.discovery.discover import discover
from patchers.units import EXPERTS, Group, Structure


def most_experts(built: PreTrainedModel, after: Structure) -> dict[str, int]:
    """Return how many experts a stock model has, by path of the stack; empty where the cut one has none."""
    found: dict[str, int] = {}
    if not after.of([EXPERTS]):
        return found
    for group in discover(built, [EXPERTS]).groups:
        found[group.stack] = max(group.num_units, found.get(group.stack, 0))
    return found


def short_routers(
    model: PreTrainedModel, after: Structure, counted: dict[str, int]
) -> dict[str, tuple[int, int]]:
    """Return what is recorded as router logits and has fewer than the config counts: (place in the output, width).

    Args:
        after: What is left of the model.
        counted: `most_experts` of the stock model of its config.
    """
    return {
        path: (index, counted[group.stack])
        for group in after.of([EXPERTS])
        if group.num_units < counted.get(group.stack, 0)
        for path, index in _recorded(model, group)
    }


def _recorded(model: PreTrainedModel, group: Group) -> Iterator[tuple[str, int]]:
    """Yield the module around a router, or the router, of which the model records the logits, with their place."""
    around = [
        path for path, _ in model.named_modules() if f"{group.consumer}.".startswith(f"{path}.") and path
    ]
    for part in model.modules():
        specs = part._can_record_outputs if isinstance(part, PreTrainedModel) else None
        for spec in _listed((specs or {}).get("router_logits")):
            for path in around:
                if isinstance(model.get_submodule(path), spec.target_class or ()):
                    yield path, spec.index
                    return


def _listed(specs: Any) -> list[OutputRecorder]:
    """Return what a class says of its router logits as a list of recorders; a bare class means the second output."""
    listed = specs if isinstance(specs, list) else [] if specs is None else [specs]
    return [s if isinstance(s, OutputRecorder) else OutputRecorder(s, index=1) for s in listed]
