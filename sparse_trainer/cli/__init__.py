"""The command line."""

from sparse_trainer.cli.boundary import run_app
from sparse_trainer.cli.commands import COMMANDS, main, make_app

__all__ = ["COMMANDS", "main", "make_app", "run_app"]
