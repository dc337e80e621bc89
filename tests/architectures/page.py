"""`docs/architectures.md`: a hand-written head, and a table per verdict."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from sparse_trainer.architectures.case import Report
from sparse_trainer.architectures.matrix import MATRIX_FILE, Matrix
from sparse_trainer.architectures.verdicts import checks, exports, failures, one_line, remarks, units
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.writing import check_file, write_text
from tests.architectures.measure import save

_HEAD = Path(__file__).with_name("architectures_head.md")


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
            ((_code(r), f"`{r.architecture}`", one_line(r.reason)) for r in unknown),
        ),
        _section(
            "Cannot be built or run here", ("type", "why"), ((_code(r), one_line(r.reason)) for r in absent)
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
    save(matrix, data)
    write_text(shown, page(matrix))


def _places(checkout: Path) -> tuple[Path, Path]:
    return checkout / "sparse_trainer/architectures" / MATRIX_FILE.name, checkout / "docs/architectures.md"


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


def _escaped(cell: str) -> str:
    """Return text that Markdown shows as it is; what stands in backticks is so already.

    >>> print(_escaped("`a.*.b`: 3 * 4 | 5"))
    `a.*.b`: 3 \\* 4 / 5
    """
    pieces = cell.replace("|", "/").split("`")
    return "`".join(re.sub(r"[*_<\[]", r"\\\g<0>", p) if i % 2 == 0 else p for i, p in enumerate(pieces))
