"""The command `evaluate`: what it prints, and how it fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sparse_trainer.cli.app import make_app
from sparse_trainer.cli.commands import COMMANDS
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.tasks.language.text import perplexity
from tests.architectures.tiny import tiny_model
from tests.fixtures.character_tokenizer import character_tokenizer

TEXT = "The cat sat on the mat, and the dog did not.\n" * 3
ROWS = [
    {"goal": "Open it", "sol1": "turn the lid", "sol2": "eat", "label": 0},
    {"goal": "Boil", "sol1": "a", "sol2": "heat the water", "label": 1},
    {"goal": "Sing", "sol1": "la", "sol2": "by the book", "label": 0},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models, of which the second has no tokenizer, and data."""
    folder = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(("dense", "other")):
        tiny_model("llama", dtype=torch.float32, seed=seed).save_pretrained(folder / name)
    character_tokenizer().save_pretrained(folder / "dense")
    (folder / "text.txt").write_text(TEXT)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def run(place: Path, *arguments: str) -> Any:
    tasks = ["--tasks", "wikitext2,piqa", "--data", f"piqa={place / 'rows.jsonl'}", "--length", "40"]
    tasks += ["--data", f"wikitext2={place / 'text.txt'}", "--device", "cpu"]
    return CliRunner().invoke(make_app(COMMANDS), ["evaluate", *tasks, *arguments])


def test_json_holds_every_number_and_what_it_rests_on(place: Path) -> None:
    done = run(place, str(place / "other"), "--against", str(place / "dense"), "--limit", "2", "--json")
    assert done.exit_code == 0, done.exception
    values = json.loads(done.stdout)
    assert (values["device"].split()[0], values["dtype"]) == ("cpu", "float32")
    assert values["results"]["piqa"]["num_questions"] == 2
    text, dense = values["results"]["wikitext2"], values["against"]["results"]["wikitext2"]
    assert (
        text["num_tokens"] == dense["num_tokens"] == len(TEXT) - 4
    )  # four windows, each without its first token
    expected = perplexity(
        tiny_model("llama", dtype=torch.float32), character_tokenizer(), str(place / "text.txt"), length=40
    )
    assert dense["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
    (ratio,) = values["compared"]["wikitext2"]
    assert ratio["change"] == pytest.approx(text["perplexity"] / dense["perplexity"])
    assert [each["number"] for each in values["compared"]["piqa"]] == ["acc", "acc_norm"]


def test_the_table_shows_values_and_changes(place: Path) -> None:
    alone = run(place, str(place / "dense"))
    assert alone.exit_code == 0, alone.exception
    assert "wikitext2 perplexity" in alone.stdout
    assert "131 tokens in windows of 40, stride 40" in alone.stdout
    assert "baseline" not in alone.stdout
    beside = run(place, str(place / "other"), "--against", str(place / "dense"))
    assert "baseline" in beside.stdout
    assert f"{place / 'dense'} on cpu" in beside.stdout.replace("\n", "")


def test_mistakes_are_named(place: Path, tmp_path: Path) -> None:
    dense = str(place / "dense")
    assert isinstance(run(place, dense, "--data", "piqa").exception, ArgumentError)
    assert "is no NAME=FILE" in str(run(place, dense, "--data", "piqa").exception)
    assert "no tokenizer" in str(run(place, str(place / "other")).exception)
    unknown = CliRunner().invoke(make_app(COMMANDS), ["evaluate", dense, "--tasks", "wikitex2"]).exception
    assert isinstance(unknown, DataError)
    assert "Did you mean 'wikitext2'" in str(unknown)
    tiny_model("llama", dtype=torch.float32).save_pretrained(tmp_path)
    character_tokenizer(bos=True).save_pretrained(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    del tokenizer["model"]["vocab"]["~"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "another vocabulary" in str(run(place, dense, "--against", str(tmp_path)).exception)
