"""The criteria of single weights by name; a new one is a class and a line here."""

from typing import Final

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
