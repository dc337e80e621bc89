"""Read YAML that nobody here wrote: one typed error with file and line, and no document that grows while it is read."""

import copy
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sparse_trainer.errors import RecipeError

MOST_BYTES = 256 * 1024
MOST_NODES = 10_000
"""Values that a document may hold, those that aliases repeat counted each time."""
MOST_DEPTH = 30
_MERGE = "tag:yaml.org,2002:merge"
_INT64 = 2**63


def read_yaml(path: Path) -> object:
    """Return the content of a file.

    Raises:
        RecipeError: It cannot be read, is no YAML, or holds a value that cannot be meant; names file and line.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecipeError(str(path), f"is larger than {MOST_BYTES} bytes.", "Name a file with a recipe.")
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            str(path), f"cannot be read as YAML: {error}.", "Give a file of UTF-8 text."
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> object:
    """Return the value that a text means.

    Args:
        where: Its place, for messages.

    Raises:
        RecipeError: As `read_yaml`.

    >>> parse_yaml("[1, 2.5, null]", "override")
    [1, 2.5, None]
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = where if mark is None else f"{where}, line {mark.line + 1}"
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(place, f"{what}.", "Correct the value, or put it in quotes.") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise RecipeError(
            f"{where}, line {line}", "holds a character that YAML does not allow.", "Take it out."
        ) from error


class _Loader(yaml.SafeLoader):
    """SafeLoader in which every fault of a document is a `MarkedYAMLError`, and whose work is bounded.

    PyYAML shares what an alias repeats, so that a short text can stand for any number of values. Here an alias is a
    copy, and counts.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise yaml.constructor.ConstructorError(None, None, "nested too deeply", event.start_mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            self._count(node, event.start_mark)
            return copy.deepcopy(node)
        self._nodes += 1
        return node

    def _count(self, node: Any, mark: Any) -> None:
        """Count what an alias repeats, before it is copied."""
        if node.end_mark is None:
            raise yaml.constructor.ConstructorError(None, None, "an alias inside what it stands for", mark)
        waiting = [node]
        while waiting:
            self._nodes += 1
            if self._nodes > MOST_NODES:
                problem = f"aliases repeat more than {MOST_NODES} values"
                raise yaml.constructor.ConstructorError(None, None, problem, mark)
            repeated = waiting.pop()
            if isinstance(repeated, yaml.SequenceNode):
                waiting += repeated.value
            elif isinstance(repeated, yaml.MappingNode):
                waiting += [part for pair in repeated.value for part in pair]

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            # What PyYAML's own constructors let through: `!!bool maybe`, 2001-99-99, a number of 5000 digits.
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"is no {kind}", node.start_mark) from error
        problem = _problem(value)
        if problem is not None:
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key that is no single value"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            value = key.value if key.tag == _MERGE else self.construct_object(key)
            if value in seen:
                problem = f"the key {str(value)[:40]!r} stands here a second time"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(value)
        return super().construct_mapping(node, deep)


def _problem(value: object) -> str | None:
    """Return why no option can mean a value, None where one can."""
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return "a whole number beyond 64 bits"
    if isinstance(value, str) and "\0" in value:
        return "a text with the character NUL"
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return "a text that is no Unicode"
    return None
