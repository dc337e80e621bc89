"""Stock loading of uneven folders, for those who asked for it."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from patchers.discovery.discover import discover
from patchers.modeling_pruned import stock_class_of
from sparse_trainer.cut.optimize import optimize_model
from tests.fixtures.compact_models import logits, patched, tiny, uneven_keep
from tests.fixtures.same import assert_same


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny("mpnet")
    optimize_model(patched(model, uneven_keep(discover(model)))).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def autoload() -> Iterator[None]:
    module = importlib.import_module("sparse_trainer.autoload")
    module.enable()
    yield
    module.disable()


@pytest.mark.usefixtures("autoload")
def test_stock_loading_accepts_the_folder(folder: Path, tmp_path: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    model = tiny("mpnet")
    expected = optimize_model(patched(model, uneven_keep(discover(model))))
    assert type(loaded) is type(expected)
    assert_same(loaded, expected, logits)
    trusted = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert_same(trusted, expected, logits)
    assert type(AutoModel.from_pretrained(folder)).__name__ == "MPNetModel"
    assert (
        AutoModelForTokenClassification.from_config(loaded.config).num_parameters() < model.num_parameters()
    )
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


@pytest.mark.usefixtures("autoload")
def test_other_models_never_notice(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path)) is type(model)


def test_it_can_be_switched_off(folder: Path, autoload: None) -> None:
    importlib.import_module("sparse_trainer.autoload").disable()
    with pytest.raises(RuntimeError, match=r"size|mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert stock_class_of(tiny()) is type(tiny())
