"""How many heads an attention module has, and which rows and columns are theirs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from patchers.discovery.tables.forms import AttentionForm
from patchers.discovery.tables.names import HEAD_DIM, NUM_HEADS, NUM_KV_HEADS
from patchers.errors import UnsupportedModelError
from patchers.layers import features, join, linear_at, present
from patchers.units import Slice


@dataclass(frozen=True)
class Heads:
    """Counts of one module."""

    queries: int
    groups: int

    @property
    def by_query(self) -> bool:
        """Tell whether the unit is a single query head: one KV head serves all, and stays."""
        return self.groups == 1 and self.queries > 1

    @property
    def units(self) -> int:
        """Return the number of units."""
        return self.queries if self.by_query else self.groups

    @property
    def per_unit(self) -> int:
        """Return the query heads of one unit."""
        return self.queries // self.units


def count_heads(model: nn.Module, path: str, form: AttentionForm) -> Heads | str:
    """Return the heads of a module, or why they cannot be told."""
    module = model.get_submodule(path)
    _, inputs = features(linear_at(model, join(path, form.output)))
    head_dim, queries = _first(module, HEAD_DIM), _first(module, NUM_HEADS)
    if head_dim is None and queries is None:
        return "it does not say how many heads it has"
    if queries is None or (head_dim is not None and form.fused is None and inputs == queries * head_dim):
        assert head_dim is not None
        queries = split_evenly(join(path, form.output), inputs, head_dim, "features of a head")
    if queries < 1:
        return "it has no heads"
    width = split_evenly(join(path, form.output), inputs, queries, "heads")
    if form.fused is not None:
        rows, _ = features(linear_at(model, join(path, form.fused)))
        both = split_evenly(join(path, form.fused), rows, width, "features of a head") - queries
        if both < 2 or both % 2:
            return f"{form.fused} has {rows} rows, which are not queries, keys and values of {queries} heads"
        groups = both // 2
    else:
        query, key = form.query or "", form.key or ""
        query_rows, _ = features(linear_at(model, join(path, query)))
        key_rows, _ = features(linear_at(model, join(path, key)))
        # A query projection may be twice as wide as its heads: with an output gate in it.
        counted = queries if form.value is None else _first(module, NUM_KV_HEADS)
        groups = counted or split_evenly(
            join(path, key), key_rows, head_dim or query_rows // queries or 1, "features of a head"
        )
        if key_rows % groups:
            return f"{key} has {key_rows} rows for {groups} KV heads"
        if query_rows % queries:
            return f"{query} has {query_rows} rows for {queries} heads"
    if queries % groups:
        raise UnsupportedModelError(
            path,
            f"{queries} query heads do not divide into {groups} KV groups.",
            "Load weights and config of the same model.",
        )
    return Heads(queries, groups)


def _first(module: nn.Module, names: Iterable[str]) -> int | None:
    """Return the first of these attributes that the module, or one inside it, has as a number."""
    for inner in module.modules():
        for name in names:
            value = vars(inner).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def split_evenly(where: str, size: int, parts: int, what: str) -> int:
    if parts < 1 or size % parts:
        raise UnsupportedModelError(
            where,
            f"{size} features do not divide by {parts} {what}.",
            "Check the config against the weights.",
        )
    return size // parts


def head_slices(model: nn.Module, path: str, form: AttentionForm, heads: Heads) -> tuple[Slice, ...]:
    """Return the slices; the consumer's comes last."""
    if form.fused is not None:
        producers = list(_fused_slices(model, path, form, heads))
    else:
        producers = list(_split_slices(model, path, form, heads))
    units, modules = heads.units, present(model.get_submodule(path))
    for extra in form.extras:
        if extra in modules:
            rows, _ = features(linear_at(model, join(path, extra)))
            is_key = extra in ("key_global", "value_global") and not heads.by_query
            if not (heads.by_query and is_key):
                width = split_evenly(join(path, extra), rows, units, "units")
                producers.append(Slice(path=join(path, extra), axis="out", units=units, width=width))
    _, inputs = features(linear_at(model, join(path, form.output)))
    consumer = Slice(path=join(path, form.output), axis="in", units=units, width=inputs // units)
    return (*producers, consumer)


def _split_slices(model: nn.Module, path: str, form: AttentionForm, heads: Heads) -> Iterator[Slice]:
    names = [form.query] if heads.by_query else [form.query, form.key, form.value]
    for name in (name for name in names if name is not None):
        where = join(path, name)
        rows, _ = features(linear_at(model, where))
        width = split_evenly(where, rows, heads.units, "units")
        yield Slice(
            path=where, axis="out", units=heads.units, width=width, is_value=name == (form.value or form.key)
        )


def _fused_slices(model: nn.Module, path: str, form: AttentionForm, heads: Heads) -> Iterator[Slice]:
    assert form.fused is not None
    where = join(path, form.fused)
    rows, _ = features(linear_at(model, where))
    width = rows // (heads.queries + 2 * heads.groups)
    per, units = heads.per_unit, heads.units
    # One KV head for all is stored behind the queries in every order.
    if form.fused_order == "grouped" and not heads.by_query:
        run = (per + 2) * width
        queries_keys = [range(u * run, u * run + (per + 1) * width) for u in range(units)]
        values = [range(u * run + (per + 1) * width, (u + 1) * run) for u in range(units)]
    else:
        key_start, value_start = heads.queries * width, (heads.queries + heads.groups) * width
        queries_keys, values = [], []
        for u in range(units):
            own = [*range(u * per * width, (u + 1) * per * width)]
            if not heads.by_query:
                own += range(key_start + u * width, key_start + (u + 1) * width)
                values.append(range(value_start + u * width, value_start + (u + 1) * width))
            queries_keys.append(own)  # type: ignore[arg-type]
    yield _indexed(where, queries_keys, is_value=False)
    if values:
        yield _indexed(where, values, is_value=True)


def _indexed(path: str, runs: Iterable[Iterable[int]], *, is_value: bool) -> Slice:
    index = tuple(tuple(run) for run in runs)
    return Slice(path=path, axis="out", units=len(index), width=len(index[0]), index=index, is_value=is_value)
