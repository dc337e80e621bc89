"""Recipe files as data: their sections checked, single keys overridden."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import yaml

from sparse_trainer.errors import ArgumentError, RecipeError, SparseTrainerError, Spelling, nearest, shown
from sparse_trainer.fields import check_counts, checked
from sparse_trainer.files.yaml_text import MOST_DEPTH, parse_yaml
from sparse_trainer.folders.exports import find_export
from sparse_trainer.run.recipes.reading import DESCRIPTION, Sections

T = TypeVar("T")

RESUME = "resume"
"""true = go on with a run of this recipe that was stopped; where there is none, start one."""
PLUGINS = "plugins"
"""Python files that a recipe imports before it is read; relative to its own file."""


def override(sections: Sections, text: str, known: Sequence[str]) -> None:
    """Set one dotted key in place, as `training.num_train_epochs=1` says; the value is read as YAML.

    Raises:
        RecipeError: No KEY=VALUE, an unknown section, or a key below something that holds none.
    """
    where = f"override {shown(text)}"
    key, equals, written = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > MOST_DEPTH:
        raise RecipeError(where, "is not KEY=VALUE.", "Write e.g. training.num_train_epochs=1.")
    if parts[0] == PLUGINS:
        raise RecipeError(where, "no override names code.", "Name it in the recipe, or with --plugin FILE.")
    if parts[0] not in (*known, DESCRIPTION, RESUME):
        raise RecipeError(where, f"unknown section {shown(parts[0])}.", nearest(parts[0], (*known, RESUME)))
    value = parse_yaml(written, where)
    place: dict[str, Any] | list[Any] = sections
    for part in parts[:-1]:
        place = _inside(place, part, where)
    if isinstance(place, list):
        place[_number(place, parts[-1], where)] = value
    else:
        place[parts[-1]] = value


def _inside(place: dict[str, Any] | list[Any], part: str, where: str) -> dict[str, Any] | list[Any]:
    """Return what stands under one part of a dotted key; entries of a list are keys by their numbers."""
    if isinstance(place, list):
        inside = place[_number(place, part, where)]
    else:
        if place.get(part) is None:
            place[part] = {}
        inside = place[part]
    if not isinstance(inside, dict | list):
        raise RecipeError(where, f"{shown(part)} holds no keys.", "Override the whole value.")
    return inside


def _number(place: list[Any], part: str, where: str) -> int:
    if not part.isascii() or not part.isdigit() or int(part) >= len(place):
        what = f"{shown(part)} is no entry of a list of {len(place)}."
        raise RecipeError(where, what, "Count entries from 0, or override the whole value.")
    return int(part)


def check_names(sections: Iterable[str], known: Sequence[str], origin: str) -> None:
    """Raise `RecipeError` where a section is not known; the nearest known one is given."""
    all_known = (*known, DESCRIPTION, RESUME, PLUGINS)
    for key in sections:
        if key not in all_known:
            raise RecipeError(f"{origin}: {key}", "unknown section.", nearest(str(key), all_known))


def section(sections: Mapping[str, Any], key: str, origin: str) -> dict[str, Any]:
    """Return one section; an absent or null one is empty."""
    content = sections.get(key)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(
            f"{origin}: {key}", f"{shown(content)} is not a mapping.", "Write keys and values under it."
        )
    return content


def parsed(cls: type[T], sections: Mapping[str, Any], key: str, origin: str) -> T:
    """Return one section as its dataclass, checked; an error of its own checks gets the place in front.

    Raises:
        RecipeError: An unknown or missing key, or a value that cannot be meant.
    """
    values = checked(cls, section(sections, key, origin), f"{origin}: {key}")
    try:
        return cls(**values)
    except RecipeError:
        raise
    except SparseTrainerError as error:
        # The place is a key of this section, whatever other sections call so.
        said = RecipeError(f"{origin}: {key}.{error.where}", error.what, error.remedy)
        raise said.respelled(spelling_of({key: cls})) from error


def parsed_or_none(cls: type[T], sections: Mapping[str, Any], key: str, origin: str) -> T | None:
    """Return one section as its dataclass; None where it is absent or null."""
    return None if sections.get(key) is None else parsed(cls, sections, key, origin)


def spelling_of(classes: Mapping[str, Any]) -> Spelling:
    """Return how options are written in a recipe: `scope='layer'` of section `prune` is prune.scope: layer.

    Args:
        classes: Section -> dataclass of its options. What stands in several sections keeps its bare name; what stands
            in none is left to who called, as `resume=True` of `run`.
    """
    sections: dict[str, list[str]] = {}
    for key, cls in classes.items():
        for field in fields(cls):
            sections.setdefault(field.name, []).append(key)

    def spell(name: str, value: str | None) -> str:
        places = sections.get(name, ())
        if not places:
            return f"`{name}`" if value is None else f"`{name}={value}`"
        option = f"{places[0]}.{name}" if len(places) == 1 else name
        return option if value is None else f"{option}: {_YAML_WORDS.get(value, value)}"

    return spell


_YAML_WORDS = {"True": "true", "False": "false", "None": "null"}


def blamed(error: SparseTrainerError, origin: str, overrides: Sequence[str]) -> SparseTrainerError:
    """Return an error about a recipe that names the override which is at fault, rather than the file.

    Args:
        origin: Where the recipe was read from: what stands in front of the key in the error's place.
        overrides: As they were given; the last one of a key counts.
    """
    key = error.where.removeprefix(f"{origin}: ")
    for text in reversed(overrides):
        name = text.partition("=")[0]
        if key == name or key.startswith((f"{name}.", f"{name}:")):
            return type(error)(f"override {shown(text)}: {key}", error.what, error.remedy)
    return error


def as_yaml(sections: Sections) -> str:
    """Return sections as YAML that loads to the same recipe."""
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What is written and measured at the end."""

    output_dir: str | None = None
    """Folder of the finished model; default: `pruned` (of a dense run: `model`) in the folder of the run."""
    export: str = "auto"
    """Form of the saved model, by name; auto = native where the shapes allow it, else self-contained."""
    overwrite: bool = False
    """Replace the result of an earlier run; your own files beside it stay."""
    verify: bool = True
    """Reload the result in a new process with nothing but transformers, and compare its predictions."""
    verify_samples: int = 64
    """Examples that are compared."""
    latency_batch_sizes: tuple[int, ...] = (1, 16)
    """Batch sizes of the latency table."""
    latency_sequence_length: int = 128
    """Tokens per sequence of the latency table."""
    latency_rounds: int = 20
    """Timed calls per model and batch size."""
    convert: tuple[str, ...] = ()
    """Other runtimes that the result is written for, beside its folder: gguf, gguf:q8_0, onnx, …"""

    def __post_init__(self) -> None:
        find_export(self.export)
        if self.output_dir == "":
            raise ArgumentError("output_dir", "is empty.", "Name a folder, or leave it out.")
        if not self.latency_batch_sizes:
            raise ArgumentError("latency_batch_sizes", "names no batch size.", "Give e.g. [1, 16].")
        check_counts(
            verify_samples=self.verify_samples,
            latency_batch_sizes=min(self.latency_batch_sizes),
            latency_sequence_length=self.latency_sequence_length,
            latency_rounds=self.latency_rounds,
        )
