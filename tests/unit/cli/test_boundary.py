"""The edge of the command line: how options are spelled, and how a process ends that is stopped from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from sparse_trainer.cli.app import make_app
from sparse_trainer.cli.boundary import option_spelling, run_app
from sparse_trainer.cli.endings import DEBUG
from sparse_trainer.cli.front import main
from sparse_trainer.errors import ArgumentError, RecipeError, SparseTrainerError, nearest
from sparse_trainer.run.recipes.load import load_recipe


def app_that(does: Callable[[], object]) -> typer.Typer:
    app = typer.Typer()
    app.command("work")(lambda: does())
    app.command("rest")(lambda: None)
    return app


def ended(app: typer.Typer, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run_app(app, ["work", *arguments])
    return int(caught.value.code or 0)


def failing(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


def test_an_unexpected_error_is_one_line_and_its_traceback_is_for_the_asking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = app_that(failing(ZeroDivisionError("by 0")))
    assert ended(app) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ZeroDivisionError: by 0" in said
    assert DEBUG in said
    monkeypatch.setenv(DEBUG, "1")
    assert ended(app) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_command_ends_as_shells_expect(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(app_that(failing(KeyboardInterrupt()))) == 128 + signal.SIGINT
    assert "Traceback" not in capsys.readouterr().err


def test_a_terminated_command_unwinds_so_that_half_written_folders_are_swept() -> None:
    swept = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            swept.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert ended(app_that(work)) == 128 + signal.SIGTERM
    assert swept
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_goes_away_is_no_error_of_ours(options: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sparse_trainer", "recipes", *options]
    with os.fdopen(writing, "w") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_options_are_spelled_as_the_command_takes_them() -> None:
    spell = option_spelling(make_app({"prune"}), "prune")
    assert spell("by_block", "True") == "--by-block"
    assert spell("scope", "'layer'") == "--scope layer"
    assert spell("pictures", "False") == "--no-pictures"
    assert spell("model", None) == "MODEL"
    assert spell("file", None) == "--calibration-file"
    assert spell("no_such_option", "1") == "no_such_option=1"
    assert spell("density", "{'layers': 0.75, 'heads': 0.5}") == "--density layers=0.75 --density heads=0.5"
    assert spell("criterion", None) == "--criterion"
    assert option_spelling(make_app({"compare"}), "compare")("criterion", None) == "--criteria"
    assert option_spelling(make_app({"env"}), "env")("criterion", None) == "criterion"
    assert option_spelling(make_app({"merge-kv-heads"}), "merge-kv-heads")("layers", None) == "--layer"
    assert option_spelling(make_app({"bench"}), "bench")("batch_sizes", None) == "--batch-size"


def test_an_error_names_options_in_python_until_somebody_respells_them() -> None:
    error = ArgumentError("density", "wrong.", "Set `scope='layer'`, or see `sparse-trainer x`.")
    assert str(error) == "density: wrong. Set scope='layer', or see `sparse-trainer x`."
    said = error.respelled(option_spelling(make_app({"prune"}), "prune"))
    assert str(said) == "--density: wrong. Set --scope layer, or see `sparse-trainer x`."


def test_remedies_of_a_recipe_name_its_keys_and_blame_the_override() -> None:
    overrides = ["prune.scope=uniform", "prune.allocation=fisher"]
    with pytest.raises(RecipeError) as caught:
        load_recipe("llama-wanda", overrides)
    assert str(caught.value) == (
        "override 'prune.allocation=fisher': prune.allocation: uniform widths leave nothing to share out. "
        "Use prune.scope: 'global'."
    )


def test_the_last_override_of_a_key_is_blamed() -> None:
    with pytest.raises(RecipeError, match=r"^override 'prune\.density=7'"):
        load_recipe("llama-wanda", ["prune.density=0.5", "prune.density=7"])


def test_of_many_known_names_the_nearest_five_are_told() -> None:
    names = [f"option_{number}" for number in range(130)]
    said = nearest("option_12x", names)
    assert "Did you mean" in said
    assert said.count("option_") == 1 + 5


def test_a_mistake_in_usage_is_an_object_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", "prune", "--no-such-option", "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "UsageError"


def test_without_arguments_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sparse-trainer"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert "prune" in capsys.readouterr().out


def test_respelled_errors_keep_their_type(tmp_path: Path) -> None:
    for cls in (ArgumentError, RecipeError, SparseTrainerError):
        assert type(cls("a", "b", "c").respelled(lambda name, value: name)) is cls
