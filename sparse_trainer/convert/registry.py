"""The conversions by name; a new one is a file and a line here."""

from sparse_trainer.convert.base import Conversion

CONVERSIONS: dict[str, Conversion] = {}
