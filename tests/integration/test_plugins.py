"""Files of a user's own: what they register serves recipes; what is wrong with them is one typed error."""

import shutil
from pathlib import Path

import pytest
import yaml

from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.plugins import load_plugins
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.one_shot import OneShotRecipe
from tests.architectures.tiny import tiny_model

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

from patchers.units import WIDTH_KINDS
from sparse_trainer import register_criterion


@dataclass(frozen=True, kw_only=True)
class Rising:
    """Keeps the last units of every group."""

    kinds: ClassVar = WIDTH_KINDS
    standardize: ClassVar[str] = "none"
    slope: float = 1.0

    def requests(self):
        return ()

    def scores(self, evidence):
        import torch
        return {g.name: self.slope * torch.arange(g.num_units) / g.num_units for g in evidence.structure.groups}


register_criterion("rising_{number}", Rising)
'''


def plugin(folder: Path, number: int, text: str = PLUGIN) -> Path:
    file = folder / f"mine_{number}.py"
    file.write_text(text.replace("{number}", str(number)))
    return file


def recipe_file(folder: Path, criterion: str, plugins: object) -> Path:
    model = tiny_model("llama").float()
    model.save_pretrained(folder / "model")
    sections = {
        "plugins": plugins,
        "model": {"name_or_path": str(folder / "model"), "device": "cpu"},
        "prune": {"criterion": criterion, "density": 0.5, "scope": "layer", "units": ["channels"]},
        "export": {
            "output_dir": str(folder / "out"), "verify_samples": 2, "latency_batch_sizes": [1],
            "latency_sequence_length": 8, "latency_rounds": 2,
        },
    }  # fmt: skip
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(sections))
    return file


def test_a_criterion_of_a_plugin_prunes_and_the_saved_recipe_finds_it_again(tmp_path: Path) -> None:
    file = plugin(tmp_path, 1)
    recipe = load_recipe(recipe_file(tmp_path, "rising_1(slope=2)", [file.name]))
    assert isinstance(recipe, OneShotRecipe)
    result = run(recipe, lambda line: None)
    assert result.plan is not None
    assert result.plan.method == "rising_1(slope=2)"
    for group in result.plan.groups.values():
        if group["kind"] == "channels":
            assert group["keep"] == list(range(group["size"] // 2, group["size"]))
    saved = result.folder / "recipe.yaml"
    with pytest.raises(RecipeError, match="no file in a model's folder names code that is run"):
        load_recipe(saved)
    shutil.copy(saved, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml").sections["plugins"] == [str(file.resolve())]


def test_without_its_plugin_a_criterion_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prune\.criterion: unknown value 'rising_9'"):
        load_recipe(recipe_file(tmp_path, "rising_9", []))


def test_a_plugin_is_imported_once(tmp_path: Path) -> None:
    file = plugin(tmp_path, 2, f"with open({str(tmp_path / 'log')!r}, 'a') as log:\n    log.write('x')\n")
    assert load_plugins([file]) == load_plugins([file.name], tmp_path) == [str(file.resolve())]
    assert (tmp_path / "log").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise KeyError('lost')\n", r"mine_3\.py, line 2: KeyError: 'lost'"),
        ("import no_such_package_anywhere\n", r"line 1: ModuleNotFoundError"),
        ("x = (\n", r"line 1: SyntaxError"),
        ("import sys\n\nsys.exit(3)\n", r"line 3: SystemExit: 3"),
        ("raise ValueError('a\\nb')\n", r"line 1: ValueError: a\. Change"),
        ("\n\nexec(compile('x =', 'other.py', 'exec'))\n", r"mine_3\.py, line 3: SyntaxError"),
        ("\0", r"mine_3\.py.*: SyntaxError"),
        (
            "from sparse_trainer import register_criterion\nregister_criterion('wanda', int)\n",
            r"line 2: ArgumentError: criterion wanda: <class 'int'> is no dataclass",
        ),
    ],
)
def test_a_plugin_that_fails_is_one_typed_error(text: str, message: str, tmp_path: Path) -> None:
    file = plugin(tmp_path, 3, text)
    with pytest.raises(ArgumentError, match=message):
        load_plugins([file])
    with pytest.raises(RecipeError, match=rf"mine\.yaml: plugins: .*{message}"):
        load_recipe(recipe_file(tmp_path, "magnitude", [file.name]))


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        (["nowhere.py"], "there is no file"),
        (["mine.yaml"], "is no Python file"),
        (["."], "there is no file"),
        ([7], "7 is no path"),
        ("mine.py", "is no list"),
        ({"a": 1}, "is no list"),
    ],
)
def test_what_is_no_plugin_is_told(plugins: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"plugins: .*{message}"):
        load_recipe(recipe_file(tmp_path, "magnitude", plugins))


def test_an_override_names_no_code(tmp_path: Path) -> None:
    file = plugin(tmp_path, 4, "raise AssertionError('run')\n")
    with pytest.raises(
        RecipeError, match=r"no override names code\. Name it in the recipe, or with --plugin"
    ):
        load_recipe(recipe_file(tmp_path, "magnitude", None), [f"plugins=[{file}]"])


def test_a_plugin_that_failed_halfway_is_loaded_once_it_is_corrected(tmp_path: Path) -> None:
    file = plugin(tmp_path, 5, f"{PLUGIN}\n1 / 0\n")
    with pytest.raises(ArgumentError, match="ZeroDivisionError"):
        load_plugins([file])
    assert load_plugins([plugin(tmp_path, 5)]) == [str(file.resolve())]
