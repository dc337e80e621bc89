"""How one kind of matrix is masked, and the words for it."""

from dataclasses import dataclass
from typing import Final

from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.training.mask_selection import METHODS, Method

DISABLED: Final = "disabled"
SHAPES: Final = ("block", "1d", "1d_alt", "joint")
_SPELLINGS: Final = {"sigmoied_threshold": "sigmoid_threshold", "topk": "topK", "default": "block"}


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """How one kind of matrix is masked."""

    method: Method
    shape: str
    """block, 1d, 1d_alt or joint."""
    rows: int
    """Rows of a block; 0 = those of a head."""
    cols: int
    """Columns of a block; 0 = all."""
    initial: float
    """Threshold, or fraction to keep, before pruning starts."""
    final: float


def parse_method(where: str, text: str | None) -> tuple[str, str]:
    """Return method and shape of `method:shape`, in today's spelling.

    >>> parse_method("dense_pruning_method", "sigmoied_threshold:1d_alt")
    ('sigmoid_threshold', '1d_alt')
    """
    method, _, shape = (text or DISABLED).partition(":")
    method, shape = spelled(method), spelled(shape or "block")
    one_of(where, method, (*METHODS, DISABLED))
    one_of(where, shape, SHAPES)
    only = {"1d_alt": "dense", "joint": "attention"}.get(shape)
    if only is not None and not where.startswith(only):
        raise ArgumentError(
            where,
            f"{shape} is for {only} matrices.",
            "Mask attention by blocks; attention_block_rows=0 with attention_block_cols=0 makes them whole heads."
            if only == "dense"
            else "joint means one score for q, k and v.",
        )
    return method, shape


def spelled(name: str) -> str:
    """Return a word of nn_pruning in today's spelling.

    >>> spelled("topk")
    'topK'
    """
    return _SPELLINGS.get(name, name)
