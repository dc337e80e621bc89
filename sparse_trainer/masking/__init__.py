"""Weight masks over a training: what can be asked, where masks hang, what stays, when they close."""

from sparse_trainer.masking.arguments import MaskArguments
from sparse_trainer.masking.driver import Masking

__all__ = ["MaskArguments", "Masking"]
