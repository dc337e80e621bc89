"""`--plugin FILE`: what a user's own file registers serves the command line, and a faulty file is one typed error."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_trainer.cli.front import main
from tests.fixtures.recipe_files import write_text, write_tiny_llama

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy
import torch

from patchers.units import CHANNELS, HEADS
from sparse_trainer import register_criterion, register_export


@dataclass(frozen=True, kw_only=True)
class FirstUnits:
    """Keeps the first units of a layer, or the last."""

    kinds: ClassVar[tuple] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "none"
    last: bool = False

    def requests(self):
        return ()

    def scores(self, evidence):
        sign = 1.0 if self.last else -1.0
        return {g.name: sign * torch.arange(float(g.num_units)) for g in evidence.structure.groups}


class Arrays:
    """Weights as numpy arrays."""

    def check(self, model):
        """Refuse nothing."""

    def write(self, model, folder):
        model.config.save_pretrained(folder)
        numpy.savez(folder / "weights.npz", **{name: t.numpy() for name, t in model.state_dict().items()})

    def card(self, model, loader):
        return "`numpy.load` reads `weights.npz`."


register_criterion("first_units", FirstUnits)
register_export("arrays", Arrays())
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("plugins") / "llama")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "my_methods.py"
    file.write_text(PLUGIN)
    return file


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def check_result(folder: Path) -> None:
    """Check that the last half of all channels stayed, as numpy arrays."""
    plan = json.loads((folder / "pruning_plan.json").read_text())
    kept = [group["keep"] for group in plan["groups"].values() if group["kind"] == "channels"]
    assert kept
    assert all(keep == list(range(20, 40)) for keep in kept)
    with np.load(folder / "weights.npz") as arrays:
        assert arrays["model.layers.0.mlp.down_proj.weight"].shape == (16, 20)
    assert "`numpy.load` reads `weights.npz`" in (folder / "README.md").read_text()


def test_prune_takes_criterion_and_export_of_a_plugin(
    model: Path, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--criterion", "first_units(last=True)", "--density", "0.5", "--units", "channels")
    where = (model, tmp_path / "out", "--device", "cpu", "--scope", "layer")
    assert call(monkeypatch, "prune", *where, *options, "--export", "arrays") == 2
    assert call(monkeypatch, "prune", *where, *options, "--export", "arrays", "--plugin", plugin) == 0
    check_result(tmp_path / "out")


def test_a_recipe_takes_criterion_and_export_of_a_plugin(
    model: Path, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path / "text.txt", 50)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {model}, device: cpu}}\n"
        "prune: {criterion: first_units(last=True), density: 0.5, units: [channels], scope: layer}\n"
        f"evaluation: {{tasks: [{text}], length: 16, max_tokens: 100}}\n"
        f"export: {{output_dir: {tmp_path}/out, export: arrays, verify: false, latency_rounds: 1,"
        " latency_sequence_length: 8}\n"
    )
    assert call(monkeypatch, "run", recipe) == 2
    assert call(monkeypatch, "run", recipe, "--plugin", plugin) == 0
    check_result(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nowhere.py", None, "nowhere.py"),
        ("torn.py", "def", "torn.py"),
        ("failing.py", "1 / 0", "ZeroDivisionError"),
        (
            "taken.py",
            "from sparse_trainer import register_export\nregister_export('native', object())",
            "native",
        ),
    ],
)
def test_a_plugin_that_is_missing_or_fails_is_one_typed_error(
    name: str,
    text: str | None,
    said: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert call(monkeypatch, "inspect", model, "--plugin", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
