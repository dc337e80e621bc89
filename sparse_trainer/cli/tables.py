"""Tables as a reader in a terminal sees them."""

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
