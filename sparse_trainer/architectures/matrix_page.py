"""`docs/architectures.md`: a hand-written head, and a table per verdict."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from patchers.units import KINDS
from sparse_trainer.architectures.case import Report
from sparse_trainer.architectures.matrix import MATRIX_FILE, Matrix
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.writing import check_file, write_text

_HEAD = Path(__file__).with_name("architectures_head.md")
_LONGEST = 200
_MOST_PATHS = 3


def page(matrix: Matrix) -> str:
    """Return the page as Markdown."""
    reports = matrix.reports.values()
    passing = [report for report in reports if report.ok]
    failing = [report for report in reports if report.failed]
    unknown = [report for report in reports if report.is_built and report.reason]
    absent = [report for report in reports if not report.is_built]
    parts = [
        _HEAD.read_text(encoding="utf-8").rstrip(),
        f"## Verdicts\n\n{matrix.summary()}",
        _section(
            "Pass every check",
            ("type", "class", "prunable", "checks", "exports", "left alone, notes"),
            ((_code(r), f"`{r.architecture}`", units(r), checks(r), exports(r), remarks(r)) for r in passing),
        ),
        _section(
            "Fail a check",
            ("type", "prunable", "fails", "passes"),
            ((_code(r), units(r), failures(r), checks(r)) for r in failing),
        ),
        _section(
            "Nothing of a known form",
            ("type", "class", "why"),
            ((_code(r), f"`{r.architecture}`", line(r.reason)) for r in unknown),
        ),
        _section(
            "Cannot be built or run here", ("type", "why"), ((_code(r), line(r.reason)) for r in absent)
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def check_checkout(checkout: Path) -> None:
    """Raise where `write_matrix` would: ask before the types are measured, which takes an hour.

    Raises:
        ArgumentError: It is no checkout of the project.
        CheckpointError: Its files cannot be written.
    """
    for path in _places(checkout):
        if not os.path.isdir(path.parent):  # unlike Path.is_dir, no error for a name that no folder can have
            raise ArgumentError("write", f"{path.parent} is no folder.", "Name a checkout of the project.")
        check_file(path)


def write_matrix(matrix: Matrix, checkout: Path) -> None:
    """Write the matrix and the page into a checkout of the project."""
    check_checkout(checkout)
    data, shown = _places(checkout)
    matrix.save(data)
    write_text(shown, page(matrix))


def _places(checkout: Path) -> tuple[Path, Path]:
    return checkout / "sparse_trainer/architectures" / MATRIX_FILE.name, checkout / "docs/architectures.md"


def units(report: Report) -> str:
    """Return the kinds of unit of a type, and the forms they follow."""
    kinds = ", ".join(kind for kind in KINDS if report.units.get(kind))
    return f"{kinds} ({', '.join(report.forms)})"


def checks(report: Report) -> str:
    """Return the names of the checks that hold."""
    return " ".join(report.passed)


def exports(report: Report) -> str:
    """Return the exports that were tried."""
    own = ["self-contained"] if "save" in report.passed else []
    return ", ".join([*own, *(["native"] if "native" in report.passed else [])])


def failures(report: Report) -> str:
    """Return the checks that do not hold, with what came instead."""
    return "; ".join(f"{name}: {line(why)}" for name, why in report.failed.items())


def remarks(report: Report) -> str:
    """Return what is left alone and why, and what else is to be known."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in report.untouched.items():
        by_reason.setdefault(reason, []).append(path)
    told = [f"{_few(paths)}: {line(reason)}" for reason, paths in by_reason.items()]
    if report.unreached:
        told.append(f"not run by the inputs, so not checked: {_few(report.unreached)}")
    return "; ".join([*told, *sorted(report.notes)])


def _few(paths: list[str]) -> str:
    more = f" and {len(paths) - _MOST_PATHS} more" if len(paths) > _MOST_PATHS else ""
    return ", ".join(f"`{path}`" for path in paths[:_MOST_PATHS]) + more


def _section(title: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a heading and a table, or nothing where there are no rows."""
    lines = [_row(cells) for cells in rows]
    if not lines:
        return ""
    rule = "|" + "---|" * len(header)
    return "\n".join([f"### {title} ({len(lines)})", "", _row(header), rule, *lines])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _code(report: Report) -> str:
    return f"`{report.model_type}`"


def line(text: str) -> str:
    """Return one line of bearable length.

    >>> line("Tensor-likes are not close!\\n\\nMismatched `3`")
    "Tensor-likes are not close! Mismatched '3'"
    """
    line = " ".join(text.split()).replace("`", "'")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip()} …"


def _escaped(cell: str) -> str:
    """Return text that Markdown shows as it is; what stands in backticks is so already.

    >>> print(_escaped("`a.*.b`: 3 * 4 | 5"))
    `a.*.b`: 3 \\* 4 / 5
    """
    pieces = cell.replace("|", "/").split("`")
    return "`".join(re.sub(r"[*_<\[]", r"\\\g<0>", p) if i % 2 == 0 else p for i, p in enumerate(pieces))
