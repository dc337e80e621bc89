"""The command line."""

from sparse_trainer.cli.commands import app, main

__all__ = ["app", "main"]
