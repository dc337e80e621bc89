"""Times of a device that we cannot run on, from a CSV file: a phone's, a simulator's."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from patchers.units import KINDS, WIDTH_KINDS
from sparse_trainer.budget.latency.curve import Curve
from sparse_trainer.budget.latency.table import LatencyTable
from sparse_trainer.errors import DataError

COLUMNS: Final = ("kind", "units", "milliseconds")
_FORM: Final = (
    "Write a header `kind,units,milliseconds` and rows like `heads,12,0.8` and `channels,3072,2.1` (what so many add "
    "to a block), `layers,1,0.1` (a block without units) and `rest,1,0.5` (all that lies outside the blocks)."
)


def read_csv(file: Path) -> LatencyTable:
    """Return the table in a CSV file: what units add to any block, by kind; a block without units; the rest.

    Raises:
        DataError: it cannot be read, or does not say all that is needed.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("latency_table", f"{file} cannot be read ({error}).", "Name a CSV file.") from error
    rows = csv.DictReader(io.StringIO(text))
    if rows.fieldnames is None or tuple(name.strip() for name in rows.fieldnames) != COLUMNS:
        raise DataError("latency_table", f"{file} does not begin with {','.join(COLUMNS)}.", _FORM)
    times: dict[str, dict[int, float]] = {}
    for number, row in enumerate(rows, start=2):
        kind, units, seconds = _row(row, f"{file}, line {number}")
        if units in times.setdefault(kind, {}):
            raise DataError(f"{file}, line {number}", f"{units} {kind} stand there twice.", "Drop one.")
        times[kind][units] = seconds
    return _table(times, file)


def _row(row: Mapping[str, str], where: str) -> tuple[str, int, float]:
    kind, units, milliseconds = ((row.get(name) or "").strip() for name in COLUMNS)
    if kind not in (*KINDS, "rest"):
        raise DataError(where, f"{kind!r} is no kind of unit.", f"Give one of {', '.join(KINDS)}, rest.")
    try:
        number, seconds = int(units), float(milliseconds) / 1e3
    except ValueError as error:
        raise DataError(where, f"{units!r} units and {milliseconds!r} ms are no numbers.", _FORM) from error
    if number < 0 or not 0 <= seconds < 1e6:
        raise DataError(where, f"{number} units, {milliseconds} ms: out of range.", _FORM)
    return kind, number, seconds


def _table(times: Mapping[str, Mapping[int, float]], file: Path) -> LatencyTable:
    curves = {kind: found for kind, found in times.items() if kind in WIDTH_KINDS}
    if not curves:
        raise DataError("latency_table", f"{file} says nothing of heads or channels.", _FORM)
    return LatencyTable(
        conditions=None,
        rest=max(times.get("rest", {0: 0.0}).values()),
        blocks={"layers": max(times.get("layers", {0: 0.0}).values())},
        # Without a row for no units, they add nothing then.
        curves={kind: Curve.through({0: 0.0, **found}) for kind, found in curves.items()},
        steps={},
        noise=0.0,
    )
