"""The command line."""

from sparse_trainer.cli.boundary import run_app
from sparse_trainer.cli.commands import app, main

__all__ = ["app", "main", "run_app"]
