"""Heads and KV groups: read an attention module by the table of its form."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from patchers.errors import UnsupportedModelError
from patchers.families import AttentionForm, attention_forms
from patchers.families.exceptions import HEADS_STAY, NEVER_EMPTY, SHARED_CACHE
from patchers.groups import Core, Edit, Select, Slice, TensorSlice
from patchers.layers import LINEAR_TYPES, features, is_linear, linear_at, present
from patchers.parts import Refusal, join
from patchers.sources import config_fields, returned_values

_HEAD_DIMS = (
    "head_dim",
    "attention_head_size",
    "key_value_proj_dim",
    "d_kv",
    "head_size",
    "dim_head",
    "d_head",
)
_HEAD_COUNTS = (
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "n_head",
    "num_query_heads",
    "num_attn_heads",
    "heads",
)
_GROUP_COUNTS = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads")
_HEAD_WIDTHS = (
    "all_head_size", "inner_dim", "split_size", "embed_dim", "attention_size", "hidden_size", "dim", "d_model",
    "projection_size", "q_size", "query_dim", "q_dim", "head_size",
)  # fmt: skip
_GROUP_WIDTHS = ("kv_dim", "kv_size", "key_value_dim")
_RATIOS = ("num_key_value_groups", "n_rep", "kv_repeat")
_PER_HEAD = {
    "sinks": 0, "gate_bias": 0,
    "relative_position_bias_table": 1, "relative_attention_bias.weight": 1, "logit_scale": 0,
    "pos_bias_u": 0, "pos_bias_v": 0, "bias_u": 0, "bias_v": 0, "gru_rel_pos_const": 1, "temperature": 0,
}  # fmt: skip
"""Parameters with one entry per head, and the dimension that runs over heads."""
_INNER_NORMS = ("attn_sub_norm", "inner_attn_ln", "sub_norm", "subln", "attn_ln")
"""Norms between the heads and the output projection."""
_NORMS = {
    "query": ("q_norm", "q_layernorm", "query_norm", "query_layernorm", "norm_q", "q_ln"),
    "key": ("k_norm", "k_layernorm", "key_norm", "key_layernorm", "norm_k", "k_ln"),
}


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What one attention module gives to a group of heads."""

    path: str
    form: str
    units: int
    """KV groups; query heads where one KV head serves all of them."""
    slices: tuple[Slice, ...]
    tensors: tuple[TensorSlice, ...]
    edits: tuple[Edit, ...]
    selects: tuple[Select, ...]
    core: Core | None
    consumer: str
    pins_layer: bool
    """True where other layers need what this module computes, so that its layer cannot go."""


@dataclass(frozen=True)
class _Heads:
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


def attention_form_of(module: nn.Module) -> AttentionForm | None:
    """Return the first form whose parts `module` has, or None."""
    paths = present(module)
    for form in attention_forms():
        needed = [form.output, *(p for p in (form.query, form.key, form.value, form.fused) if p is not None)]
        if not paths.issuperset(needed):
            continue
        if form.marker is None or any(
            form.marker in vars(m) for m in (module, module.get_submodule(form.core))
        ):
            return form
    return None


def read_attention(model: nn.Module, path: str, form: AttentionForm) -> Attention | Refusal:
    """Return the units of an attention module, or why it is left alone.

    Raises:
        UnsupportedModelError: the shapes contradict the config; both numbers are named.
    """
    module = model.get_submodule(path)
    pinned = form.shared_table is not None and form.shared_table in dict(module.named_children())
    if pinned:
        return Refusal(path=path, reason=f"its {form.shared_table} feeds the other layers", pins_layer=True)
    for role in _roles(form):
        part = dict(module.named_modules()).get(role)
        if part is not None and not is_linear(part):
            return Refusal(
                path=join(path, role), reason=f"it is a {type(part).__name__}, no plain linear layer"
            )
    reason = _unsound(module) or _stranger(module, form)
    if reason is not None:
        return Refusal(path=path, reason=reason)
    heads = _count(model, path, form)
    if isinstance(heads, str):
        return Refusal(path=path, reason=heads)
    norms = list(_norm_tensors(module, path, form, heads))
    broken = next((n for n in norms if isinstance(n, str)), None)
    if broken is not None:
        return Refusal(path=path, reason=f"{broken} normalises over all heads, so that no head can go alone")
    slices = _slices(model, path, form, heads)
    tensors = (*(n for n in norms if isinstance(n, TensorSlice)), *_per_head_tensors(module, path, heads))
    return Attention(
        path=path,
        form=form.name,
        units=heads.units,
        slices=slices,
        tensors=tensors,
        edits=tuple(_edits(module, path, heads, slices[-1].width * heads.units)),
        selects=tuple(_selects(path, form, heads)),
        core=_core(module, path, form),
        consumer=join(path, form.output),
        pins_layer=False,
    )


def _roles(form: AttentionForm) -> list[str]:
    return [
        p for p in (form.query, form.key, form.value, form.fused, form.output, *form.extras) if p is not None
    ]


def _unsound(module: nn.Module) -> str | None:
    """Return why the heads of a module hang together, where that is known."""
    for inner in module.modules():
        if type(inner).__name__ in HEADS_STAY:
            return HEADS_STAY[type(inner).__name__]
        if any(vars(inner).get(name) is True for name in SHARED_CACHE):
            return "it shares keys and values with another layer"
        if "conv" in type(inner).__name__.lower():
            return "a convolution in it works across heads"
    return None


def _stranger(module: nn.Module, form: AttentionForm) -> str | None:
    """Return that the module has a linear which the form does not know, else None."""
    known = tuple(_roles(form))
    linears = (path for path, child in module.named_modules() if isinstance(child, LINEAR_TYPES))
    strange = next((p for p in linears if not any(p == r or p.startswith(f"{r}.") for r in known)), None)
    return None if strange is None else f"{strange} is not in the table of its form ({form.name})"


def _count(model: nn.Module, path: str, form: AttentionForm) -> _Heads | str:
    """Return the heads of a module, or why they cannot be told."""
    module = model.get_submodule(path)
    _, inputs = features(linear_at(model, join(path, form.output)))
    head_dim, queries = _first(module, _HEAD_DIMS), _first(module, _HEAD_COUNTS)
    if head_dim is None and queries is None:
        return "it does not say how many heads it has"
    if queries is None or (head_dim is not None and form.fused is None and inputs == queries * head_dim):
        assert head_dim is not None
        queries = _divide(join(path, form.output), inputs, head_dim, "features of a head")
    if queries < 1:
        return "it has no heads"
    width = _divide(join(path, form.output), inputs, queries, "heads")
    if form.fused is not None:
        rows, _ = features(linear_at(model, join(path, form.fused)))
        both = _divide(join(path, form.fused), rows, width, "features of a head") - queries
        if both < 2 or both % 2:
            return f"{form.fused} has {rows} rows, which are not queries, keys and values of {queries} heads"
        groups = both // 2
    else:
        query, key = form.query or "", form.key or ""
        query_rows, _ = features(linear_at(model, join(path, query)))
        key_rows, _ = features(linear_at(model, join(path, key)))
        # A query projection may be twice as wide as its heads: with an output gate in it.
        groups = _first(module, _GROUP_COUNTS) or _divide(
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
            "The weights contradict the config.",
        )
    return _Heads(queries, groups)


def _first(module: nn.Module, names: Iterable[str]) -> int | None:
    """Return the first of these attributes that the module, or one inside it, has as a number."""
    for inner in module.modules():
        for name in names:
            value = vars(inner).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _divide(where: str, size: int, parts: int, what: str) -> int:
    if parts < 1 or size % parts:
        raise UnsupportedModelError(
            where,
            f"{size} features do not divide by {parts} {what}.",
            "Check the config against the weights.",
        )
    return size // parts


def _slices(model: nn.Module, path: str, form: AttentionForm, heads: _Heads) -> tuple[Slice, ...]:
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
                width = _divide(join(path, extra), rows, units, "units")
                producers.append(Slice(path=join(path, extra), axis="out", units=units, width=width))
    _, inputs = features(linear_at(model, join(path, form.output)))
    consumer = Slice(path=join(path, form.output), axis="in", units=units, width=inputs // units)
    return (*producers, consumer)


def _split_slices(model: nn.Module, path: str, form: AttentionForm, heads: _Heads) -> Iterator[Slice]:
    names = [form.query] if heads.by_query else [form.query, form.key, form.value]
    for name in (name for name in names if name is not None):
        where = join(path, name)
        rows, _ = features(linear_at(model, where))
        width = _divide(where, rows, heads.units, "units")
        yield Slice(path=where, axis="out", units=heads.units, width=width, is_value=name == form.value)


def _fused_slices(model: nn.Module, path: str, form: AttentionForm, heads: _Heads) -> Iterator[Slice]:
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


def _norm_tensors(
    module: nn.Module, path: str, form: AttentionForm, heads: _Heads
) -> Iterator[TensorSlice | str]:
    """Yield what must be cut of norms of queries and keys, or the name of one that spans heads."""
    children = {p: m for p, m in module.named_modules() if p}
    yield from (name for name in children if name.rpartition(".")[2] in _INNER_NORMS)
    for role, names in _NORMS.items():
        count = heads.queries if role == "query" else heads.groups
        for name in (n for n in children if n.rpartition(".")[2] in names):
            for leaf, tensor in children[name].named_parameters(recurse=False):
                if tensor.dim() == 2 and tensor.shape[0] == count:
                    if role == "query" or not heads.by_query:
                        yield TensorSlice(
                            name=join(path, name, leaf), dim=0, units=heads.units, width=count // heads.units
                        )
                elif (
                    tensor.dim() == 1 and count > 1 and tensor.numel() == count * _width(module, form, heads)
                ):
                    yield name


def _width(module: nn.Module, form: AttentionForm, heads: _Heads) -> int:
    if form.query is None:
        return features(linear_at(module, form.output))[1] // heads.queries
    return features(linear_at(module, form.query))[0] // heads.queries


def _per_head_tensors(module: nn.Module, path: str, heads: _Heads) -> Iterator[TensorSlice]:
    for name, tensor in module.named_parameters():
        for ending, dim in _PER_HEAD.items():
            matches = name == ending or name.endswith(f".{ending}")
            if matches and dim < tensor.dim() and tensor.shape[dim] == heads.queries:
                yield TensorSlice(name=join(path, name), dim=dim, units=heads.units, width=heads.per_unit)


def _edits(module: nn.Module, path: str, heads: _Heads, width: int) -> Iterator[Edit]:
    """Yield the attributes, here and inside, that count heads, groups or their features.

    Args:
        width: Features of all heads together.
    """
    per_unit = dict.fromkeys(_HEAD_COUNTS, heads.per_unit)
    expected = dict.fromkeys(_HEAD_COUNTS, heads.queries)
    per_unit |= dict.fromkeys(_HEAD_WIDTHS, width // heads.units)
    expected |= dict.fromkeys(_HEAD_WIDTHS, width)
    if heads.by_query:
        per_unit |= dict.fromkeys(_RATIOS, 1)
        expected |= dict.fromkeys(_RATIOS, heads.queries)
    else:
        per_unit |= dict.fromkeys(_GROUP_COUNTS, 1)
        expected |= dict.fromkeys(_GROUP_COUNTS, heads.groups)
        per_unit |= dict.fromkeys(_GROUP_WIDTHS, width // heads.queries)
        expected |= dict.fromkeys(_GROUP_WIDTHS, width * heads.groups // heads.queries)
    for inner, child in module.named_modules():
        if isinstance(child, LINEAR_TYPES):
            continue
        own, config = vars(child), vars(child).get("config")
        kind: Any = type(child)
        read = config_fields(kind) if config is not None else frozenset()
        for name, per in per_unit.items():
            if name in own and own[name] == expected[name]:
                yield Edit(path=join(path, inner), attribute=name, per_unit=per)
            if name in read and getattr(config, name, None) == expected[name]:
                yield Edit(path=join(path, inner), attribute=f"config.{name}", per_unit=per)


def _selects(path: str, form: AttentionForm, heads: _Heads) -> Iterator[Select]:
    for argument, position, dim in form.selects:
        yield Select(
            path=join(path, form.core), argument=argument, position=position, dim=dim, width=heads.per_unit,
            units=heads.units, returned=form.returned,
        )  # fmt: skip


def _core(module: nn.Module, path: str, form: AttentionForm) -> Core | None:
    """Return the module that a no-op can replace, None where its answer is not known."""
    inner = module.get_submodule(form.core) if form.core else module
    outputs = form.core_outputs if form.core_outputs is not None else returned_values(type(inner).forward)
    if type(inner).__name__ in NEVER_EMPTY:
        return None
    if not form.can_be_empty or outputs is None or (not form.core and _adds_residual(inner)):
        return None
    owns_output = form.output.startswith(f"{form.core}.") if form.core else True
    return Core(path=join(path, form.core), outputs=outputs, owns_output=owns_output)


def _adds_residual(module: nn.Module) -> bool:
    """Tell whether the module normalises what it returns, as one does that adds the residual stream itself (ALBERT)."""
    known = {name for names in _NORMS.values() for name in names}
    return any(
        "norm" in type(m).__name__.lower() and name not in known for name, m in module.named_children()
    )
