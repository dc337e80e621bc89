"""Learn from a teacher: the losses, and which layer learns from which."""

from sparse_trainer.distillation.layer_map import LayerMap
from sparse_trainer.distillation.teacher import Distiller, make_distiller

__all__ = ["Distiller", "LayerMap", "make_distiller"]
