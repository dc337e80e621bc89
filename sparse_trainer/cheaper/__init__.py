"""Cheaper layers: GELU to ReLU and LayerNorm to NoNorm while a model trains."""

from sparse_trainer.cheaper.arguments import LAYERS, CheaperArguments
from sparse_trainer.cheaper.layers import Blending, Cheapening, cheapen, finish, set_mix

__all__ = ["LAYERS", "Blending", "Cheapening", "CheaperArguments", "cheapen", "finish", "set_mix"]
