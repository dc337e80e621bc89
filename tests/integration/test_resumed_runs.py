"""A run that is stopped, wherever that is, goes on and ends as one that was not; nothing is lost on the way."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import Trainer

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.self_check import SelfCheckError
from sparse_trainer.errors import ArgumentError, CheckpointError, RecipeError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.training.load import load_patched
from tests.fixtures.recipe_files import small, write_small_files


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_files(tmp_path_factory.mktemp("recipes"))


def stopping(files: Path, out: Path, *overrides: str) -> Recipe:
    """Return a recipe with a dense teacher and a checkpoint after every second of four steps."""
    changes = (
        "pruning.distil_teacher_name_or_path=dense",
        "training.save_strategy=steps",
        "training.save_steps=2",
        "training.logging_steps=1",
        # A step too many would show.
        "training.lr_scheduler_type=constant",
        "export.verify=false",
    )
    return small("boolq-local", files, out, *changes, *overrides)


def go(recipe: Any, **options: Any) -> list[str]:
    """Run a recipe, and return what it said."""
    said: list[str] = []
    run(recipe, said.append, **options)
    return said


def stop_at_step(count: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Stop at this call of a training step, of all stages."""
    step, calls = Trainer.training_step, [0]

    def counted(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > count:
            raise error
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counted)


def stop_at(name: str) -> Callable[[pytest.MonkeyPatch, BaseException], None]:
    """Return what stops a run when it calls this function."""

    def stop(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        def stopped(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(f"sparse_trainer.run.{name}", stopped)

    return stop


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Path:
    """Return the result of a run that was not stopped."""
    out = tmp_path_factory.mktemp("whole")
    go(stopping(files, out))
    return out / "pruned"


STOPS: dict[str, Callable[[pytest.MonkeyPatch, BaseException], None]] = {
    "before the first checkpoint": lambda patch, error: stop_at_step(1, patch, error),
    "in the dense stage": lambda patch, error: stop_at_step(3, patch, error),
    "before the dense model is kept": stop_at("fine_pruning.save_dense"),
    "in the pruning stage": lambda patch, error: stop_at_step(7, patch, error),
    "before the fine-pruned model is kept": stop_at("resume.RunFolder.finish_uncut"),
    "in the export": stop_at("stages.write_beside"),
    "after the export": stop_at("fine_pruning.pipeline_lines"),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(
    stop: str,
    whole: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = stopping(files, tmp_path)
    said: list[str] = []
    with monkeypatch.context() as patch:
        STOPS[stop](patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(recipe, said.append)
    assert "--resume" in said[-1] or stop == "before the first checkpoint"
    said = go(recipe, resume=True)
    assert ("fine-tuning the dense model" in said) == (list(STOPS).index(stop) < 3)
    assert Plan.load(tmp_path / "pruned").groups == Plan.load(whole).groups
    found, expected = (load_file(f / "model.safetensors") for f in (tmp_path / "pruned", whole))
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert ("fine-pruning" in said) == (list(STOPS).index(stop) < 5)
    assert "<h2>Training</h2>" in (tmp_path / "pruned" / "report.html").read_text()
    left = {path.name for path in tmp_path.iterdir()}
    folders = {"checkpoint-2", "checkpoint-4", "dense", "pruned", "rescued", "uncut"}
    assert left <= {".sparse_trainer_run.yaml", *folders}


def test_what_was_trained_is_not_trained_again_without_checkpoints(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stopping(files, tmp_path, "training.save_strategy=no", "resume=true")
    with monkeypatch.context() as patch:
        stop_at("stages.write_beside")(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(recipe)
    stop_at_step(0, monkeypatch, AssertionError("training started"))
    said = go(recipe)
    assert said[1:3] == [
        f"taking the dense model from {tmp_path / 'dense' / 'model'}",
        f"taking the fine-pruned model from {tmp_path / 'uncut'}",
    ]
    assert Plan.load(tmp_path / "pruned").density_reached == pytest.approx(0.5, abs=0.05)
    # What an earlier run of the same recipe left is of no use to one that starts over.
    monkeypatch.undo()
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)
    with monkeypatch.context() as patch:
        stop_at_step(1, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(stopping(files, tmp_path, "training.save_strategy=no"), overwrite=True)
    said = go(recipe)
    assert {"fine-tuning the dense model", "fine-pruning"} <= set(said)


def test_a_recipe_that_asks_to_be_resumed_starts_where_there_is_nothing_to_go_on_with(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    recipe = stopping(files, tmp_path, "resume=true")
    with monkeypatch.context() as patch:
        stop_at_step(7, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(recipe)
    said = go(recipe)
    assert "fine-tuning the dense model" not in said
    found, expected = (load_file(f / "model.safetensors") for f in (tmp_path / "pruned", whole))
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    with pytest.raises(CheckpointError, match=r"pruning.density was 0\.5 and is 0\.3 now"):
        go(stopping(files, tmp_path, "resume=true", "pruning.density=0.3"))
    with pytest.raises(RecipeError, match="resume: 'yes, please' is not true or false"):
        stopping(files, tmp_path, "resume=yes, please")


def test_a_named_checkpoint_goes_on_with_the_dense_model_that_was_kept(
    whole: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_at_step(7, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(stopping(files, tmp_path))
    asked = f"training.resume_from_checkpoint={tmp_path / 'checkpoint-2'}"
    assert "fine-tuning the dense model" not in go(stopping(files, tmp_path, asked))
    found, expected = (load_file(f / "model.safetensors") for f in (tmp_path / "pruned", whole))
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_what_cannot_go_on_is_refused_before_any_work(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(CheckpointError, match="holds no run to go on with"):
        go(stopping(files, tmp_path), resume=True)
    with monkeypatch.context() as patch:
        stop_at_step(7, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(stopping(files, tmp_path))
    stop_at_step(0, monkeypatch, AssertionError("training started"))
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint-2: is work of an earlier run.*resume=True.*export\.overwrite: true",
    ):
        go(stopping(files, tmp_path))
    changed = stopping(files, tmp_path, "pruning.density=0.3", "training.learning_rate=1.0e-3")
    with pytest.raises(CheckpointError, match=r"pruning.density was 0\.5 and is 0\.3 now") as caught:
        go(changed, resume=True)
    assert "training.learning_rate" in str(caught.value)
    for checkpoint, message in (
        ("checkpoint-2", "density was 0.5 and is 0.3 now"),
        ("nowhere", "is no folder"),
    ):
        asked = f"training.resume_from_checkpoint={tmp_path / checkpoint}"
        with pytest.raises(CheckpointError, match=message):
            go(stopping(files, tmp_path, "pruning.density=0.3", asked))


def test_results_are_replaced_only_when_asked_and_own_files_stay(files: Path, tmp_path: Path) -> None:
    def recipe(*overrides: str) -> Recipe:
        return small("sst2-local", files, tmp_path, "export.verify=false", *overrides)

    go(recipe())
    first = Plan.load(tmp_path / "pruned")
    (tmp_path / "pruned" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds a result already.*export\.overwrite: true"):
        go(recipe())
    go(recipe("pruning.density=0.4"), overwrite=True)
    assert Plan.load(tmp_path / "pruned").density_asked == 0.4
    go(recipe("export.overwrite=true"))
    assert Plan.load(tmp_path / "pruned") == first
    assert (tmp_path / "pruned" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("export.output_dir={out}/file/x",), "cannot be written"),
        (("export.output_dir={out}/" + "x" * 250,), "File name too long"),
        (("training.output_dir={out}/file",), "file"),
        (("training.output_dir={out}/file/run",), "cannot be written"),
        (
            ("export.output_dir={out}/run", "training.output_dir={out}/run"),
            "holds the folder that the run trains in",
        ),
        (
            ("export.output_dir={out}", "training.output_dir={out}/run"),
            "holds the folder that the run trains in",
        ),
    ],
)
def test_outputs_that_cannot_be_made_are_found_before_any_work(
    overrides: tuple[str, ...],
    message: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("x")
    stop_at("preparation.prepare")(monkeypatch, AssertionError("work started"))
    changes = [text.format(out=tmp_path) for text in overrides]
    with pytest.raises(CheckpointError, match=message):
        go(stopping(files, tmp_path / "other", *changes))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_that_cannot_be_saved_is_rescued(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = small("sst2-local", files, tmp_path, "export.verify=false")
    stop_at("stages.write_beside")(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(
        CheckpointError, match=r"pruned: cannot be written .*The pruned model is in .*rescued"
    ):
        go(recipe)
    assert (
        load_pruned(tmp_path / "rescued").num_parameters()
        == Plan.load(tmp_path / "rescued").params["compact"]
    )
    assert not (tmp_path / "pruned").exists()


def test_a_model_that_cannot_be_cut_is_kept_with_its_gates(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at("fine_pruning.optimize_model")(monkeypatch, SelfCheckError("cut", "differs.", "Report it."))
    with pytest.raises(SelfCheckError, match=r"Report it\. The trained model, with its gates, is in .*uncut"):
        go(small("sst2-local", files, tmp_path, "export.verify=false"))
    assert optimize_model(load_patched(tmp_path / "uncut")).num_parameters() > 0


def test_a_disk_without_room_for_the_result_is_found_before_training(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at_step(0, monkeypatch, AssertionError("training started"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CheckpointError, match="Make room"):
        go(small("sst2-local", files, tmp_path))


def test_runs_without_training_have_nothing_to_go_on_from() -> None:
    with pytest.raises(ArgumentError, match="trains nothing"):
        run(load_recipe("llama-wanda"), print, resume=True)
    with pytest.raises(ArgumentError, match="trains nothing"):
        run(load_recipe("llama-wanda", ["resume=true"]), print)
