"""Every text in local files, whatever columns it stands in: what a vocabulary has to hold."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sparse_trainer.data.readers import TABLES, TEXTS, check_data_file, ending, read_table, read_text
from sparse_trainer.errors import DataError, shown


@dataclass(frozen=True, slots=True)
class TextFiles:
    """Local files of text, or tables with text in any column; going through them reads them anew."""

    paths: tuple[Path, ...]

    def check(self) -> None:
        """Raise `DataError` where one cannot be read, or there is none: before anything is loaded."""
        if not self.paths:
            raise DataError("corpus", "names no file.", "Give a local file of text.")
        for path in self.paths:
            check_data_file(path, _place(path), (*TABLES, *TEXTS))

    def __iter__(self) -> Iterator[str]:
        """Yield a file of plain text as one text, and of a table the texts of all rows, also inside lists.

        Raises:
            DataError: A file that cannot be read.
        """
        for path in self.paths:
            if ending(path) in TEXTS:
                yield read_text(path, _place(path))
            else:
                for row in read_table(path, _place(path)):
                    yield from _texts(row)

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by its name; by its path where another one has the same name."""
        names = Counter(path.name for path in self.paths)
        return {
            path.name if names[path.name] == 1 else path.as_posix(): sha256(path.read_bytes()).hexdigest()
            for path in self.paths
        }


def _place(path: Path) -> str:
    return f"corpus {shown(str(path))}"


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
