"""Criteria by name, and weighted mixtures of them after a named normaliser."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, final

from torch import Tensor

from patchers.units import KINDS, Kind
from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.criteria.calibration.base import Evidence, Searches, WidthCriterion, scores_of
from sparse_trainer.criteria.calibration.expressions import read_criterion, read_sum, written
from sparse_trainer.errors import ArgumentError, one_of, shown
from sparse_trainer.statistics.requests import Statistic

# Shape legend: U = units of a group.

MIXED_AFTER = "zscore_layer"
"""Normaliser of mixtures, unless another is asked for."""

CriterionLike = str | WidthCriterion | Mapping[str, float]


@final
@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weighted sum of standardised scores."""

    standardize: ClassVar[str] = "none"
    parts: tuple[tuple[WidthCriterion, float], ...]
    normalizer: str

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit that all parts score."""
        return tuple(kind for kind in KINDS if all(kind in part.kinds for part, _ in self.parts))

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what all parts need."""
        return tuple(need for part, _ in self.parts for need in part.requests())

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the weighted sums."""
        total: dict[str, Tensor] = {}
        standardized = STANDARDIZERS[self.normalizer]
        for part, weight in self.parts:
            raw = scores_of(part, evidence, written(part))
            for name, score_U in standardized(raw, dict.fromkeys(raw, 1), evidence.structure.kinds).items():
                total[name] = total[name] + weight * score_U if name in total else weight * score_U
        return total


NOT_MIXED = "what tries whole models has no scores to be mixed or shared out by."


def searches(criterion: WidthCriterion) -> bool:
    """Tell whether a criterion, or a part of a mixture, tries whole models instead of scoring units."""
    parts = [part for part, _ in criterion.parts] if isinstance(criterion, Mixture) else [criterion]
    return any(isinstance(part, Searches) for part in parts)


def criterion_of(asked: CriterionLike, normalizer: str = MIXED_AFTER) -> WidthCriterion:
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
    one_of("normalize", normalizer, STANDARDIZERS)
    if not asked:
        raise ArgumentError("criterion", "no criterion is named.", "Give names and weights.")
    for name, weight in asked.items():
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight == 0:
            raise ArgumentError(
                "criterion",
                f"{shown(weight)} is no weight of {name}.",
                "Give a number, not 0; or leave it out.",
            )
    return Mixture(
        parts=tuple((read_criterion(name), float(w)) for name, w in asked.items()), normalizer=normalizer
    )


def name_of(asked: CriterionLike) -> str:
    """Return how plans call a criterion: text that means the same criterion, with every option that is not the default.

    >>> name_of({"wanda": 1, "obs(rounds=2)": 0.5}), name_of(read_criterion("taylor(form=vector)"))
    ('wanda + 0.5 obs(rounds=2)', 'taylor(form=vector)')
    """
    meant = criterion_of(asked)
    if isinstance(meant, Mixture):
        terms = [(written(part), weight) for part, weight in meant.parts]
        return " + ".join(
            name if weight == 1 else f"{Decimal(str(weight)):f} {name}" for name, weight in terms
        )
    return written(meant)
