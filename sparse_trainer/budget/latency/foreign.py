"""Times of a device that we cannot run on, from a CSV file: a phone's, a simulator's."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from patchers.units import LAYERS, WIDTH_KINDS
from sparse_trainer.budget.latency.curve import Curve
from sparse_trainer.budget.latency.table import LatencyTable
from sparse_trainer.errors import DataError

COLUMNS: Final = ("kind", "units", "milliseconds")
_REST: Final = "rest"
_WITHOUT_UNITS: Final = {LAYERS: "a block without units", _REST: "all that lies outside the blocks"}
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
    known = (*WIDTH_KINDS, *_WITHOUT_UNITS)
    if kind not in known:
        raise DataError(where, f"{kind!r} is nothing whose time is read.", f"Give one of {', '.join(known)}.")
    try:
        number, seconds = int(units), float(milliseconds) / 1e3
    except ValueError as error:
        raise DataError(where, f"{units!r} units and {milliseconds!r} ms are no numbers.", _FORM) from error
    if number < 0 or not 0 <= seconds < 1e6:
        raise DataError(where, f"{number} units, {milliseconds} ms: out of range.", _FORM)
    if kind in _WITHOUT_UNITS and number != 1:
        told = f"{kind} are one time, that of {_WITHOUT_UNITS[kind]}; {number} of them are not read."
        raise DataError(where, told, f"Give one row, {kind},1,{milliseconds}.")
    if number == 0 and seconds > 0:
        told = f"no {kind} cannot add {milliseconds} ms: times are what units add to a block."
        raise DataError(where, told, "Add it to `layers`, a block without units, and take it off here.")
    return kind, number, seconds


def _table(times: Mapping[str, Mapping[int, float]], file: Path) -> LatencyTable:
    curves = {kind: found for kind, found in times.items() if kind in WIDTH_KINDS}
    if not curves:
        raise DataError("latency_table", f"{file} says nothing of heads or channels.", _FORM)
    for kind, what in _WITHOUT_UNITS.items():
        if kind not in times:
            told = f"{file} says nothing of {kind}: {what}."
            raise DataError("latency_table", told, f"Add a row, {kind},1,0 where that takes no time.")
    return LatencyTable(
        conditions=None,
        rest=times[_REST][1],
        blocks={LAYERS: times[LAYERS][1]},
        # Without a row for no units, they add nothing then.
        curves={kind: Curve.through({0: 0.0, **found}) for kind, found in curves.items()},
        steps={},
        noise=0.0,
    )
