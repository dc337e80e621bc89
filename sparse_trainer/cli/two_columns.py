"""Two columns of plain text, for lists that are printed before anything that could draw them is imported."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence


def two_columns(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield lines of names with what is said of them, folded to the width of the terminal."""
    left = max(len(name) for name, _ in rows) + 4
    width = max(shutil.get_terminal_size().columns - left, 30)
    for name, text in rows:
        first, *others = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
        yield f"  {name:<{left - 2}}{first}".rstrip()
        yield from (" " * left + line for line in others)
