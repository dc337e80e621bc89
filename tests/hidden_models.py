"""Tiny models whose hidden features can go, of every head that follows in its own way, and decisions about them."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from patchers.units import Structure
from tests.compact_models import FAMILIES, perturbed, tiny

_SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 3,
    "max_position_embeddings": 40,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DISTIL = {"vocab_size": 99, "dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 3}

_MODELS: Mapping[str, tuple[type, type, Mapping[str, object]]] = {
    "bert-mlm": (BertForMaskedLM, BertConfig, _SIZES),
    "bert-pretraining": (BertForPreTraining, BertConfig, _SIZES),
    "bert-tokens": (BertForTokenClassification, BertConfig, _SIZES),
    "roberta-mlm": (RobertaForMaskedLM, RobertaConfig, _SIZES),
    "distilbert-mlm": (DistilBertForMaskedLM, DistilBertConfig, _DISTIL),
    "distilbert-qa": (DistilBertForQuestionAnswering, DistilBertConfig, _DISTIL),
    "electra-mlm": (ElectraForMaskedLM, ElectraConfig, {**_SIZES, "embedding_size": 24}),
    "electra-mlm-square": (ElectraForMaskedLM, ElectraConfig, {**_SIZES, "embedding_size": 32}),
    "electra-pretraining": (ElectraForPreTraining, ElectraConfig, {**_SIZES, "embedding_size": 32}),
    "llama": (LlamaForCausalLM, LlamaConfig, _GROUPED),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {**_GROUPED, "tie_word_embeddings": True}),
    "llama-sequences": (LlamaForSequenceClassification, LlamaConfig, _GROUPED),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, _GROUPED),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {
            "vocab_size": 99, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 40,
            "bos_token_id": 1, "eos_token_id": 2,
        },
    ),
}  # fmt: skip
ENCODERS = tuple(family for family in FAMILIES if family != "deberta-v2")
NAMES = (*ENCODERS, *_MODELS)
FLOAT32_INSIDE = ("llama", "qwen2", "mistral")
"""Their norms compute in float32 whatever the model's dtype is."""


def hidden_model(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a seeded, perturbed model in evaluation mode."""
    if name in FAMILIES:
        return tiny(name, dtype)
    torch.manual_seed(0)
    model_class, config_class, sizes = _MODELS[name]
    model: PreTrainedModel = model_class(config_class(**sizes))
    return perturbed(model).to(dtype).eval()


def tolerance(name: str) -> float:
    """Return how near two ways to compute the same come in float64."""
    return 2e-6 if name.startswith(FLOAT32_INSIDE) else 1e-10


def outputs(model: PreTrainedModel) -> Tensor:
    """Return all that a model says to a batch, one after the other."""
    generator = torch.Generator().manual_seed(7)
    ids_BT = torch.randint(5, 99, (2, 11), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 7:] = 0
    with torch.no_grad():
        said = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False) if _caches(model) else model(
            input_ids=ids_BT, attention_mask=mask_BT
        )  # fmt: skip
    return torch.cat([value.flatten() for value in said.to_tuple()])


def _caches(model: PreTrainedModel) -> bool:
    return "use_cache" in model.config.to_dict()


def some(structure: Structure, seed: int = 1) -> dict[str, Tensor]:
    """Return a random decision over all groups; every group of heads keeps one."""
    generator = torch.Generator().manual_seed(seed)
    keep = {g.name: torch.rand(g.num_units, generator=generator) > 0.4 for g in structure.groups}
    for group in structure.of(["heads"]):
        keep[group.name][0] = True
    for group in structure.of(["layers"]):
        keep[group.name] = torch.tensor([group.layer != 1])
    return keep
