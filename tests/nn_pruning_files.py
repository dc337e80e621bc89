"""Checkpoints as nn_pruning left them, rebuilt from their format: heads cut and listed, zeros in the FFNs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    PreTrainedModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from tests.compact_models import perturbed

HEAD_WIDTH = 8
CHANNELS = 48
NO_ROWS, NO_COLUMNS = range(8), range(16, 28)
BIN, SAFE = "pytorch_model.bin", "model.safetensors"


class Family:
    """A model of a family, and where its linears are within a layer."""

    def __init__(
        self, model_class: Any, config: Any, layers: str, inputs: list[str], output: str, ffn: list[str]
    ) -> None:
        self.model_class, self.config = model_class, config
        self.layers, self.inputs, self.output, self.ffn = layers, inputs, output, ffn

    def dense(self) -> PreTrainedModel:
        """Return a seeded dense model with random biases."""
        torch.manual_seed(0)
        model: PreTrainedModel = perturbed(self.model_class(self.config))
        model.eval()
        return model


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": CHANNELS,
    "num_hidden_layers": 3,
    "vocab_size": 99,
    "max_position_embeddings": 40,
}
BERT_NAMES = (
    ["attention.self.query", "attention.self.key", "attention.self.value"],
    "attention.output.dense",
    ["intermediate.dense", "output.dense"],
)
FAMILIES = {
    "bert": Family(BertForQuestionAnswering, BertConfig(**SIZES), "bert.encoder.layer", *BERT_NAMES),
    "roberta": Family(
        RobertaForQuestionAnswering, RobertaConfig(**SIZES), "roberta.encoder.layer", *BERT_NAMES
    ),
    "distilbert": Family(
        DistilBertForQuestionAnswering,
        DistilBertConfig(
            dim=32, n_heads=4, hidden_dim=CHANNELS, n_layers=3, vocab_size=99, max_position_embeddings=40
        ),
        "distilbert.transformer.layer",
        ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
        "attention.out_lin",
        ["ffn.lin1", "ffn.lin2"],
    ),
}


def features_of(heads: list[int]) -> list[int]:
    """Return the features of heads."""
    return [head * HEAD_WIDTH + i for head in heads for i in range(HEAD_WIDTH)]


@torch.no_grad()
def with_zeros(family: Family, removed: Mapping[int, list[int]]) -> PreTrainedModel:
    """Return a dense model in which removed heads are not read, and FFNs contain zeros."""
    model = family.dense()
    for layer in range(3):
        block = model.get_submodule(f"{family.layers}.{layer}")
        output = linear(block, family.output)
        output.weight[:, features_of(list(removed.get(layer, [])))] = 0
        up, down = (linear(block, name) for name in family.ffn)
        # The biases of rows without weights stay: such a channel adds a constant.
        up.weight[NO_ROWS.start : NO_ROWS.stop] = 0
        down.weight[:, NO_COLUMNS.start : NO_COLUMNS.stop] = 0
        # A block that empties neither a row nor a column.
        up.weight[32:40, :16] = 0
    return model


def linear(block: nn.Module, path: str) -> nn.Linear:
    """Return a linear of a block."""
    found = block.get_submodule(path)
    assert isinstance(found, nn.Linear)
    return found


def cut_state(family: Family, model: PreTrainedModel, removed: Mapping[int, list[int]]) -> dict[str, Tensor]:
    """Return a model's weights as transformers 4 stored them once the heads were gone."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for layer, heads in removed.items():
        kept = features_of([head for head in range(4) if head not in heads])
        for path in family.inputs:
            for leaf in ("weight", "bias"):
                name = f"{family.layers}.{layer}.{path}.{leaf}"
                state[name] = state[name][kept].contiguous()
        name = f"{family.layers}.{layer}.{family.output}.weight"
        state[name] = state[name][:, kept].contiguous()
    return state


def aged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names of old, with what old classes stored besides."""
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    extras = {
        "bert.embeddings.position_ids": torch.arange(40).expand(1, -1).clone(),
        "bert.pooler.dense.weight": torch.randn(32, 32),
        "bert.pooler.dense.bias": torch.randn(32),
    }
    return {**old, **extras}


def write(folder: Path, family: Family, state: Mapping[str, Any], removed: object, file: str = SAFE) -> Path:
    """Write a checkpoint as nn_pruning left it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        **family.config.to_dict(),
        "architectures": [family.model_class.__name__],
        "pruned_heads": removed,
        "transformers_version": "4.4.2",
    }
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    if file in (SAFE, BIN):
        write_weights(folder / file, dict(state))
        return folder
    stem, suffix = Path(file.removesuffix(".index.json")).stem, Path(file.removesuffix(".index.json")).suffix
    places = {name: f"{stem}-0000{1 + number % 2}-of-00002{suffix}" for number, name in enumerate(state)}
    for shard in set(places.values()):
        write_weights(folder / shard, {name: state[name] for name in state if places[name] == shard})
    (folder / file).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return folder


def write_weights(file: Path, state: dict[str, Tensor]) -> None:
    """Write tensors in the form that the file's name says."""
    if file.suffix == ".bin":
        torch.save(state, file)
    else:
        save_file(state, file, metadata={"format": "pt"})
