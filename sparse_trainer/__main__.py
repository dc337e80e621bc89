"""`python -m sparse_trainer`."""

from sparse_trainer.cli.commands import main

main()
