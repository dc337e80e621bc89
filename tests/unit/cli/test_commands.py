"""The list of commands: light to show, true to what each command says of itself."""

import inspect
import os
import subprocess
import sys

import pytest

from sparse_trainer.cli.commands import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says_of_itself(name: str) -> None:
    command = COMMANDS[name]
    first, _, _ = str(inspect.getdoc(command.load())).partition("\n\n")
    assert " ".join(first.split()) == command.says


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "architectures"),
        ([], 0, "architectures"),
        (["--version"], 0, "sparse-trainer "),
        (["recipes"], 0, "boolq-bert"),
        (["prun"], 2, "Did you mean 'prune'?"),
        (["run", "--help"], 0, "recipe"),
        (["family", "--help"], 0, "--speedups"),
        (["env", "--help"], 0, "--json"),
    ],
)
def test_what_needs_no_model_imports_no_torch(arguments: list[str], code: int, said: str) -> None:
    of_the_list = not set(arguments) & set(COMMANDS) - {"recipes"}
    script = (
        "import sys\n"
        f"drawing = {['typer', 'rich', 'yaml'] if of_the_list else []}\n"
        "from sparse_trainer.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(sorted({'torch', 'transformers', 'datasets', *drawing} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert done.stdout.endswith("[]\n")


def test_the_list_fits_the_terminal() -> None:
    for width in (60, 80, 160):
        shown = _shown(["--help"], COLUMNS=str(width))
        assert max(map(len, shown.splitlines())) <= width
        assert set(COMMANDS) <= {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}


def _shown(arguments: list[str], **environment: str) -> str:
    """Return what the command line prints."""
    done = subprocess.run(
        [sys.executable, "-m", "sparse_trainer", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
