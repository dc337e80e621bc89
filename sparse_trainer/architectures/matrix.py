"""The conformance matrix: which model types can be pruned, as measured. Kept as JSON beside this file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sparse_trainer.architectures.case import Report
from sparse_trainer.errors import ArgumentError

MATRIX_FILE = Path(__file__).with_name("architectures.json")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Verdicts on model types, and the versions they hold for."""

    versions: Mapping[str, str]
    reports: Mapping[str, Report]

    @classmethod
    def load(cls, path: Path = MATRIX_FILE) -> Matrix:
        """Read the matrix that comes with the project, or another one."""
        values = json.loads(path.read_text(encoding="utf-8"))
        reports = {name: report_of({"model_type": name, **v}) for name, v in values["types"].items()}
        return cls(versions=values["versions"], reports=reports)

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON; what is empty is left out."""
        types = {name: _short(report) for name, report in sorted(self.reports.items())}
        return {"versions": dict(self.versions), "types": types}

    def only(self, types: Sequence[str]) -> Matrix:
        """Return the rows of these types; of all, where none is named."""
        for name in types:
            if name not in self.reports:
                raise ArgumentError(
                    name, "is no model type of the matrix.", nearest_types(name, self.reports)
                )
        kept = {name: report for name, report in self.reports.items() if not types or name in types}
        return Matrix(versions=self.versions, reports=kept)

    def summary(self) -> str:
        """Return the counts in one sentence."""
        built = [report for report in self.reports.values() if report.is_built]
        none = sum(bool(report.reason) for report in built)
        passing = sum(report.ok for report in built)
        return (
            f"{passing} of the {len(built)} model types that can be built here pass every check; "
            f"{len(built) - passing - none} fail one, {none} have nothing of a known form. "
            f"{len(self.reports) - len(built)} more cannot be built or run here "
            f"({named(self.versions)})."
        )


def report_of(values: Mapping[str, Any]) -> Report:
    """Return a verdict from its JSON."""
    return Report(**{**values, "notes": set(values.get("notes", ()))})


def nearest_types(name: str, known: Iterable[str]) -> str:
    """Return the nearest names: all of them would fill the screen.

    >>> nearest_types("bret", ["bert", "llama"])
    'Did you mean bert?'
    """
    close = get_close_matches(name, list(known))
    return f"Did you mean {' or '.join(close)}?" if close else "`sparse-trainer architectures` lists all."


def named(versions: Mapping[str, str]) -> str:
    """Return versions in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _short(report: Report) -> dict[str, Any]:
    values = {name: value for name, value in report.to_json().items() if value not in ("", [], {})}
    del values["model_type"]
    if values["is_built"]:
        del values["is_built"]
    return values
