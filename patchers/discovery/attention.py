"""Heads and KV groups: read an attention module by the table of its form."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from patchers.discovery.findings import ONE_HEAD, Part, Refusal
from patchers.discovery.heads import Heads, count_heads, head_slices, split_evenly
from patchers.discovery.source_code import config_fields, is_called_before, reshapes_to_input, returned_values
from patchers.discovery.tables.exceptions import (
    HEADS_STAY,
    NEVER_EMPTY,
    PER_HEAD_MASK,
    RESHAPES,
    SHARED_CACHE,
)
from patchers.discovery.tables.forms import AttentionForm
from patchers.discovery.tables.names import (
    HEADS_PER_GROUP,
    HEADS_WIDTH,
    KV_HEADS_WIDTH,
    NUM_HEADS,
    NUM_KV_HEADS,
)
from patchers.layers import LINEAR_TYPES, features, is_linear, join, linear_at, present
from patchers.units import ATTENTION, HEADS, Core, Edit, Select, TensorSlice

_PER_HEAD = {
    "sinks": 0, "gate_bias": 0, "softmax_scaling.scale": 0, "softmax_scaling.bias": 0,
    "relative_position_bias_table": 1, "relative_attention_bias.weight": 1, "logit_scale": 0,
    "pos_bias_u": 0, "pos_bias_v": 0, "bias_u": 0, "bias_v": 0, "gru_rel_pos_const": 1, "temperature": 0,
}  # fmt: skip
"""Parameters with one entry per head, and the dimension that runs over heads."""
_PER_FEATURE = ("q_bias", "v_bias")
"""Parameters with one entry per feature of the heads: biases that the fused linear lacks."""
_VALUE_BIAS = "v_bias"
_INNER_NORMS = ("attn_sub_norm", "inner_attn_ln", "sub_norm", "subln", "attn_ln")
"""Norms between the heads and the output projection."""
_NORMS = {
    "query": ("q_norm", "q_layernorm", "query_norm", "query_layernorm", "norm_q", "q_ln"),
    "key": ("k_norm", "k_layernorm", "key_norm", "key_layernorm", "norm_k", "k_ln"),
}


def read_attention(model: nn.Module, path: str, form: AttentionForm) -> Part | Refusal:
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
    heads = count_heads(model, path, form)
    if isinstance(heads, str):
        return Refusal(path=path, reason=heads)
    norms = list(_norm_tensors(module, path, form, heads))
    broken = next((n for n in norms if isinstance(n, str)), None)
    if broken is not None:
        return Refusal(path=path, reason=f"{broken} normalises over all heads, so that no head can go alone")
    slices = head_slices(model, path, form, heads)
    if any(name.rpartition(".")[2] == _VALUE_BIAS for name, _ in module.named_parameters()):
        # Silent rows leave the bias, which no linear knows.
        slices = tuple(replace(s, is_value=False) for s in slices)
    tensors = (*(n for n in norms if isinstance(n, TensorSlice)), *_per_head_tensors(module, path, heads))
    strange = _strange_tensor(module, path, heads, tensors)
    if strange is not None:
        return Refusal(path=path, reason=f"{strange} may have an entry for each head, which no table knows")
    core = _core(module, path, form)
    return Part(
        path=path,
        form=form.name,
        kind=HEADS,
        units=heads.units,
        is_shared=heads.per_unit > 1,
        consumer=join(path, form.output),
        slices=slices,
        tensors=tensors,
        edits=tuple(_edits(module, path, form, heads, slices[-1].width * heads.units)),
        selects=tuple(_selects(module, path, form, heads)),
        core=core,
        min_units=0 if core is not None else 1,
        branch=ATTENTION if core is not None else None,
        entry=None if form.shared else slices[0].path,
        left=tuple(_left(module, path, form, heads)),
    )


def _left(module: nn.Module, path: str, form: AttentionForm, heads: Heads) -> Iterator[Refusal]:
    paths = present(module)
    for name in (name for name in form.shared if name in paths):
        yield Refusal(path=join(path, name), reason="all heads read the latent space that it makes")
    if heads.by_query and form.fused is None:
        for name in (name for name in (form.key, form.value) if name is not None):
            yield Refusal(path=join(path, name), reason=ONE_HEAD)


def _roles(form: AttentionForm) -> list[str]:
    return [
        p for p in (form.query, form.key, form.value, form.fused, form.output, *form.extras) if p is not None
    ]


def _unsound(module: nn.Module) -> str | None:
    """Return why no head of a module can go alone, None where no reason is known."""
    for inner in module.modules():
        if type(inner).__name__ in HEADS_STAY:
            return HEADS_STAY[type(inner).__name__]
        if any(vars(inner).get(name) is True for name in SHARED_CACHE):
            return "it shares keys and values with another layer"
        if reshapes_to_input(type(inner).forward):
            return RESHAPES
        if _was_exchanged(inner):
            return "short inputs made the model exchange it: built from its config it is another one"
        if "conv" in type(inner).__name__.lower() and not isinstance(inner, LINEAR_TYPES):
            return "a convolution in it works across heads"
    return None


def _was_exchanged(module: nn.Module) -> bool:
    """Tell whether a module attends in another way than its config says (BigBird, once an input was short)."""
    config = vars(module).get("config")
    asked = None if config is None else vars(config).get("attention_type")
    return asked is not None and vars(module).get("attention_type", asked) != asked


def _stranger(module: nn.Module, form: AttentionForm) -> str | None:
    """Return that the module has a linear which the form does not know, else None."""
    known = (*_roles(form), *form.shared)
    linears = (path for path, child in module.named_modules() if isinstance(child, LINEAR_TYPES))
    strange = next((p for p in linears if not any(p == r or p.startswith(f"{r}.") for r in known)), None)
    return None if strange is None else f"{strange} is not in the table of its form ({form.name})"


def _norm_tensors(
    module: nn.Module, path: str, form: AttentionForm, heads: Heads
) -> Iterator[TensorSlice | str]:
    """Yield what must be cut of norms of queries and keys, or the name of one that spans heads."""
    children = {p: m for p, m in module.named_modules() if p}
    yield from (name for name in children if name.rpartition(".")[2] in _INNER_NORMS)
    yield from _norms_between(module, form, heads)
    widths = {_width(module, form, heads), features(linear_at(module, form.output))[1] // heads.queries}
    for role, names in _NORMS.items():
        count = heads.queries if role == "query" else heads.groups
        for name in (n for n in children if n.rpartition(".")[2] in names):
            if any(isinstance(inner, nn.ModuleList) for inner in children[name].modules()):
                yield name
            for leaf, tensor in children[name].named_parameters(recurse=False):
                if tensor.dim() == 2 and tensor.shape[0] == count:
                    if role == "query" or not heads.by_query:
                        yield TensorSlice(
                            name=join(path, name, leaf), dim=0, units=heads.units, width=count // heads.units
                        )
                elif tensor.dim() == 1 and count > 1 and tensor.numel() in {count * w for w in widths}:
                    yield name


def _norms_between(module: nn.Module, form: AttentionForm, heads: Heads) -> Iterator[str]:
    """Yield norms over all heads of names of their own: called behind the queries and before the output."""
    first, forward = form.query or form.fused or "", type(module).forward
    wide = {count * _width(module, form, heads) for count in (heads.queries, heads.groups) if count > 1}
    for name, child in module.named_children():
        if is_linear(child) or not any(t.numel() in wide and t.dim() == 1 for t in child.parameters()):
            continue
        if is_called_before(forward, first, name) and is_called_before(forward, name, form.output):
            yield name


def _width(module: nn.Module, form: AttentionForm, heads: Heads) -> int:
    if form.query is None:
        return features(linear_at(module, form.output))[1] // heads.queries
    return features(linear_at(module, form.query))[0] // heads.queries


def _per_head_tensors(module: nn.Module, path: str, heads: Heads) -> Iterator[TensorSlice]:
    for name, tensor in module.named_parameters():
        for ending, dim in _PER_HEAD.items():
            matches = name == ending or name.endswith(f".{ending}")
            if matches and dim < tensor.dim() and tensor.shape[dim] == heads.queries:
                yield TensorSlice(name=join(path, name), dim=dim, units=heads.units, width=heads.per_unit)
        if name.rpartition(".")[2] in _PER_FEATURE and tensor.dim() == 1 and not heads.by_query:
            width = split_evenly(join(path, name), tensor.numel(), heads.units, "units")
            yield TensorSlice(name=join(path, name), dim=0, units=heads.units, width=width)


def _strange_tensor(module: nn.Module, path: str, heads: Heads, known: Iterable[TensorSlice]) -> str | None:
    """Return the name of a parameter that may run over the heads and is in no table, else None."""
    handled = {t.name for t in known}
    norms = {name for names in _NORMS.values() for name in names}
    linears = tuple(f"{name}." for name, child in module.named_modules() if is_linear(child))
    for inner, child in module.named_modules():
        # Parameters inside a linear are those of a gate or an adapter.
        if f"{inner}.".startswith(linears) or inner.rpartition(".")[2] in norms or heads.queries < 2:
            continue
        for leaf, tensor in child.named_parameters(recurse=False):
            if heads.queries in tensor.shape and join(path, inner, leaf) not in handled:
                return join(inner, leaf)
    return None


def _edits(module: nn.Module, path: str, form: AttentionForm, heads: Heads, width: int) -> Iterator[Edit]:
    """Yield the attributes, here and inside, that count heads, groups or their features.

    Args:
        width: Features of all heads together.
    """
    # What each attribute counts, and how much of that goes with one unit.
    counts = dict.fromkeys(NUM_HEADS, (heads.queries, heads.per_unit))
    counts |= dict.fromkeys(HEADS_WIDTH, (width, width // heads.units))
    if heads.by_query:
        counts |= dict.fromkeys(HEADS_PER_GROUP, (heads.queries, 1))
    else:
        head_dim = width // heads.queries
        counts |= dict.fromkeys(NUM_KV_HEADS, (heads.groups, 1))
        counts |= dict.fromkeys(KV_HEADS_WIDTH, (head_dim * heads.groups, head_dim))
    apart = {shared.rpartition(".")[0] for shared in form.shared} - {""}
    for inner, child in module.named_modules():
        if isinstance(child, LINEAR_TYPES) or inner in apart:
            continue
        own, config = vars(child), vars(child).get("config")
        kind: Any = type(child)
        read = config_fields(kind) if config is not None else frozenset()
        for name, (count, per) in counts.items():
            if own.get(name) == count:
                yield Edit(path=join(path, inner), attribute=name, per_unit=per)
            if name in read and getattr(config, name, None) == count:
                yield Edit(path=join(path, inner), attribute=f"config.{name}", per_unit=per)


def _selects(module: nn.Module, path: str, form: AttentionForm, heads: Heads) -> Iterator[Select]:
    for argument, position, dim in (*form.selects, *PER_HEAD_MASK.get(type(module).__name__, ())):
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
