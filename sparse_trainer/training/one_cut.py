"""A budget that falls at once in the middle of a training: what reads the closed units is refitted there and then."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from patchers.layers import bare_linear_at, features
from patchers.patching.merging import has_adapters
from patchers.units import WIDTH_KINDS, Structure
from sparse_trainer.errors import ArgumentError, DataError, UnsupportedModelError
from sparse_trainer.one_shot.repairs.base import Repair
from sparse_trainer.one_shot.repairs.refit import refit
from sparse_trainer.statistics.requests import Statistics, unsupported_reason


def check_refittable(model: nn.Module, structure: Structure, repair: Repair) -> None:
    """Refuse a model whose linears cannot be refitted while it trains.

    Raises:
        ArgumentError: adapters, or no bias where one is to move.
        UnsupportedModelError: nothing tells what reads a unit, as in stacked experts.
    """
    if has_adapters(model):
        raise ArgumentError(
            "reconstruct",
            "the linears have adapters, and a refit of the weights under them would not be one of the whole.",
            "Drop it: the adapters learn to do without what goes. Or prune first (sparse-trainer prune).",
        )
    for group in structure.groups:
        reason = unsupported_reason(group, [repair.request])
        if reason is not None:
            raise UnsupportedModelError(
                group.name, f"nothing can be refitted: {reason}.", "Leave it out, or drop `reconstruct`."
            )
    bare = next((g for g in structure.groups if bare_linear_at(model, g.consumer).bias is None), None)
    if repair.adds_bias and bare is not None:
        raise ArgumentError(
            "reconstruct", f"{bare.consumer} has no bias that could move.", "Take 'least_squares'."
        )


def check_enough(model: nn.Module, structure: Structure, batches: Iterable[Mapping[str, Any]]) -> None:
    """Raise `DataError` where a refit has more unknowns than the texts have tokens; images are not counted."""
    texts = [batch for batch in batches if "input_ids" in batch]
    if not texts:
        return
    tokens = sum(
        int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum()) for batch in texts
    )
    most = max(structure.groups, key=lambda group: features(bare_linear_at(model, group.consumer))[1])
    unknowns = features(bare_linear_at(model, most.consumer))[1]
    if tokens < unknowns:
        raise DataError(
            "calibration_samples",
            f"{tokens} tokens in the rows that were drawn, and {most.consumer} may be refitted in {unknowns} features.",
            f"Draw more rows: {unknowns} tokens are needed, and {10 * unknowns} or more are good.",
        )


def refit_closed(
    model: nn.Module,
    structure: Structure,
    keep: Mapping[str, Tensor],
    repair: Repair,
    statistics: Statistics,
) -> None:
    """Refit the consumers of closed units, in place; those of units that were closed before change nothing any more.

    Args:
        keep: 1 = stays, 0 = closed, shape [U], by group name.
        statistics: Taken before these units were closed.
    """
    widths = replace(structure, groups=structure.of(WIDTH_KINDS))
    refit(model, widths, {name: keep_U > 0 for name, keep_U in keep.items()}, repair, statistics)


def refitted_parameters(model: nn.Module, structure: Structure) -> list[nn.Parameter]:
    """Return the parameters that `refit_closed` may change."""
    linears = [bare_linear_at(model, group.consumer) for group in structure.groups]
    return [p for linear in linears for p in (linear.weight, linear.bias) if isinstance(p, nn.Parameter)]
