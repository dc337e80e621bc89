"""The list of commands: light to show, true to what each command says of itself."""

import inspect
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
        (["prun"], 2, "Did you mean"),
    ],
)
def test_what_needs_no_model_imports_no_torch(arguments: list[str], code: int, said: str) -> None:
    script = (
        "import sys\n"
        "from sparse_trainer.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert done.stdout.endswith("[]\n")
