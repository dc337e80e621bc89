"""Every kind of unit, by every criterion, through every entry point: it works, or is refused before any work."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from patchers.units import BLOCK_KINDS
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.training.registry import scorings
from sparse_trainer.errors import ArgumentError, BudgetError, UnsupportedModelError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
REFUSED = (ArgumentError, BudgetError, UnsupportedModelError)


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(**SIZES, num_attention_heads=4, max_position_embeddings=16)
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2))


def mixtral() -> PreTrainedModel:
    config = MixtralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    return MixtralForCausalLM(config)


def t5() -> PreTrainedModel:
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, **tokens)
    )


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert,
    "llama": llama,
    "mixtral": mixtral,
    "t5": t5,
}


def made(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batches(family: str) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (2, 2, 6), generator=generator)
    labels = {"bert": torch.tensor([[0, 1], [1, 0]]), "t5": ids[..., :4]}.get(family)
    return [{"input_ids": ids[i]} | ({} if labels is None else {"labels": labels[i]}) for i in range(2)]


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[Counter[str]]:
    """Count how often the first linear runs."""
    runs: Counter[str] = Counter()
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    handle = first.register_forward_hook(lambda *_: runs.update(["forward"]))
    try:
        yield runs
    finally:
        handle.remove()


def one_shot(by_block: bool) -> Callable[[str, str, str], bool]:
    def run(family: str, criterion: str, kind: str) -> bool:
        model = made(family)
        with counted(model) as runs:
            try:
                pruned, _ = prune(
                    model,
                    batches(family),
                    criterion=SHORT.get(criterion, criterion),
                    density={kind: 0.5},
                    by_block=by_block,
                    inplace=True,
                    check=False,
                )
            except REFUSED:
                assert not runs, "refused only after the model had run"
                return False
        assert pruned.num_parameters() < made(family).num_parameters()
        return True

    return run


def fine_pruning(family: str, criterion: str, kind: str) -> bool:
    model = made(family)
    with counted(model) as runs:
        try:
            coordinator = ModelPatchingCoordinator(
                SparseTrainingArguments(
                    scoring=criterion, units=[kind], density={kind: 0.5}, pruning_warmup_ratio=0.0
                )
            )
            coordinator.patch_model(model)
        except REFUSED:
            assert not runs, "refused only after the model had run"
            return False
    if coordinator.wants_calibration:
        coordinator.calibrate(batches(family))
    coordinator.begin(2)
    coordinator.step(2)
    assert coordinator.density_reached() < 1.0
    return True


IN_STACKED = ("magnitude", "random", "fisher")
"""Criteria with default options that see into stacked experts."""
FORWARD_ONLY = ("wanda", "wifv", "ifv", "wifn", "minitron", "obs")
NOT_THERE = {("mixtral", "ffn"), ("t5", "attention"), ("t5", "layers")}
"""No last linear of its own; a block with cross-attention; no layer to spare beside the one that stays of a stack."""
DEEP = ("attention", "ffn", "layers")
OF_BLOCKS = (*IN_STACKED, "layer_gate")
"""Criteria that score whole branches, too."""
SHORT = {"layer_gate": "layer_gate(steps=2)"}
OF_LAYERS = ("block_influence", "angular", "relative_norm", "avss", "last", "perplexity")


def expected_one_shot(family: str, kind: str, name: str) -> bool:
    if (family, kind) in NOT_THERE or (kind == "experts" and family != "mixtral"):
        return False
    if kind in DEEP or name in (*OF_LAYERS, "layer_gate"):
        return (kind in DEEP and name in OF_BLOCKS) or (kind == "layers" and name in OF_LAYERS)
    if kind == "experts" or (kind == "channels" and family == "mixtral"):
        return name in IN_STACKED
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot(family: str) -> None:
    run = one_shot(by_block=False)
    found = {(kind, name): run(family, name, kind) for kind in BLOCK_KINDS for name in WIDTH_CRITERIA}
    assert found == {(kind, name): expected_one_shot(family, kind, name) for kind, name in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot_block_by_block(family: str) -> None:
    run = one_shot(by_block=True)
    found = {(kind, name): run(family, name, kind) for kind in BLOCK_KINDS for name in WIDTH_CRITERIA}
    for (kind, name), works in found.items():
        free = name in (*FORWARD_ONLY, *OF_LAYERS, "magnitude", "random") and name not in (
            "angular",
            "perplexity",
        )
        assert works == (free and expected_one_shot(family, kind, name)), (kind, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_pruning(family: str) -> None:
    """All but loraprune, which needs adapters: tests/unit/criteria/test_loraprune.py."""
    names = [name for name in scorings() if name != "loraprune"]
    found = {(kind, name): fine_pruning(family, name, kind) for kind in BLOCK_KINDS for name in names}
    deep = ("movement", "layer_gate", "l0", "taylor", "magnitude", "random", "fisher")
    for (kind, name), works in found.items():
        if kind in DEEP:
            deep_or_not = name in deep or (kind == "layers" and name in OF_LAYERS)
            able = deep_or_not and (family, kind) not in NOT_THERE
        elif kind == "experts":
            able = family == "mixtral" and name in deep and name not in ("layer_gate", "l0")
        else:
            able = name in deep or expected_one_shot(family, kind, name)
        assert works == able, (kind, name)
