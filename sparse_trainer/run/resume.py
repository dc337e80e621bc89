"""Going on with a run that was stopped: its folder says which recipe it ran and which stages are done."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.writing import check_file, write_text
from sparse_trainer.folders.replace import check_target
from sparse_trainer.plan.document import PLAN_FILE
from sparse_trainer.run.outcome import RECIPE_FILE
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe
from sparse_trainer.run.recipes.reading import DESCRIPTION, Sections, read_sections
from sparse_trainer.run.recipes.sections import RESUME, as_yaml
from sparse_trainer.training.checkpoint import find_checkpoint, last_checkpoint

RUN_FILE = ".sparse_trainer_run.yaml"
"""In the folder that a run trains in: the recipe it runs."""
_RESUMED_FROM = "training.resume_from_checkpoint"
_FREE = (DESCRIPTION, RESUME, "export.", _RESUMED_FROM, "training.output_dir", "model.dense_folder")
"""What may be another in a run that goes on: it changes nothing of what was trained."""
_NOT_DENSE = (DESCRIPTION, RESUME, "pruning", "export")
"""Sections that say nothing of the dense fine-tune."""
_AFTER_DENSE = ("dense_folder", "dense_training", "fill", "prune_from", "rewind")
"""Keys of section `model` that say nothing of the weights that the dense fine-tune starts from."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder that a run trains in, and what an earlier, stopped run of the same recipe left there."""

    recipe: FinePruningRecipe
    resume: bool
    """Go on where the earlier run was stopped, rather than start over."""

    @property
    def path(self) -> Path:
        """Where checkpoints go: `training.output_dir`."""
        return Path(str(self.recipe.training.output_dir))

    @property
    def dense(self) -> Path:
        """Where the dense model stays that the run fine-tunes first: in the folder of the run, or with other runs."""
        shared = self.recipe.model.dense_folder
        return self.path / "dense" / "model" if shared is None else Path(shared)

    @property
    def uncut(self) -> Path:
        """Where the fine-pruned model stays with its gates: what is cut."""
        return self.path / "uncut"

    @property
    def rescued(self) -> Path:
        """Where the pruned model goes when it cannot be saved where it should."""
        return self.path / "rescued"

    @property
    def result(self) -> Path:
        """Where the result goes."""
        if self.recipe.export.output_dir is not None:
            return Path(self.recipe.export.output_dir)
        pruning = self.recipe.pruning
        return self.path / ("model" if pruning is None else "pruned" if pruning.stages is None else "family")

    @property
    def results(self) -> tuple[Path, ...]:
        """The folders that are written: one, or those of a family."""
        pruning = self.recipe.pruning
        stages = None if pruning is None else pruning.stages
        return (self.result,) if stages is None else tuple(self.result / name for name in stages.names)

    def has(self, result: Path) -> bool:
        """Tell whether one of `results` was finished by an earlier run that goes on."""
        return self._goes_on and self._is_finished(result)

    @property
    def mark(self) -> str:
        """The file by which the result is known as ours to replace."""
        return PLAN_FILE if self.recipe.pruning else RECIPE_FILE

    def check(self, *, overwrite: bool) -> None:
        """Find out before any work whether the run may start, and whether its outputs can be written.

        Raises:
            CheckpointError: They cannot; or there are results, or work of a run that was stopped, to be lost.
        """
        # unlike Path.resolve, no error for a link to itself
        here = Path(os.path.realpath(self.path))
        around = next((r for r in self.results if Path(os.path.realpath(r)) in (here, *here.parents)), None)
        if around is not None:
            raise CheckpointError(
                f"export.output_dir: {around}",
                f"holds the folder that the run trains in ({self.path}), and is replaced as a whole.",
                "Name another folder, or one inside it.",
            )
        find_checkpoint(self.recipe.training.resume_from_checkpoint, self.path)
        if self.resume:
            self._check_recipe()
        self._check_shared()
        # A run that was stopped after its result was there writes it again.
        for result in self.results:
            is_own = self.resume and self._is_of_this_recipe(result / RECIPE_FILE)
            check_target(result, overwrite=overwrite or is_own, ours=self.mark)
        if not self.path.exists():
            check_target(self.path)
            return
        check_file(self.path / RUN_FILE)
        stopped = last_checkpoint(self.path) or last_checkpoint(self.path / "dense")
        if stopped and not (overwrite or self._goes_on):
            raise CheckpointError(
                str(stopped),
                "is work of an earlier run, which would be written over.",
                "Set `resume=True` to go on with it, or `overwrite=True` to start over; or name "
                "another training.output_dir.",
            )

    def check_room(self, need: int) -> None:
        """Raise `CheckpointError` where this many bytes have no room at the place of the result."""
        check_target(self.results[-1], ours=self.mark, need=need)

    def start(self) -> None:
        """Write down which recipe is run here, unless an earlier run goes on."""
        if not (self._goes_on and self._is_of_this_recipe(self.path / RUN_FILE)):
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / RUN_FILE, self.recipe.dump())

    def checkpoint(self, output_dir: str | None) -> Path | None:
        """Return the checkpoint from which a stage goes on; None where it starts afresh.

        Args:
            output_dir: The folder that the stage trains in.
        """
        asked = self.recipe.training.resume_from_checkpoint
        if asked is not None and output_dir == self.recipe.training.output_dir:
            return find_checkpoint(asked, self.path)
        if not self.resume or output_dir is None:
            return None
        # Older ones are of a run before this one.
        return last_checkpoint(output_dir, since=self._started)

    @property
    def is_begun(self) -> bool:
        """Whether a run was started here."""
        return (self.path / RUN_FILE).is_file()

    def dense_model(self) -> Path | None:
        """Return the dense model of an earlier run that goes on, or of another run, where that stage was finished."""
        file = self.dense / RECIPE_FILE
        if self.recipe.model.dense_folder is not None:
            return self.dense if file.is_file() else None
        return self.dense if self._goes_on and self._is_finished(self.dense) else None

    def uncut_model(self) -> Path | None:
        """Return the fine-pruned model of an earlier run, unless it is to go on from a checkpoint that is named."""
        is_named = self.recipe.training.resume_from_checkpoint is not None
        return self.uncut if self.resume and not is_named and self._is_finished(self.uncut) else None

    def finish_uncut(self) -> None:
        """Write down that the fine-pruned model is complete."""
        write_text(self.uncut / RECIPE_FILE, self.recipe.dump())

    def advice(self) -> str:
        """Return what to tell somebody who stops the run."""
        saved = self.dense.is_dir() or self.uncut.is_dir()
        if saved or last_checkpoint(self.path) or last_checkpoint(self.path / "dense"):
            return f"stopped: add --resume (in Python: run(recipe, resume=True)) to go on with what is in {self.path}"
        return f"stopped before anything was saved in {self.path}: training.save_strategy says when checkpoints are"

    @property
    def _goes_on(self) -> bool:
        return self.resume or self.recipe.training.resume_from_checkpoint is not None

    def _is_finished(self, folder: Path) -> bool:
        """Tell whether the model in a folder is whole, and of this run rather than one before it."""
        file = folder / RECIPE_FILE
        return self._is_of_this_recipe(file) and file.stat().st_mtime_ns >= self._started

    @property
    def _started(self) -> int:
        return (self.path / RUN_FILE).stat().st_mtime_ns if self.is_begun else 0

    def _is_of_this_recipe(self, file: Path) -> bool:
        return file.is_file() and not recipe_changes(read_sections(file), self.recipe.sections)

    def _check_shared(self) -> None:
        """Refuse a shared folder with a dense model of other options, or one that cannot be written."""
        if self.recipe.model.dense_folder is None:
            return
        check_target(self.dense, ours=RECIPE_FILE)
        file, now = self.dense / RECIPE_FILE, dense_part(self.recipe.sections)
        changes = recipe_changes(dense_part(read_sections(file)), now) if file.is_file() else {}
        if changes:
            raise CheckpointError(
                f"model.dense_folder: {self.dense}",
                f"holds another dense model: {say_changes(changes)}.",
                "Name another folder.",
            )

    def _check_recipe(self) -> None:
        file = self.path / RUN_FILE
        if not file.is_file():
            raise CheckpointError(
                f"resume: {self.path}",
                "holds no run to go on with.",
                "Start it without resume=True (--resume).",
            )
        changes = recipe_changes(read_sections(file), self.recipe.sections)
        if changes:
            raise CheckpointError(
                f"resume: {file}",
                f"{say_changes(changes)}.",
                "Go on with the recipe of then, or start over with `overwrite=True`.",
            )


def recipe_changes(
    then: Sections, now: Sections, free: tuple[str, ...] = _FREE
) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ, in dots, with the value of then and of now.

    Args:
        free: What the keys begin with that may differ.
    """
    old, new = dict(_flat(then)), dict(_flat(yaml.safe_load(as_yaml(now))))
    return {
        key: (old.get(key), new.get(key))
        for key in old | new
        if old.get(key) != new.get(key) and not key.startswith(free)
    }


def say_changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Return what `recipe_changes` found, for a message."""
    return "; ".join(f"{key} was {then!r} and is {now!r} now" for key, (then, now) in changes.items())


def dense_part(sections: Sections) -> Sections:
    """Return what a recipe says about the dense model that is fine-tuned first: runs that say the same can share it."""
    model, training = sections.get("model") or {}, sections.get("training") or {}
    training = {**training, **(model.get("dense_training") or {})}
    return {
        **{key: value for key, value in sections.items() if key not in _NOT_DENSE},
        "model": {key: value for key, value in model.items() if key not in _AFTER_DENSE},
        "training": {
            key: value
            for key, value in training.items()
            if key not in ("output_dir", "resume_from_checkpoint")
        },
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
