"""The repairs, by the name that `reconstruct` takes: a new one is a file here and a line below."""

import dataclasses
from typing import Any, Final

from sparse_trainer.one_shot.repairs.base import Repair
from sparse_trainer.one_shot.repairs.bias import FoldMean
from sparse_trainer.one_shot.repairs.least_squares import LeastSquares
from sparse_trainer.one_shot.repairs.scale import Scale

REPAIRS: Final[dict[str, type[Repair]]] = {
    "bias": FoldMean,
    "scale": Scale,
    "least_squares": LeastSquares,
}


def make_repair(name: str, **options: Any) -> Repair:
    """Return the repair of this name, with those of the options that it reads.

    >>> make_repair("scale", damping=0.2, reconstruct_bias=None)
    Scale(damping=0.2)
    """
    return REPAIRS[name](**{option: options[option] for option in options_read(name)})


def options_read(name: str) -> set[str]:
    """Return the names of the options that a repair reads."""
    return {field.name for field in dataclasses.fields(REPAIRS[name])}  # type: ignore[arg-type]
