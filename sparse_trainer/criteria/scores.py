"""What every score must be: a number for each unit of each group. Asked of each criterion, ours and those of users."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patchers.units import Group
from sparse_trainer.errors import CriterionError, NonFiniteError


def check_scores(scores: Mapping[str, Tensor], groups: Sequence[Group], name: str) -> None:
    """Raise `CriterionError` unless there is a tensor with one score per unit for each group, and nothing else.

    Reads shapes only: the host does not wait for the device.

    Args:
        name: What the user calls the criterion.
    """
    sizes = {group.name: group.num_units for group in groups}
    if not isinstance(scores, Mapping):
        raise CriterionError(
            f"criterion {name}",
            f"gave a {type(scores).__name__}.",
            "Return a mapping from group names to scores.",
        )
    for group in (*(g for g in sizes if g not in scores), *(g for g in scores if g not in sizes)):
        fault = (
            "gave no scores of this group"
            if group in sizes
            else "gave scores of a group that was not asked for"
        )
        raise CriterionError(f"{group}", f"criterion {name} {fault}.", "Score every group of the structure.")
    for group, score_U in scores.items():
        if not isinstance(score_U, Tensor):
            fault = f"gave a {type(score_U).__name__}, not a tensor"
        elif score_U.shape != (sizes[group],):
            fault = f"gave scores of shape {tuple(score_U.shape)} for {sizes[group]} units"
        else:
            continue
        raise CriterionError(group, f"criterion {name} {fault}.", "Return one score per unit, shape [units].")


def check_finite(scores: Mapping[str, Tensor], name: str) -> None:
    """Raise `NonFiniteError` where a score is NaN or infinite."""
    for group, score_U in scores.items():
        if not bool(torch.isfinite(score_U).all()):
            raise NonFiniteError(
                group, f"{name} gave NaN or infinite scores.", "Look for NaN weights in this layer."
            )
