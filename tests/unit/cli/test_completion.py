"""Shells complete commands and their options."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("typed", "word", "offered"),
    [("sparse-trainer rec", 1, "recover"), ("sparse-trainer env --", 2, "--json")],
)
def test_bash_is_offered_commands_and_their_options(typed: str, word: int, offered: str) -> None:
    asked = {"_SPARSE_TRAINER_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(word)}
    program = "import sys; sys.argv = ['sparse-trainer']; from sparse_trainer.cli.front import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert offered in done.stdout.split(), done.stderr
