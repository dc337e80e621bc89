"""A form of saved models from a user's own file: known by name everywhere, and refused where it is faulty."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import sparse_trainer
from patchers.discovery.discover import discover
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, CheckpointError, ExportError
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.run.recipes.sections import ExportOptions
from tests.fixtures.compact_models import patched, tiny, uneven_keep


class Arrays:
    """Weights as numpy arrays, for a runtime without torch."""

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what numpy has no number type for."""
        if model.dtype == torch.bfloat16:
            raise CheckpointError("export", "numpy knows no bfloat16.", "Convert the model to float32.")

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the config, and one array per tensor."""
        model.config.save_pretrained(folder)
        np.savez(folder / "weights.npz", **{name: t.numpy() for name, t in model.state_dict().items()})

    def card(self, model: PreTrainedModel, loader: str) -> str:
        """Say how the arrays are read."""
        return f"`numpy.load` reads `weights.npz`: {len(model.state_dict())} arrays."


class Silent(Arrays):
    """Another class."""


class Halfway(Arrays):
    """Fails in the middle of writing."""

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the config, then fail."""
        model.config.save_pretrained(folder)
        raise ZeroDivisionError


class Mute(Arrays):
    """Has nothing to say."""

    def card(self, model: PreTrainedModel, loader: str) -> str:
        """Return no text."""
        return None  # type: ignore[return-value]


class Idle(Arrays):
    """Writes nothing."""

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Do nothing."""


@pytest.fixture
def compact() -> PreTrainedModel:
    """Return a small model that was cut."""
    model = tiny()
    return optimize_model(patched(model, uneven_keep(discover(model))))


def test_a_registered_export_writes_folders_and_their_cards(compact: PreTrainedModel, tmp_path: Path) -> None:
    sparse_trainer.register_export("arrays", Arrays())
    folder = save_pruned(compact, tmp_path / "out", export="arrays")
    assert {path.name for path in folder.iterdir()} == {
        ".pruning_files.json", "README.md", "config.json", "pruning_plan.json", "weights.npz",
    }  # fmt: skip
    with np.load(folder / "weights.npz") as arrays:
        assert {name: array.shape for name, array in arrays.items()} == {
            name: tuple(tensor.shape) for name, tensor in compact.state_dict().items()
        }
    assert "`numpy.load` reads `weights.npz`" in (folder / "README.md").read_text(encoding="utf-8")


def test_what_it_cannot_hold_is_refused_before_anything_is_written(
    compact: PreTrainedModel, tmp_path: Path
) -> None:
    sparse_trainer.register_export("arrays", Arrays())
    with pytest.raises(CheckpointError, match="no bfloat16"):
        save_pruned(compact.to(torch.bfloat16), tmp_path / "out", export="arrays")
    assert list(tmp_path.iterdir()) == []


def test_a_registered_export_that_fails_leaves_the_earlier_folder(
    compact: PreTrainedModel, tmp_path: Path
) -> None:
    sparse_trainer.register_export("halfway", Halfway())
    folder = save_pruned(compact, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ZeroDivisionError):
        save_pruned(compact, folder, export="halfway", overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("export", "message"),
    [(Mute(), r"Mute\.card: gave None, no text"), (Idle(), r"Idle\.write: wrote no file")],
)
def test_a_faulty_export_is_one_typed_error(
    export: Arrays, message: str, compact: PreTrainedModel, tmp_path: Path
) -> None:
    sparse_trainer.register_export("faulty", export)
    with pytest.raises(ExportError, match=message):
        save_pruned(compact, tmp_path / "out", export="faulty")
    assert list(tmp_path.iterdir()) == []


def test_recipes_know_a_registered_export() -> None:
    with pytest.raises(ArgumentError, match="unknown value 'arrays'"):
        ExportOptions(export="arrays")
    sparse_trainer.register_export("arrays", Arrays())
    assert ExportOptions(export="arrays").export == "arrays"


def test_a_class_may_be_registered_again_and_no_other_one_under_its_name() -> None:
    sparse_trainer.register_export("arrays", Arrays())
    sparse_trainer.register_export("arrays", Arrays())
    with pytest.raises(ArgumentError, match=r"export 'arrays': is taken by .*Arrays\. Take another name"):
        sparse_trainer.register_export("arrays", Silent())
    with pytest.raises(ArgumentError, match="export 'native': is taken"):
        sparse_trainer.register_export("native", Arrays())


def test_objects_that_are_no_export_are_refused() -> None:
    class Writer:
        def write(self, model: PreTrainedModel, folder: Path) -> None:
            """Write nothing."""

    with pytest.raises(ArgumentError, match="Writer has no check, card"):
        sparse_trainer.register_export("writer", Writer())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"Arrays is a class\. Give an instance: Arrays\(\)"):
        sparse_trainer.register_export("arrays", Arrays)  # type: ignore[arg-type]
    for name in ("", "a b", "a/b"):
        with pytest.raises(ArgumentError, match="is no name"):
            sparse_trainer.register_export(name, Arrays())
