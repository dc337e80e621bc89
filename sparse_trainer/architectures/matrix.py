"""The conformance matrix: which model types can be pruned, as measured. Kept as JSON beside this file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import transformers

from sparse_trainer.architectures.case import Report
from sparse_trainer.architectures.tiny import model_types
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.writing import write_text

MATRIX_FILE = Path(__file__).with_name("architectures.json")
_WORKER = "sparse_trainer.architectures.worker"
_BATCH = 40


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

    def save(self, path: Path) -> None:
        """Write the JSON, a line per type."""
        values = self.to_json()
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in values["types"].items())
        write_text(
            path, f'{{\n "versions": {json.dumps(values["versions"])},\n "types": {{\n{rows}\n }}\n}}\n'
        )

    def only(self, types: Sequence[str]) -> Matrix:
        """Return the rows of these types; of all, where none is named."""
        for name in types:
            if name not in self.reports:
                raise ArgumentError(name, "is no model type of the matrix.", _remedy(name, self.reports))
        kept = {name: report for name, report in self.reports.items() if not types or name in types}
        return Matrix(versions=self.versions, reports=kept)

    def merged(self, newer: Matrix) -> Matrix:
        """Return the rows of a newer matrix, and those of this one that it lacks.

        Raises:
            ArgumentError: some rows are of this matrix, and their versions are others.
        """
        if self.reports.keys() <= newer.reports.keys():
            return newer
        if self.versions != newer.versions:
            raise ArgumentError(
                "architectures",
                f"the other types were checked with {_named(self.versions)}, these with {_named(newer.versions)}.",
                "Check all types.",
            )
        return Matrix(versions=newer.versions, reports={**self.reports, **newer.reports})

    def summary(self) -> str:
        """Return the counts in one sentence."""
        built = [report for report in self.reports.values() if report.is_built]
        none = sum(bool(report.reason) for report in built)
        passing = sum(report.ok for report in built)
        return (
            f"{passing} of the {len(built)} model types that can be built here pass every check; "
            f"{len(built) - passing - none} fail one, {none} have nothing of a known form. "
            f"{len(self.reports) - len(built)} more cannot be built or run here "
            f"({_named(self.versions)})."
        )


def installed() -> dict[str, str]:
    """Return the versions that verdicts depend on."""
    return {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}


def report_of(values: Mapping[str, Any]) -> Report:
    """Return a verdict from its JSON."""
    return Report(**{**values, "notes": set(values.get("notes", ()))})


def rerun(
    types: Sequence[str] = (), draft: Path | None = None, tell: Callable[[str], None] | None = None
) -> Matrix:
    """Check tiny models of these types, default all, in processes of their own; load what was cut in further ones.

    Args:
        draft: Takes a JSON line per verdict as they come; types that are in it are not checked again.
        tell: Is told of the progress.
    """
    drafted = {} if draft is None else _drafted(draft)
    wanted = list(types) or list(model_types())
    for name in wanted:
        if name not in model_types():
            raise ArgumentError(
                name, "is no model type that can be built from a config.", _remedy(name, model_types())
            )
    found = {name: report_of(drafted[name]) for name in wanted if name in drafted}
    while left := [name for name in wanted if name not in found]:
        done = _run_batch(left[:_BATCH])
        if draft is not None:
            with draft.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps([name, r.to_json()]) + "\n" for name, r in done.items())
        found |= done
        if tell is not None:
            passing = sum(report.ok for report in found.values())
            tell(f"{len(found)} of {len(wanted)} types checked, {passing} pass")
    return Matrix(versions=installed(), reports={name: found[name] for name in wanted})


def _drafted(draft: Path) -> dict[str, Any]:
    """Return the verdicts in a draft; none where it is still to be written.

    Raises:
        ArgumentError: It cannot be written, or holds something else.
    """
    if os.path.exists(draft) and not os.path.isfile(draft):
        raise ArgumentError("draft", f"{draft} is no file.", "Name a file.")
    if not os.path.isdir(draft.parent):
        raise ArgumentError(
            "draft", f"{draft.parent} is no folder.", "Name a file in a folder that is there."
        )
    try:
        return {name: report_of(values) and values for name, values in _answers(draft).items()}
    except (OSError, ValueError, TypeError) as error:
        raise ArgumentError("draft", f"{draft} holds no verdicts ({error}).", "Name another file.") from error


def _run_batch(types: Sequence[str]) -> dict[str, Report]:
    """Return the verdicts on a few types: all, or those up to one that ends the process."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        answers, fate = _in_process("check", folder, types)
        found = {name: report_of(values) for name, values in answers.items()}
        if len(found) < len(types):
            culprit = types[len(found)]
            found[culprit] = Report(model_type=culprit, failed={"process": fate})
        loadable = [name for name, report in found.items() if "save" in report.passed]
        while loadable:
            loaded, fate = _in_process("reload", folder, loadable)
            for name, reason in loaded.items():
                _judge(found[name], reason)
            loadable = loadable[len(loaded) :]
            if loadable:
                _judge(found[loadable.pop(0)], fate)
    return found


def _judge(report: Report, reason: str) -> None:
    """Enter the check of a fresh process."""
    if reason:
        report.failed["reload"] = reason
    else:
        report.passed.append("reload")


def _in_process(job: str, folder: Path, types: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the answers of a worker in the order of types, and how it ended."""
    answers = folder / f"{job}.jsonl"
    answers.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", _WORKER, job, str(answers), str(folder), *types],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return _answers(answers), f"its process ended with code {done.returncode}: {last[0][:200]}"


def _answers(file: Path) -> dict[str, Any]:
    """Return the complete lines of a file of answers; one that an interruption cut short is left out."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    lines: Iterable[str] = (line for line in text.splitlines(keepends=True) if line.endswith("\n"))
    return dict(json.loads(line) for line in lines)


def _remedy(name: str, known: Iterable[str]) -> str:
    """Return the nearest names: all of them would fill the screen.

    >>> _remedy("bret", ["bert", "llama"])
    'Did you mean bert?'
    """
    close = get_close_matches(name, list(known))
    return f"Did you mean {' or '.join(close)}?" if close else "`sparse-trainer architectures` lists all."


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _short(report: Report) -> dict[str, Any]:
    values = {name: value for name, value in report.to_json().items() if value not in ("", [], {})}
    del values["model_type"]
    if values["is_built"]:
        del values["is_built"]
    return values
