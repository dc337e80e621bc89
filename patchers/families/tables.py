"""The vocabulary of a family: module paths relative to a block. Tables only, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class AttentionTable:
    """Where the heads of a block live."""

    queries: tuple[str, ...]
    """Producers that have one run of head_dim rows per head, besides the values. Absent ones are skipped."""
    value: str
    output: str
    core: str
    """Module that computes attention."""
    core_outputs: int = 2
    core_owns_output: bool = False
    num_heads: str = "num_attention_heads"
    """Attribute of `core` that counts the heads."""
    all_head_size: str | None = "all_head_size"
    """Attribute of `core` that counts the features of all heads."""
    selects: tuple[tuple[str, int, int], ...] = ()
    """Per-head arguments of `core`: (name, positional index, dimension)."""


@dataclass(frozen=True, kw_only=True)
class FfnTable:
    """Where the channels of a block live."""

    up: tuple[str, ...]
    """Producers: one row per channel."""
    down: str
    """Consumer: one column per channel."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A way to name the parts of a block, shared by every model type that follows it."""

    name: str
    attention: AttentionTable | None
    ffn: FfnTable | None
    config_keys: Mapping[str, str] = field(
        default_factory=lambda: {
            "heads": "num_attention_heads",
            "channels": "intermediate_size",
            "layers": "num_hidden_layers",
        }
    )
    pins_first_layer: str | None = None
    """Module beside the list of blocks whose presence ties it to block 0 (a convolution after it)."""
