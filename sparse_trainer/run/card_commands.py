"""The part of a card that says how its folder is written for other runtimes: only what this model really can be."""

from collections.abc import Collection
from pathlib import Path

from sparse_trainer.convert.base import Conversion, Convertible
from sparse_trainer.convert.folder import find_origin
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.errors import ConversionError, SparseTrainerError
from sparse_trainer.files.writing import write_text
from sparse_trainer.folders.save import CARD_FILE

_TITLE = "## Other runtimes"


def add_commands(folder: Path, written: Collection[str] = ()) -> None:
    """Say in the card of a complete folder which other runtimes it can be written for, and by which commands.

    The part takes the place of an earlier one, at the end of the card.

    Args:
        written: Names in `CONVERSIONS` of the forms that this model was written in already.
    """
    before = (folder / CARD_FILE).read_text(encoding="utf-8")
    card = before.partition(f"\n{_TITLE}\n")[0]
    known = advised_forms(str(folder))
    names = [name for name in CONVERSIONS if name in known or name in written]
    if names:
        parts = "\n".join(_command(name, CONVERSIONS[name]) for name in names)
        card = f"{card}\n{_TITLE}\n\nWhere sparse-trainer is installed:\n\n{parts}"
    if card != before:
        write_text(folder / CARD_FILE, card)


def advised_forms(folder: str) -> tuple[str, ...]:
    """Return the conversions of which it is known beforehand, without weights, that they can hold a model."""
    try:
        origin = find_origin(folder)
    except SparseTrainerError:  # such as one whose class is a user's own
        return ()
    return tuple(name for name, form in CONVERSIONS.items() if _holds(form, origin))


def _holds(form: Conversion, origin: Convertible) -> bool:
    try:
        form.refuse(origin, form.formats[0])
    except ConversionError:
        return False
    return form.is_advised(origin)


def _command(name: str, form: Conversion) -> str:
    place = f"model.{name}" if form.is_file else f"model-{name}"
    install = f'pip install "sparse-trainer[{form.extra}]"\n' if form.extra else ""
    return (
        f"{form.runtime}:\n\n```bash\n{install}sparse-trainer convert this-folder {place} --to {name}\n```\n"
    )
