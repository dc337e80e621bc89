"""The grid of a sweep: overrides with several values become runs, one for each combination, with readable names."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sparse_trainer.errors import RecipeError, shown

MOST_VALUE, MOST_NAME = 40, 180
"""Characters of a value in a name, and of a name: file systems take 255 bytes."""
_TOKEN = re.compile(r"""(?<![^\s,:=(\[{])(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*')|[\[({\])},]""")
"""A whole quoted text, which begins where YAML lets one begin; a bracket; or a comma."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """The overrides of one run of a grid."""

    name: str
    """Of its folder: the options that differ between runs, with their values."""
    values: Mapping[str, str]
    """The options that differ between runs -> their values, in YAML as written."""
    overrides: tuple[str, ...]
    """All overrides, as a single run takes them."""


def combinations(texts: Iterable[str]) -> list[Combination]:
    """Return every combination of the values of overrides like `pruning.density=0.25,0.5`; the last one varies fastest.

    >>> for each in combinations(["pruning.density=0.25,0.5", "training.seed=0,1", "training.max_steps=9"]):
    ...     print(each.name, *each.overrides)
    density=0.25_seed=0 pruning.density=0.25 training.seed=0 training.max_steps=9
    density=0.25_seed=1 pruning.density=0.25 training.seed=1 training.max_steps=9
    density=0.5_seed=0 pruning.density=0.5 training.seed=0 training.max_steps=9
    density=0.5_seed=1 pruning.density=0.5 training.seed=1 training.max_steps=9

    Raises:
        RecipeError: No KEY=VALUE, a key that stands twice, an empty value, or nothing that varies.
    """
    grid = _grid(texts)
    varied = [key for key, values in grid.items() if len(values) > 1]
    if not varied:
        raise RecipeError(
            "sweep",
            "no option has several values.",
            "Write e.g. pruning.density=0.25,0.5; one run alone is `sparse-trainer run`.",
        )
    short = _short_keys(varied)
    found = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        found.append(
            Combination(
                name=_cut("_".join(f"{short[key]}={value_name(chosen[key])}" for key in varied), MOST_NAME),
                values={key: chosen[key] for key in varied},
                overrides=tuple(f"{key}={value}" for key, value in chosen.items()),
            )
        )
    return found


def split_values(text: str) -> list[str]:
    """Return the values of a comma list; a comma in brackets or in quotes belongs to a value.

    >>> split_values("0.25,0.5"), split_values("[a, b],[c]"), split_values('"a,b",c')
    (['0.25', '0.5'], ['[a, b]', '[c]'], ['"a,b"', 'c'])
    >>> split_values("{heads: 0.75, channels: 0.5}"), split_values("taylor(order=2, form=vector),wanda")
    (['{heads: 0.75, channels: 0.5}'], ['taylor(order=2, form=vector)', 'wanda'])
    """
    return [text[start:end].strip() for start, end in _spans(text)]


def value_name(text: str) -> str:
    """Return a value as it stands in the name of a folder; where that is not the value itself, a hash tells it apart.

    >>> value_name("0.25"), value_name("[heads, channels]"), value_name("/data/rows.jsonl")
    ('0.25', 'heads-channels-48b096', 'data-rows.jsonl-47ba65')
    """
    clean = re.sub(r"[^\w.+-]+", "-", text).strip("-.")
    if clean == text and len(clean) <= MOST_VALUE:
        return clean
    return f"{clean[-MOST_VALUE:].strip('-.')}-{_digest(text)}".lstrip("-")


def _grid(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the values of every key, in the order in which they were given."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        where = f"override {shown(text)}"
        key, equals, written = text.partition("=")
        if not equals or not key:
            raise RecipeError(where, "is not KEY=VALUE.", "Write e.g. pruning.density=0.25,0.5.")
        if key in grid:
            raise RecipeError(
                where, f"{key} stands here a second time.", f"Give all its values in one list: {key}=A,B."
            )
        values = split_values(written)
        if len(values) > 1 and "" in values:
            raise RecipeError(where, "a value is missing beside a comma.", "Give it: null stands for none.")
        grid[key] = values
    return grid


def _spans(text: str) -> Iterator[tuple[int, int]]:
    depth = start = 0
    for match in _TOKEN.finditer(text):
        if match[0] in "[({":
            depth += 1
        elif match[0] in "])}":
            depth -= 1
        elif match[0] == "," and depth <= 0:
            yield start, match.start()
            start = match.end()
    yield start, len(text)


def _short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return each key's last part, or the whole key where several end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: part if count[part] == 1 else key for key, part in last.items()}


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[:most]}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
