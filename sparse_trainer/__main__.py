"""`python -m sparse_trainer`."""

from sparse_trainer.cli import main

main()
