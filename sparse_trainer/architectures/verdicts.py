"""What a verdict says of a model type, cell by cell."""

from patchers.units import KINDS
from sparse_trainer.architectures.case import Report

_LONGEST = 200
_MOST_PATHS = 3


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
    return "; ".join(f"{name}: {one_line(why)}" for name, why in report.failed.items())


def remarks(report: Report) -> str:
    """Return what is left alone and why, and what else is to be known."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in report.untouched.items():
        by_reason.setdefault(reason, []).append(path)
    told = [f"{_few(paths)}: {one_line(reason)}" for reason, paths in by_reason.items()]
    if report.unreached:
        told.append(f"not run by the inputs, so not checked: {_few(report.unreached)}")
    return "; ".join([*told, *sorted(report.notes)])


def _few(paths: list[str]) -> str:
    more = f" and {len(paths) - _MOST_PATHS} more" if len(paths) > _MOST_PATHS else ""
    return ", ".join(f"`{path}`" for path in paths[:_MOST_PATHS]) + more


def one_line(text: str) -> str:
    """Return one line of bearable length.

    >>> one_line("Tensor-likes are not close!\\n\\nMismatched `3`")
    "Tensor-likes are not close! Mismatched '3'"
    """
    line = " ".join(text.split()).replace("`", "'")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip()} …"
