"""Measure the matrix anew: tiny models, in processes of their own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from sparse_trainer.architectures.case import Report
from sparse_trainer.architectures.matrix import Matrix, named, nearest_types, report_of
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.writing import write_text
from tests.architectures.tiny import model_types

_WORKER = "tests.architectures.worker"
_BATCH = 40


def installed() -> dict[str, str]:
    """Return the versions that verdicts depend on."""
    return {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}


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
                name, "is no model type that can be built from a config.", nearest_types(name, model_types())
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


def save(matrix: Matrix, path: Path) -> None:
    """Write the JSON, a line per type."""
    values = matrix.to_json()
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in values["types"].items())
    write_text(path, f'{{\n "versions": {json.dumps(values["versions"])},\n "types": {{\n{rows}\n }}\n}}\n')


def merged(older: Matrix, newer: Matrix) -> Matrix:
    """Return the rows of a newer matrix, and those of the older one that it lacks.

    Raises:
        ArgumentError: some rows are of the older matrix, and their versions are others.
    """
    if older.reports.keys() <= newer.reports.keys():
        return newer
    if older.versions != newer.versions:
        raise ArgumentError(
            "architectures",
            f"the other types were checked with {named(older.versions)}, these with {named(newer.versions)}.",
            "Check all types.",
        )
    return Matrix(versions=newer.versions, reports={**older.reports, **newer.reports})
