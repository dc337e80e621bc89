"""Tiny models of every family, perturbed so that mistakes show, and decisions about them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import gated, gates_by_group, patch
from patchers.units import BLOCK_KINDS, KINDS, Structure
from sparse_trainer.training.blending import cheapen, set_mix

# Shape legend: B = rows, T = tokens, U = units.

_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 3}
_COMMON = {"vocab_size": 99, "max_position_embeddings": 40, "num_labels": 3}

FAMILIES: Mapping[str, tuple[type, type, dict[str, object]]] = {
    "bert": (BertForSequenceClassification, BertConfig, _SIZES),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, _SIZES),
    "xlm-roberta": (XLMRobertaForSequenceClassification, XLMRobertaConfig, _SIZES),
    "camembert": (CamembertForSequenceClassification, CamembertConfig, _SIZES),
    "electra": (ElectraForSequenceClassification, ElectraConfig, {**_SIZES, "embedding_size": 24}),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 3},
    ),
    "mpnet": (MPNetForSequenceClassification, MPNetConfig, _SIZES),
    "deberta-v2": (
        DebertaV2ForSequenceClassification,
        DebertaV2Config,
        {
            **_SIZES,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": False,
            "type_vocab_size": 0,
        },
    ),
}


def tiny(family: str = "bert", dtype: torch.dtype = torch.float64, **config: object) -> PreTrainedModel:
    """Return a seeded, perturbed model in evaluation mode: stock biases are 0 and norms 1, which hides mistakes."""
    torch.manual_seed(0)
    model_class, config_class, sizes = FAMILIES[family]
    model = model_class(config_class(**_COMMON, **{**sizes, **config}))
    return perturbed(model).to(dtype).eval()


@torch.no_grad()
def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """Add noise to every parameter, in place."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def cheap(family: str = "bert") -> PreTrainedModel:
    """Return a model whose cheaper layers have seen a batch, and alone count."""
    model = tiny(family)
    cheapen(model, ("relu", "no_norm"))
    model.train()(**batch(model))
    set_mix(model.eval(), 0.0)
    return model


def batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return tokens with a padded row, unlike those of the self-check."""
    generator = torch.Generator().manual_seed(7)
    ids_BT = torch.randint(5, 99, (2, 11), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 7:] = 0
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """Return what a model says to `batch`."""
    return model(**batch(model)).logits


def uneven_keep(structure: Structure) -> dict[str, Tensor]:
    """Return a decision of every sort: uneven widths, no head, no channel, no branch, no layer."""
    generator = torch.Generator().manual_seed(3)
    keep = {
        g.name: torch.rand(g.num_units, generator=generator) > 0.4
        for g in structure.of(["heads", "channels"])
    }
    heads, channels = structure.of(["heads"]), structure.of(["channels"])
    keep[heads[0].name] = torch.tensor([False, True, False, True])
    keep[heads[1].name] = torch.zeros(4, dtype=torch.bool)
    keep[channels[2].name] = torch.zeros(48, dtype=torch.bool)
    return keep


def branch_keep(structure: Structure) -> dict[str, Tensor]:
    """Return a decision that takes an attention, a feed-forward branch and a whole layer away."""
    closed = {structure.of([kind])[layer].name for kind, layer in (("attention", 0), ("ffn", 1))}
    closed.add(next(g.name for g in structure.of(["layers"]) if g.layer == 2))
    return {
        g.name: torch.tensor([g.name not in closed]) for g in structure.of(["attention", "ffn", "layers"])
    }


def even_keep(structure: Structure) -> dict[str, Tensor]:
    """Return a decision that the stock class can build: equal widths, and a layer away."""
    generator = torch.Generator().manual_seed(5)
    keep = {}
    for group in structure.of(["channels"]):
        keep[group.name] = torch.zeros(48, dtype=torch.bool)
        keep[group.name][torch.randperm(48, generator=generator)[:20]] = True
    keep[next(g.name for g in structure.of(["layers"]) if g.layer == 1)] = torch.tensor([False])
    return keep


DECISIONS = {"uneven": uneven_keep, "branches": branch_keep, "even": even_keep}


def patched(model: PreTrainedModel, keep: Mapping[str, Tensor], *, scored: bool = True) -> PreTrainedModel:
    """Return a copy of a model with gates that are closed as `keep` says."""
    model = copy.deepcopy(model)
    structure = discover(model, KINDS if any(name.endswith("hidden") for name in keep) else BLOCK_KINDS)
    patch(model, structure, lambda group: Gate(group.num_units, scored=scored))
    for name, gate in gates_by_group(model, structure).items():
        if name in keep:
            gate.set_keep(keep[name])
    return model


def masked_logits(model: PreTrainedModel, keep: Mapping[str, Tensor]) -> Tensor:
    """Return the logits with units closed by gates."""
    with gated(model, discover(model), keep):
        return logits(model)
