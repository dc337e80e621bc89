"""The metadata of the file: sizes, norms, positions."""

from typing import Any

from transformers import PreTrainedModel

from sparse_trainer.convert.gguf.geometry import Geometry
from sparse_trainer.errors import ConversionError


def keys_of(model: PreTrainedModel, geometry: Geometry, widths: list[int], place: str) -> dict[str, Any]:
    """Return what the file says of the model, by key without the name of the architecture.

    Args:
        widths: Channels of each layer, with those that are zeros.

    Raises:
        ConversionError: a window, or a cap, that llama.cpp does not compute.
    """
    config = model.config
    heads, kv_heads = ([getattr(s, name) for s in geometry.layers] for name in ("heads", "kv_heads"))
    uneven = geometry.architecture != geometry.family.even
    embeddings: Any = model.get_input_embeddings()
    keys: dict[str, Any] = {
        "vocab_size": embeddings.weight.shape[0],
        "block_count": len(geometry.layers),
        "embedding_length": geometry.hidden,
        "feed_forward_length": widths if uneven else widths[0],
        "attention.head_count": heads if uneven else heads[0],
        "attention.head_count_kv": kv_heads if uneven else kv_heads[0],
        "attention.key_length": geometry.head_dim,
        "attention.value_length": geometry.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        **_windows(config, geometry, place),
        **geometry.positions.keys,
    }
    for field, key in (("attn_logit_softcapping", "attn"), ("final_logit_softcapping", "final")):
        cap = vars(config).get(field)
        if cap is not None and geometry.architecture != "gemma2":
            raise ConversionError(f"{place}: {field}", f"is {cap}.", "It cannot be held.")
        if cap is not None:
            keys[f"{key}_logit_softcapping"] = float(cap)
    return keys


def _windows(config: Any, geometry: Geometry, place: str) -> dict[str, Any]:
    """Return how far layers see, and how long a text may be."""
    length = int(config.max_position_embeddings)
    window, kinds = vars(config).get("sliding_window"), vars(config).get("layer_types")
    pattern = geometry.family.window_pattern
    if kinds is not None and "sliding_attention" not in kinds and set(kinds) == {"full_attention"}:
        window = None
    # Within a window all layers see all tokens: no more than that where llama.cpp knows none, or others.
    within = {"context_length": length if window is None else min(length, int(window))}
    if pattern is None:
        return {**within, "attention.sliding_window": 0} if geometry.architecture == "phi3" else within
    if kinds == _kinds(pattern, len(geometry.layers)):
        return {"context_length": length, "attention.sliding_window": int(window or length)}
    if "rope.freq_base_swa" in geometry.positions.keys:
        raise ConversionError(
            f"{place}: layer_types",
            f"are not those of llama.cpp, which sees all tokens, by positions of their own, in every layer {pattern}.",
            "Keep all layers, or take them where the pattern stays.",
        )
    return {**within, "attention.sliding_window": within["context_length"]}


def _kinds(pattern: int, layers: int) -> list[str]:
    """Return the kinds of layers that llama.cpp expects."""
    return [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)
    ]
