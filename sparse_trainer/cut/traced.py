"""Follow tensors through a cut without their numbers: where each one came from, and what of it was kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Shape legend: K = kept entries.


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a cut took of one tensor."""

    origin: str
    """Name of the tensor in the model before the cut."""
    kept: Mapping[int, Tensor] = field(default_factory=dict)
    """Entries that were kept, in order, by dimension, shape [K]; whole dimensions are left out."""
    zeroed: bool = False

    def narrowed(self, dim: int, index_K: Tensor) -> "Piece":
        """Return the piece with only these entries of one dimension."""
        before = self.kept.get(dim)
        return replace(self, kept={**self.kept, dim: index_K if before is None else before[index_K]})

    def transposed(self) -> "Piece":
        """Return the piece of the transposed matrix."""
        return replace(self, kept={1 - dim: index_K for dim, index_K in self.kept.items()})

    def take(self, whole: Tensor) -> Tensor:
        """Return the piece of the tensor that holds the numbers.

        >>> Piece(origin="w", kept={0: torch.tensor([1])}).take(torch.arange(4).view(2, 2))
        tensor([[2, 3]])
        """
        for dim, index_K in sorted(self.kept.items()):
            whole = _taken(whole, dim, index_K)
        return torch.zeros_like(whole) if self.zeroed else whole


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _taken(whole: Tensor, dim: int, index_K: Tensor) -> Tensor:
    if dim == 0 or dim < whole.dim() - 1:
        return whole.index_select(dim, index_K)
    # Along rows numpy copies entries twice as fast; it knows no bfloat16, but entries need only be copied.
    numbers = whole.contiguous().view(_INTEGERS[whole.element_size()]).numpy()
    return torch.from_numpy(numbers.take(index_K.numpy(), axis=dim)).view(whole.dtype)


class Traced(Tensor):
    """A tensor of one number, repeated: it has shape and dtype, takes no memory, and remembers how it was cut."""

    piece: Piece

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run what needs no numbers, and write down what surgery does."""
        source = args[0] if args else None
        with torch._C.DisableTorchFunctionSubclass():
            if not isinstance(source, Traced):
                return func(*args, **(kwargs or {}))
            if func is Tensor.index_select:
                dim, index_K = args[1:]
                shape = [*source.shape[:dim], len(index_K), *source.shape[dim + 1 :]]
                return _hollow(shape, source.dtype, source.piece.narrowed(dim, index_K))
            if func is Tensor.zero_:
                source.piece = replace(source.piece, zeroed=True)
                return source
            if func is Tensor.contiguous:
                return source
            result = func(*args, **(kwargs or {}))
            if func is Tensor.detach:
                return _wrapped(result, source.piece)
            if func == Tensor.T.__get__:  # type: ignore[attr-defined]
                return _wrapped(result, source.piece.transposed())
            return result


def _hollow(shape: Sequence[int], dtype: torch.dtype, piece: Piece) -> Traced:
    return _wrapped(torch.zeros((), dtype=dtype).expand(tuple(shape)), piece)


def _wrapped(tensor: Tensor, piece: Piece) -> Traced:
    traced = tensor.as_subclass(Traced)
    traced.piece = piece
    return traced


def trace(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, str]:
    """Replace every tensor of a model by one that remembers how it is cut.

    Args:
        dtype: Of floating tensors; default: their own.

    Returns:
        The name that pieces use, by every name in the state dict: tied tensors have several.
    """
    state = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    traced: dict[int, Tensor] = {}
    for module in model.modules():
        for entries in (module._parameters, module._buffers):
            for leaf, tensor in entries.items():
                if tensor is not None and id(tensor) in first:
                    if id(tensor) not in traced:
                        traced[id(tensor)] = _like(tensor, first[id(tensor)], dtype)
                    entries[leaf] = traced[id(tensor)]  # type: ignore[assignment]
    return {name: first[id(tensor)] for name, tensor in state.items()}


def _like(tensor: Tensor, name: str, dtype: torch.dtype | None) -> Tensor:
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    hollow = _hollow(tensor.shape, kind, Piece(origin=name))
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(hollow, requires_grad=tensor.requires_grad) if is_parameter else hollow


def pieces(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors that a folder of a traced model holds, by name; of tied ones, one."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    tied, unsaved = set(model.all_tied_weights_keys), set(model._keys_to_ignore_on_save or [])
    kept = (next((name for name in same if name not in tied), same[0]) for same in names.values())
    return {name: state[name] for name in kept if name not in unsaved}
