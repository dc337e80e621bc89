"""Model types that llama.cpp runs under an architecture of its own, and what it calls their parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedConfig, PreTrainedModel

from sparse_trainer.errors import ConversionError

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
_FOUR_NORMS = {
    **_BLOCK,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How models of one type are written."""

    even: str
    """Architecture of llama.cpp where all layers have the same sizes."""
    uneven: str | None = None
    """Architecture that reads the sizes of every layer; None = there is none."""
    parts: Mapping[str, str] = field(default_factory=lambda: _BLOCK)
    """Modules of a block, and what llama.cpp calls their tensors."""
    activation: str = "silu"
    norm_offset: float = 0.0
    """Added to the weights of norms: 1 where transformers multiplies by 1 + weight."""
    is_square: bool = False
    """Whether `even` wants as many features of all heads together as there are hidden ones."""
    always_tied: bool = False
    """Whether llama.cpp takes the embeddings for the head in any case."""
    wide_at: int | None = None
    """At so many layers llama.cpp scales attention by the hidden features for each head; else by the width of one."""
    window_pattern: int | None = None
    """Every how many layers one sees all tokens, the others a window of them; None = llama.cpp knows no windows."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(even="llama", uneven="deci"),
    "mistral": Family(even="llama", uneven="deci"),
    "qwen2": Family(even="qwen2", uneven="deci", is_square=True),
    "qwen3": Family(even="qwen3", uneven="openelm"),
    "phi3": Family(even="phi3", uneven="deci", parts={**_BLOCK, **_FUSED}, is_square=True),
    "gemma": Family(even="gemma", activation="gelu_pytorch_tanh", norm_offset=1.0, always_tied=True),
    "gemma2": Family(
        even="gemma2", parts=_FOUR_NORMS, activation="gelu_pytorch_tanh", norm_offset=1.0, always_tied=True,
        window_pattern=2, wide_at=46,
    ),
    "gemma3_text": Family(
        even="gemma3", parts=_FOUR_NORMS, activation="gelu_pytorch_tanh", norm_offset=1.0, always_tied=True,
        window_pattern=6, wide_at=62,
    ),
}  # fmt: skip
"""Families by `model_type`. SmolLM and SmolLM2 are of type llama."""

INTERLEAVED = ("llama", "deci")
"""Architectures that rotate neighbouring features, where transformers rotates the first half against the second."""


def family_of(model: PreTrainedModel, place: str) -> Family:
    """Return how a model is written.

    Raises:
        ConversionError: llama.cpp has no architecture for it, or one that computes something else.
    """
    config: PreTrainedConfig = model.config
    family = FAMILIES.get(config.model_type)
    if family is None or not type(model).__name__.endswith("ForCausalLM"):
        raise ConversionError(
            place,
            f"{type(model).__name__} of type {config.model_type!r} is none that is written as GGUF here.",
            f"Types that are, as language models: {', '.join(FAMILIES)}.",
        )
    said = vars(config).get("hidden_activation") or vars(config).get("hidden_act")
    if said != family.activation:
        raise ConversionError(
            place,
            f"has the activation {said!r}; llama.cpp computes {family.activation!r} under {family.even!r}.",
            "It cannot be held.",
        )
    return family
