"""Criteria by name, and weighted mixtures of them after a named normaliser."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.errors import ArgumentError, NonFiniteError, nearest
from sparse_trainer.oneshot.spelling import read_criterion, read_sum
from sparse_trainer.statistics import Need
from sparse_trainer.width_criteria import WIDTH_CRITERIA, Evidence, WidthCriterion

# Shape legend: U = units of a group.

CriterionLike = str | WidthCriterion | Mapping[str, float]


@final
@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weighted sum of standardised scores."""

    standardize: ClassVar[str] = "none"
    parts: tuple[tuple[WidthCriterion, float], ...]
    normalizer: str

    def needs(self) -> tuple[Need, ...]:
        """Return what all parts need."""
        return tuple(need for part, _ in self.parts for need in part.needs())

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the weighted sums."""
        total: dict[str, Tensor] = {}
        for part, weight in self.parts:
            for name, score_U in STANDARDIZERS[self.normalizer](part.scores(evidence), _ONES).items():
                total[name] = total[name] + weight * score_U if name in total else weight * score_U
        return total


class _Ones(dict[str, int]):
    def __missing__(self, name: str) -> int:
        return 1


_ONES = _Ones()


def criterion_of(asked: CriterionLike, normalizer: str = "zscore_layer") -> WidthCriterion:
    """Return the criterion that a name, an instance or a mapping of names to weights means.

    Names may have options, and a sum may be one text: `obs(rounds=16)`, `wanda + 0.5 fisher`.

    >>> criterion_of("wanda")
    Wanda()

    Raises:
        ArgumentError: an unknown name; the nearest known one is given.
    """
    if isinstance(asked, str):
        asked = read_sum(asked)
    if isinstance(asked, str):
        return read_criterion(asked)
    if not isinstance(asked, Mapping):
        return asked
    if normalizer not in STANDARDIZERS:
        raise ArgumentError("normalize", f"unknown value {normalizer!r}.", nearest(normalizer, STANDARDIZERS))
    if not asked:
        raise ArgumentError("criterion", "no criterion is named.", "Give names and weights.")
    return Mixture(
        parts=tuple((read_criterion(name), float(w)) for name, w in asked.items()), normalizer=normalizer
    )


def name_of(asked: CriterionLike) -> str:
    """Return how plans call a criterion.

    >>> name_of({"wanda": 1, "fisher": 0.5})
    'wanda + 0.5 fisher'
    """
    if isinstance(asked, str):
        return asked
    if isinstance(asked, Mapping):
        return " + ".join(name if w == 1 else f"{w:g} {name}" for name, w in asked.items())
    return next((n for n, known in WIDTH_CRITERIA.items() if known is type(asked)), type(asked).__name__)


def check_finite(scores: Mapping[str, Tensor], name: str) -> None:
    """Raise `NonFiniteError` where a score is NaN or infinite."""
    for group, score_U in scores.items():
        if not bool(torch.isfinite(score_U).all()):
            raise NonFiniteError(
                group, f"{name} gave NaN or infinite scores.", "Look for NaN weights in this layer."
            )
