"""Hidden dimensions: the features of a residual stream as units, where all that reads them stands behind a norm."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from patchers.discovery.findings import ONE_HEAD, Refusal
from patchers.discovery.source_code import attributes_read
from patchers.discovery.tables.forms import StreamForm
from patchers.discovery.tables.names import HIDDEN_SIZE
from patchers.discovery.tables.streams import (
    APART,
    POOLED,
    READERS,
    STREAM_FORMS,
    TRANSFORMS,
    WRITERS,
)
from patchers.layers import LINEAR_TYPES, features, join, linear_at
from patchers.modeling_pruned import is_skip
from patchers.patching.gated_norm import is_plain_norm
from patchers.patching.gates import Gate
from patchers.units import HEADS, HIDDEN, Edit, Group, Slice, Stack, TensorSlice

_Axis = Literal["in", "out"]
_WIDTH = HIDDEN_SIZE[0]
_UNKNOWN = "reads, writes or holds hidden features in a way that no table knows"


@dataclass
class _Stream:
    """What is known of a stream while it is read."""

    model: nn.Module
    stack: str
    form: StreamForm
    width: int
    claimed: set[tuple[str, str]]
    """(path, axis) of what heads and channels own of the linears."""
    single: set[str]
    """Linears with a single KV head, which no unit owns."""
    tables: set[str]
    """Parameters that heads own."""
    first: tuple[str, ...] = ()
    transforms: list[tuple[str, str, str]] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)

    def features(self, path: str, axis: _Axis) -> Slice:
        """Return the slice over an axis of a linear, one feature a unit."""
        return Slice(path=path, axis=axis, units=self.width, width=1)

    def entries(self, name: str, dim: int = 0) -> TensorSlice:
        """Return the slice over a dimension of a parameter, one entry a unit."""
        return TensorSlice(name=name, dim=dim, units=self.width, width=1)


def read_hidden(
    model: nn.Module, stacks: Sequence[Stack], groups: Sequence[Group], refusals: Sequence[Refusal]
) -> Group | Refusal:
    """Return the hidden features of a model as a group, or why they cannot go.

    Args:
        groups: All that was found in the blocks: what of the linears is not theirs runs over the stream.
    """
    owner = stacks[0].path.rpartition(".")[0]
    name = join(owner, "hidden")
    if len(stacks) > 1:
        return Refusal(
            path=name, reason=f"several lists of blocks share it: {', '.join(s.path for s in stacks)}"
        )
    stream = _begin(model, stacks[0], groups, refusals)
    if stream is None:
        return Refusal(path=name, reason="the norms of its blocks follow no known form")
    found = [*_inside(stream, stacks[0]), *_outside(stream), *_missing(stream, owner), *_aware(model)]
    found += _counts(stream, groups)
    broken = next((part for part in found if isinstance(part, Refusal)), None)
    if broken is not None:
        return Refusal(path=name, reason=f"{broken.path} {broken.reason}")
    return Group(
        name=name,
        kind=HIDDEN,
        layer=0,
        stack=stacks[0].path,
        block="",
        num_units=stream.width,
        consumer=stream.norms[0],
        slices=tuple(part for part in found if isinstance(part, Slice)),
        tensors=tuple(part for part in found if isinstance(part, TensorSlice)),
        edits=tuple(part for part in found if isinstance(part, Edit)),
        norms=tuple(stream.norms),
        min_units=1,
    )


_Found = Slice | TensorSlice | Edit | Refusal


def _begin(
    model: nn.Module, stack: Stack, groups: Sequence[Group], refusals: Sequence[Refusal]
) -> _Stream | None:
    present = dict(model.get_submodule(f"{stack.path}.0").named_modules())
    form = next((f for f in STREAM_FORMS if present.keys() >= set(f.norms)), None)
    weight = None if form is None else getattr(present[form.norms[0]], "weight", None)
    if form is None or not isinstance(weight, Tensor):
        return None
    width = weight.numel()
    outside = [path for path, _ in model.named_modules() if not path.startswith(f"{stack.path}.")]
    stream = _Stream(
        model=model, stack=stack.path, form=form, width=width,
        claimed={(s.path, s.axis) for g in groups for s in g.slices},
        single={r.path for r in refusals if r.reason == ONE_HEAD},
        tables={t.name for g in groups if g.kind == HEADS for t in g.tensors},
    )  # fmt: skip
    stream.first = tuple(p for p in outside if _ends(p, form.first) and _writes(model, p) == width)
    for names in TRANSFORMS:
        paths = [next((p for p in outside if _ends(p, (name,))), "") for name in names]
        if all(paths) and features(linear_at(model, paths[0]))[0] == width:
            stream.transforms.append((paths[0], paths[1], paths[2]))
    return stream


def _writes(model: nn.Module, path: str) -> int:
    """Return the number of features that a norm or a linear returns."""
    module = model.get_submodule(path)
    if isinstance(module, LINEAR_TYPES):
        return features(module)[0]
    return sum(parameter.numel() for name, parameter in module.named_parameters() if name == "weight")


def _ends(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _owners(model: nn.Module, below: str | None, but: str | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with tensors of their own, those of gates left out."""
    ours: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if isinstance(module, Gate):
            ours = (*ours, path)
        if path.startswith(ours or ("\0",)) or not (module._parameters or module._buffers):
            continue
        if (below is None or path.startswith(below)) and (but is None or not path.startswith(but)):
            yield path, module


def _inside(stream: _Stream, stack: Stack) -> Iterator[_Found]:
    """Yield what the blocks hold of the stream."""
    for layer in range(stack.size):
        block = f"{stack.path}.{layer}"
        norms = {join(block, name) for name in stream.form.norms}
        for path, module in _owners(stream.model, f"{block}."):
            if isinstance(module, LINEAR_TYPES):
                yield from _linear(stream, path)
            elif path in norms:
                norms.discard(path)
                yield from _norm(stream, path)
            elif is_skip(module):
                yield from _no_op(stream, path)
            else:
                yield from _strange(stream, path, module)
        for path, module in stream.model.get_submodule(block).named_modules():
            if is_skip(module) and not (module._parameters or module._buffers):
                yield from _no_op(stream, join(block, path))
        yield from (Refusal(path=path, reason="is missing") for path in norms)


def _linear(stream: _Stream, path: str) -> Iterator[_Found]:
    """Yield the axis that no heads or channels own: it must run over the stream."""
    outputs, inputs = features(linear_at(stream.model, path))
    sizes: dict[_Axis, int] = {"out": outputs, "in": inputs}
    owned = {axis for axis in sizes if (path, axis) in stream.claimed or sizes[axis] == 0}
    if path in stream.single:
        owned = {"out"}
    left = [axis for axis in sizes if axis not in owned]
    if len(left) != 1 or sizes[left[0]] != stream.width:
        yield Refusal(path=path, reason=_UNKNOWN)
    else:
        yield stream.features(path, left[0])


def _norm(stream: _Stream, path: str) -> Iterator[_Found]:
    module = stream.model.get_submodule(path)
    if not is_plain_norm(module) or _writes(stream.model, path) != stream.width:
        kind = type(module).__name__
        yield Refusal(
            path=path, reason=f"is a {kind}, and no LayerNorm or RMSNorm over {stream.width} features"
        )
        return
    stream.norms.append(path)
    for leaf, _ in module.named_parameters(recurse=False):
        yield stream.entries(join(path, leaf))


def _no_op(stream: _Stream, path: str) -> Iterator[_Found]:
    """Yield what a no-op, in the place of an attention without heads, adds to the stream."""
    module = stream.model.get_submodule(path)
    if vars(module).get("width") == stream.width:
        yield Edit(path=path, attribute="width", per_unit=1)
    if module._parameters.get("bias") is not None:
        yield stream.entries(join(path, "bias"))


def _strange(stream: _Stream, path: str, module: nn.Module) -> Iterator[_Found]:
    for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        name = join(path, leaf)
        if tensor.is_floating_point() and stream.width in tensor.shape and name not in stream.tables:
            yield Refusal(path=name, reason=_UNKNOWN)


def _outside(stream: _Stream) -> Iterator[_Found]:
    """Yield what stands around the blocks: embeddings, norms, task heads."""
    beside = {join(stream.stack.rpartition(".")[0], name) for name in stream.form.last}
    norms = {*stream.first, *beside, *(norm for _, norm, _ in stream.transforms)}
    for path, module in _owners(stream.model, None, but=f"{stream.stack}."):
        if isinstance(module, LINEAR_TYPES):
            yield from _head(stream, path)
        elif path in norms:
            yield from _norm(stream, path)
        elif isinstance(module, nn.Embedding):
            yield from _embedding(stream, path, module)
        else:
            yield from _strange(stream, path, module)


def _embedding(stream: _Stream, path: str, module: nn.Embedding) -> Iterator[_Found]:
    if module.embedding_dim != stream.width:
        return
    if type(module) is not nn.Embedding or not _ends(path, WRITERS):
        yield Refusal(path=path, reason=f"({type(module).__name__}) {_UNKNOWN}")
    else:
        yield stream.entries(join(path, "weight"), dim=1)


def _head(stream: _Stream, path: str) -> Iterator[_Found]:
    """Yield the axes of a linear outside the blocks that run over the stream."""
    outputs, inputs = features(linear_at(stream.model, path))
    axes: list[_Axis] = []
    if path in stream.first:
        stream.norms.append(path)
        axes = ["out"]
    elif any(path == dense for dense, _, _ in stream.transforms):
        axes = ["out", "in"]
    elif any(path == decoder for _, _, decoder in stream.transforms):
        axes = ["in"]
    elif _ends(path, APART) or (path == POOLED[0] and _has(stream.model, POOLED[1])):
        return
    elif _ends(path, READERS):
        axes = ["in"]
    elif stream.width not in (outputs, inputs):
        return
    sizes: dict[_Axis, int] = {"out": outputs, "in": inputs}
    if not axes or any(sizes[axis] != stream.width for axis in axes):
        yield Refusal(path=path, reason=_UNKNOWN)
    yield from (stream.features(path, axis) for axis in axes)


def _has(model: nn.Module, names: Iterable[str]) -> bool:
    return any(_ends(path, names) for path, _ in model.named_modules())


def _missing(stream: _Stream, owner: str) -> Iterator[Refusal]:
    """Yield what must stand before the first reader, or before the last one, and does not."""
    form = stream.form
    if form.first and not stream.first:
        yield Refusal(path=f"{stream.stack}.0", reason="reads the embeddings without a norm in between")
    for name in form.last:
        if join(owner, name) not in stream.norms:
            yield Refusal(
                path=join(owner, name), reason="is missing: heads would read the stream without a norm"
            )


def _counts(stream: _Stream, groups: Sequence[Group]) -> Iterator[Edit]:
    """Yield the attributes that repeat the number of hidden features; where heads own one it counts theirs."""
    owned = {(edit.path, edit.attribute) for g in groups for edit in g.edits}
    for path, module in stream.model.named_modules():
        if vars(module).get(_WIDTH) == stream.width and (path, _WIDTH) not in owned:
            yield Edit(path=path, attribute=_WIDTH, per_unit=1)


def _aware(model: nn.Module) -> Iterator[Refusal]:
    """Yield the modules whose forward pass depends on the number of hidden features."""
    for path, module in model.named_modules():
        read = attributes_read(type(module).forward)
        name = next((name for name in HIDDEN_SIZE if name in read), None)
        if name is not None:
            yield Refusal(path=path or type(module).__name__, reason=f"reads {name} when it runs")
