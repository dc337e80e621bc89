"""One run of a sweep: its folder, its command, and the record of what it measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparse_trainer.files.json_text import read_object
from sparse_trainer.files.writing import write_text
from sparse_trainer.run.sweep.grid import Combination

RECORD_FILE = "run.json"
"""In the folder of a run that is finished: its recipe, and what it measured."""
LOG_FILE = "run.log"
"""In the folder of a run: what it said."""

Begun = Literal["finished", "stopped", "new"]
"""What an earlier sweep has done of a run."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep, whose recipe was checked."""

    combination: Combination
    recipe: str
    """As YAML, overrides included."""
    arguments: tuple[str, ...]
    """Of `sparse-trainer run`, to start it or to go on with it."""
    folder: Path
    """Where it trains, and keeps its log, its record and its result."""
    result: Path
    """Where its model goes."""
    dense: Path | None
    """Where the dense model lies that it fine-tunes first, and shares with the runs that need the same one."""
    begun: Begun

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.combination.name

    @property
    def root(self) -> Path:
        """The folder of the sweep."""
        return self.folder.parent

    @property
    def log(self) -> Path:
        """What it said."""
        return self.folder / LOG_FILE

    def record(self, result: Mapping[str, Any]) -> None:
        """Write down that it is finished, and what it measured."""
        kept = {"recipe": self.recipe, "result": dict(result)}
        write_text(self.folder / RECORD_FILE, json.dumps(kept, indent=2) + "\n")

    def measured(self) -> dict[str, Any]:
        """Return what it measured, of a finished run."""
        result: dict[str, Any] = read_record(self.folder)["result"]
        return result


def read_record(folder: Path) -> dict[str, Any]:
    """Return what the run in a folder has recorded.

    Raises:
        CheckpointError: It cannot be read.
    """
    return read_object(folder / RECORD_FILE, f"Remove {folder}, and the run starts over.", constants=True)
