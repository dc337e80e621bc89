"""What a recipe asks to be written for other runtimes, beside the folder of the finished model (`export.convert`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparse_trainer.convert.base import Conversion
from sparse_trainer.convert.folder import check_installed, convert_folder, find_origin, free_place
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.run.options import Tell

WHERE = "export.convert"


@dataclass(frozen=True, kw_only=True)
class AskedConversion:
    """One form for another runtime."""

    to: str
    numbers: str
    """Format of its numbers."""

    @classmethod
    def parse(cls, text: str) -> "AskedConversion":
        """Return what `gguf`, or `gguf:q8_0`, asks for.

        Raises:
            ArgumentError: No such runtime, or no such format.
        """
        to, _, numbers = text.partition(":")
        form = CONVERSIONS[one_of(WHERE, to, CONVERSIONS)]
        return cls(to=to, numbers=one_of(WHERE, numbers or form.formats[0], form.formats))

    @property
    def form(self) -> Conversion:
        """How it is written."""
        return CONVERSIONS[self.to]

    def place(self, folder: Path) -> Path:
        """Return where it goes: beside the folder of the model, under its name."""
        return folder.with_name(
            f"{folder.name}.{self.to}" if self.form.is_file else f"{folder.name}-{self.to}"
        )


def asked_conversions(texts: Sequence[str], folder: Path, source: str | None) -> tuple[AskedConversion, ...]:
    """Return what a recipe asks for, checked before any work.

    Args:
        folder: Where the finished model will lie.
        source: The model that is pruned, where the result has the same head: what cannot hold it whole cannot hold
            what is left.

    Raises:
        ArgumentError: An unknown runtime or format, or a package is missing.
        CheckpointError: Something lies there already.
        ConversionError: The form cannot hold this model.
    """
    asked = tuple(AskedConversion.parse(text) for text in texts)
    if len({one.to for one in asked}) < len(asked):
        raise ArgumentError(
            WHERE, "names a runtime twice.", "Give it once; `sparse-trainer convert` writes others."
        )
    for one in asked:
        check_installed(WHERE, one.form.extra, one.form.packages)
        free_place(one.place(folder), one.form)
    if asked and source is not None:
        origin = find_origin(source)
        for one in asked:
            one.form.refuse(origin, one.numbers)
    return asked


def convert_result(asked: Sequence[AskedConversion], folder: Path, tell: Tell) -> dict[str, Path]:
    """Write a finished model in the forms asked for; return runtime -> place."""
    found = {}
    for one in asked:
        tell(f"converting to {one.to} ({one.numbers})")
        found[one.to], _ = convert_folder(str(folder), one.place(folder), one.to, quantize=one.numbers)
    return found
