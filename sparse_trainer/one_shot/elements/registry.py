"""The criteria of single weights by name; a new one is a class and a line here."""

from typing import Final

from sparse_trainer.criteria.calibration.expressions import split_options, with_options, written
from sparse_trainer.errors import one_of
from sparse_trainer.one_shot.elements.base import ElementCriterion
from sparse_trainer.one_shot.elements.magnitude import MagnitudeOfWeights
from sparse_trainer.one_shot.elements.random import RandomOfWeights
from sparse_trainer.one_shot.elements.sensitivity import AfrOfWeights, ReferSvdOfWeights, SnipOfWeights
from sparse_trainer.one_shot.elements.sparsegpt import SparseGPT
from sparse_trainer.one_shot.elements.wanda import WandaOfWeights

ELEMENT_CRITERIA: Final[dict[str, type[ElementCriterion]]] = {
    "magnitude": MagnitudeOfWeights,
    "random": RandomOfWeights,
    "wanda": WandaOfWeights,
    "snip": SnipOfWeights,
    "refer_svd": ReferSvdOfWeights,
    "afr": AfrOfWeights,
    "obs": SparseGPT,
}


def written_of_weights(criterion: ElementCriterion) -> str:
    """Return a criterion as text that `element_criterion` reads.

    >>> written_of_weights(SparseGPT(columns=64))
    'obs(columns=64)'
    """
    return written(criterion, ELEMENT_CRITERIA)


def element_criterion(text: str) -> ElementCriterion:
    """Return the criterion that a name means, options in brackets.

    >>> element_criterion("obs(columns=64)")
    SparseGPT(columns=64, damping=0.01)

    Raises:
        ArgumentError: an unknown name or option; the nearest known one is given.
    """
    name, options = split_options(text)
    one_of("criterion", name, ELEMENT_CRITERIA)
    return with_options(ELEMENT_CRITERIA[name], options, f"criterion {name}")
