"""Tables as a reader in a terminal sees them."""

import itertools
from collections.abc import Sequence

from rich.table import Table


def table(rows: Sequence[Sequence[str]], title: str | None, justify: str = "right") -> Table:
    """Return a rich table; the first row is the header, the first column stands left."""
    shown = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if number and justify == "right" else "left", overflow="fold")
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


def joined_rows(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows in which those that differ in one number of their names alone are one row, as of equal layers.

    >>> joined_rows([["layer.0.ffn", "8"], ["layer.1.ffn", "8"], ["layer.2.ffn", "6"], ["layer.3.ffn", "8"]])
    [['layer.0-1,3.ffn', '8'], ['layer.2.ffn', '6']]
    """
    found = [(tuple(row[0].split(".")), tuple(row[1:])) for row in rows]
    for place in range(max((len(words) for words, _ in found), default=0)):
        alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
        for words, cells in found:
            number = words[place] if place < len(words) else ""
            key = ((*words[:place], "", *words[place + 1 :]), cells) if number.isdigit() else (words, cells)
            alike.setdefault(key, []).extend([int(number)] if number.isdigit() else [])
        found = [
            ((*words[:place], ranges(numbers), *words[place + 1 :]) if numbers else words, cells)
            for (words, cells), numbers in alike.items()
        ]
    return [[".".join(words), *cells] for words, cells in found]


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers that rise, as a reader writes them.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs = [
        [numbers[place] for place, _ in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
