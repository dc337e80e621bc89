"""Attention: one row per naming, tried in order. Model types that share a naming share a row."""

from dataclasses import replace
from itertools import product

from patchers.discovery.tables.forms import AttentionForm

_EXTRAS = (
    "gate_proj", "g_proj", "relative_k_proj", "linear_pos", "r_proj", "query_global", "key_global", "value_global",
)  # fmt: skip

T5 = AttentionForm(
    name="t5", query="q", key="k", value="v", output="o", can_be_empty=False,
    selects=(("position_bias", 3, 1),), returned=1, shared_table="relative_attention_bias",
)  # fmt: skip
"""The first layer owns the table of position biases and hands the biases on; the others pick those of their heads."""

LONGT5_LOCAL = AttentionForm(
    name="longt5-local", query="q", key="k", value="v", output="o", can_be_empty=False, marker="local_radius",
    selects=(("position_bias", 2, 2),), returned=1, shared_table="relative_attention_bias",
)  # fmt: skip

CPMANT = AttentionForm(
    name="cpmant", query="project_q", key="project_k", value="project_v", output="attention_out",
    can_be_empty=False, selects=(("position_bias", 3, 1),),
)  # fmt: skip

MPNET = AttentionForm(
    name="mpnet", query="attn.q", key="attn.k", value="attn.v", output="attn.o", core="attn", core_outputs=1,
    selects=(("position_bias", 2, 1),),
)  # fmt: skip
"""One table of relative position biases, shared by all layers, with a column per head."""

BERT = AttentionForm(
    name="bert", query="self.query", key="self.key", value="self.value", output="output.dense", core="self",
    core_outputs=2, extras=tuple(f"self.{extra}" for extra in _EXTRAS),
)  # fmt: skip
"""BERT and all that kept its names."""

LAYOUTLM = replace(
    BERT,
    name="layoutlm",
    marker="has_relative_attention_bias",
    selects=(("rel_pos", 2, 1), ("rel_2d_pos", 3, 1)),
)
"""BERT with biases of relative positions, made outside the blocks."""

VIT = AttentionForm(
    name="vit", query="attention.query", key="attention.key", value="attention.value", output="output.dense",
    core="attention",
)  # fmt: skip

DEBERTA_V2 = AttentionForm(
    name="deberta-v2", query="self.query_proj", key="self.key_proj", value="self.value_proj", output="output.dense",
    core="self", core_outputs=2, extras=("self.pos_key_proj", "self.pos_query_proj"),
)  # fmt: skip
"""Disentangled attention adds projections of the relative positions, cut like the queries."""

_TRIPLES = (
    # A linear in a wrapper that clips what passes.
    ("q_proj.linear", "k_proj.linear", "v_proj.linear"),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("linear_q", "linear_k", "linear_v"),
    ("query_proj", "key_proj", "value_proj"),
    ("Wq", "Wk", "Wv"),
)
_OUTPUTS = (
    "o_proj.linear", "post.linear", "o_proj", "out_proj", "o", "dense", "proj", "out_lin", "linear_out", "output",
    "projection_layer", "projection", "Wo", "post",
)  # fmt: skip
SPLIT = tuple(
    AttentionForm(name=f"{q}…{o}", query=q, key=k, value=v, output=o, extras=_EXTRAS)
    for (q, k, v), o in product(_TRIPLES, _OUTPUTS)
)

_FUSED = (
    ("qkv_proj", "o_proj"),
    ("qkv", "proj"),
    ("qkv", "projection"),
    ("Wqkv", "Wo"),
    ("att_proj", "out_proj"),
    ("c_attn", "c_proj"),
    ("qkv_proj", "out_proj"),
)
CONCATENATED = tuple(AttentionForm(name=f"{qkv}…{o}", fused=qkv, output=o) for qkv, o in _FUSED)

MPT = AttentionForm(name="mpt", fused="Wqkv", output="out_proj", selects=(("position_bias", 1, 0),))
"""One slope per head, made outside the blocks."""

GROUPED = AttentionForm(
    name="query_key_value…dense", fused="query_key_value", output="dense", fused_order="grouped",
    selects=(("alibi", 2, 0), ("attention_mask", 3, 1)),
)  # fmt: skip
"""BLOOM, GPT-NeoX, Falcon, Persimmon: group by group, with slopes of linear biases that may come from outside."""

_LATENT = (
    "q_a_proj", "kv_a_proj_with_mqa", "kv_a_proj", "indexer.wq_b", "indexer.wk", "indexer.weights_proj",
)  # fmt: skip
LATENT = tuple(
    AttentionForm(
        name=f"{query}/kv_b_proj…o_proj", query=query, key="kv_b_proj", output="o_proj", shared=_LATENT
    )
    for query in ("q_b_proj", "q_proj")
)
"""Multi-head latent attention: heads go, the latent ranks that all of them read stay."""

DEBERTA = AttentionForm(
    name="deberta", fused="self.in_proj", fused_order="grouped", output="output.dense", core="self", core_outputs=2,
    extras=("self.pos_proj", "self.pos_q_proj"),
)  # fmt: skip

DISTILBERT = AttentionForm(
    name="distilbert", query="q_lin", key="k_lin", value="v_lin", output="out_lin", core_outputs=2
)
"""DistilBERT, XLM, FlauBERT: the annotation of forward promises less than it returns."""

GPT_BIGCODE = AttentionForm(
    name="gpt_bigcode", fused="c_attn", output="c_proj", fused_order="grouped", marker="multi_query"
)

ATTENTION_FORMS: tuple[AttentionForm, ...] = (
    LONGT5_LOCAL, T5, CPMANT, MPNET, LAYOUTLM, BERT, VIT, DEBERTA_V2, DEBERTA, DISTILBERT, GPT_BIGCODE, *SPLIT,
    *LATENT, *CONCATENATED, MPT, GROUPED,
)  # fmt: skip
