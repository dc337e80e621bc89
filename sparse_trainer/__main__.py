"""`python -m sparse_trainer`."""

from sparse_trainer.cli.front import main

main()
