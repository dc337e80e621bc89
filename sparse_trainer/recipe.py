"""Read a recipe: YAML sections, each checked and parsed into its dataclass, with overrides from the command line."""

from __future__ import annotations

import copy
import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments

from sparse_trainer.args import SparseTrainingArguments
from sparse_trainer.data import DataOptions
from sparse_trainer.errors import RecipeError, SparseTrainerError, nearest
from sparse_trainer.fields import checked
from sparse_trainer.tasks import TaskOptions

Sections = dict[str, Any]

DENSE = "dense"
"""As `pruning.distil_teacher_name_or_path`: the dense model that the same run fine-tunes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which model, and whether it is fine-tuned dense before it is pruned."""

    name_or_path: str
    """Folder, hub id, or `package:NAME/FOLDER` for weights inside an installed Python package."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    dense_training: dict[str, Any] | None = None
    """Fine-tune a dense model first, with these changes to `training`; null = do not. (Without pruning it is all.)"""
    prune_from: Literal["pretrained", "dense"] = "pretrained"
    """Where fine-pruning starts: at the pretrained model, or at the dense model that was fine-tuned first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What is written and measured at the end."""

    directory: str | None = None
    """Folder of the finished model; default: `pruned` (of a dense run: `dense`) in `training.output_dir`."""
    export: Literal["auto", "native", "padded", "self-contained"] = "auto"
    """Form of the saved model; auto = native where the shapes allow it, else self-contained."""
    verify: bool = True
    """Reload the result in a new process with nothing but transformers, and compare its predictions."""
    verify_samples: int = 64
    """Validation examples that are compared."""
    latency_batch_sizes: tuple[int, ...] = (1, 16)
    """Batch sizes of the latency table."""
    latency_sequence_length: int = 128
    """Tokens per sequence of the latency table."""
    latency_rounds: int = 20
    """Timed calls per model and batch size."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: what to train on, what to prune, what to write."""

    name: str
    """Name of the file, without its ending."""
    description: str
    task: TaskOptions
    model: ModelOptions
    data: DataOptions
    pruning: SparseTrainingArguments | None
    """None = a dense run."""
    training: TrainingArguments
    export: ExportOptions
    sections: Sections
    """The recipe as written, overrides included: what `dump` writes."""
    origin: str
    """Where it was read from, for messages."""

    def dense_training(self) -> TrainingArguments | None:
        """Return the options of the dense fine-tune that comes first, or None."""
        changes = self.model.dense_training
        if changes is None:
            return None
        section = {**(self.sections.get("training") or {}), "output_dir": f"{self.training.output_dir}/dense"}
        # A checkpoint to go on from belongs to fine-pruning.
        section.pop("resume_from_checkpoint", None)
        return _training(section | changes, self.name, f"{self.origin}: model.dense_training")

    def dump(self) -> str:
        """Return the recipe as YAML that loads to the same recipe."""
        return yaml.safe_dump(self.sections, sort_keys=False, allow_unicode=True)


SECTIONS = ("task", "model", "data", "pruning", "training", "export")


def shipped() -> dict[str, Path]:
    """Return the recipes that come with the project: name -> file."""
    folder = Path(str(importlib.resources.files("recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def describe(path: Path) -> str:
    """Return the description of a recipe without parsing the rest of it."""
    return str(_read(path).get("description", ""))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by name, or a file, and apply overrides like `training.num_train_epochs=1`.

    Raises:
        RecipeError: Unknown recipe, section or key; a missing or ill-typed value; the place is named.
    """
    path = _find(str(name_or_path))
    sections = _read(path)
    for override in overrides:
        _apply(sections, override)
    return parse_recipe(sections, path.stem, str(path))


def parse_recipe(sections: Mapping[str, Any], name: str, origin: str) -> Recipe:
    """Check the sections of a recipe and parse each into its dataclass."""
    for key in sections:
        if key not in (*SECTIONS, "description"):
            raise RecipeError(
                f"{origin}: {key}", "unknown section.", nearest(str(key), (*SECTIONS, "description"))
            )
    parts = {key: _section(sections, key, origin) for key in SECTIONS}
    recipe = Recipe(
        name=name,
        description=str(sections.get("description", "")),
        task=TaskOptions(**checked(TaskOptions, parts["task"], f"{origin}: task")),
        model=ModelOptions(**checked(ModelOptions, parts["model"], f"{origin}: model")),
        data=DataOptions(**checked(DataOptions, parts["data"], f"{origin}: data")),
        pruning=_pruning(sections, parts["pruning"], origin),
        training=_training(parts["training"], name, f"{origin}: training"),
        export=ExportOptions(**checked(ExportOptions, parts["export"], f"{origin}: export")),
        sections=copy.deepcopy(dict(sections)),
        origin=origin,
    )
    _check_dense(recipe)
    return recipe


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    known = shipped()
    if name in known:
        return known[name]
    raise RecipeError(f"recipe {name!r}", "neither a file nor a shipped recipe.", nearest(name, known))


def _read(path: Path) -> Sections:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(str(path), f"cannot be read as YAML: {error}.", "Mend the file.") from error
    if not isinstance(content, dict):
        raise RecipeError(str(path), "is not a mapping of sections.", f"Sections: {', '.join(SECTIONS)}.")
    return content


def _apply(sections: Sections, override: str) -> None:
    """Set one dotted key; the value is read as YAML."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"override {override!r}", "is not KEY=VALUE.", "Write e.g. training.num_train_epochs=1."
        )
    if parts[0] not in (*SECTIONS, "description"):
        raise RecipeError(
            f"override {override!r}", f"unknown section {parts[0]!r}.", nearest(parts[0], SECTIONS)
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}", f"value is not YAML: {error}.", "Quote it.") from error
    place = sections
    for part in parts[:-1]:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise RecipeError(
                f"override {override!r}", f"{part!r} holds no keys.", "Override the whole value."
            )
    place[parts[-1]] = value


def _section(sections: Mapping[str, Any], key: str, origin: str) -> dict[str, Any]:
    """Return one section; an absent or null one is empty."""
    content = sections.get(key)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(
            f"{origin}: {key}", f"{content!r} is not a mapping.", "Write keys and values under it."
        )
    return content


def _pruning(
    sections: Mapping[str, Any], section: dict[str, Any], origin: str
) -> SparseTrainingArguments | None:
    """Parse the `pruning` section; an explicit or implied null means a dense run."""
    if sections.get("pruning") is None:
        return None
    values = checked(SparseTrainingArguments, section, f"{origin}: pruning")
    try:
        return SparseTrainingArguments(**values)
    except SparseTrainerError as error:
        raise RecipeError(f"{origin}: pruning.{error.where}", error.what, error.remedy) from error


def _training(section: dict[str, Any], name: str, where: str) -> TrainingArguments:
    """Parse the options of the Trainer, whose own checks name fields but not files."""
    # Pinned memory without an accelerator only earns a warning from torch.
    defaults: dict[str, Any] = {
        "output_dir": f"runs/{name}",
        "dataloader_pin_memory": torch.accelerator.is_available(),
    }
    values = defaults | checked(TrainingArguments, section, where)
    try:
        return TrainingArguments(**values)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise RecipeError(where, f"{error}", "Mend the option that is named.") from error


def _check_dense(recipe: Recipe) -> None:
    """Refuse what needs a dense fine-tune when there is none, and a dense fine-tune with unknown options."""
    dense = recipe.dense_training()
    remedy = "Add model.dense_training (it may be {}: the options of `training`)."
    if dense is None and recipe.model.prune_from == "dense":
        raise RecipeError(
            f"{recipe.origin}: model.prune_from", "'dense', but no dense model is trained.", remedy
        )
    teacher = recipe.pruning.distil_teacher_name_or_path if recipe.pruning else None
    if dense is None and teacher == DENSE:
        where = f"{recipe.origin}: pruning.distil_teacher_name_or_path"
        raise RecipeError(where, "'dense', but no dense model is trained.", remedy)
