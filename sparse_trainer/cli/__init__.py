"""The command line."""

from sparse_trainer.cli.front import main

__all__ = ["main"]
