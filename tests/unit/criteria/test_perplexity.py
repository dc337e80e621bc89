"""Greedy removal by the loss: against models that are really cut, and in how many block evaluations."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from patchers.discovery.discover import discover
from patchers.units import LAYERS, Group, Structure
from sparse_trainer import SparseTrainingArguments, prune
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.cut.carry_out import carry_out
from sparse_trainer.cut.decide import found_in
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.errors import ArgumentError, DataError, NonFiniteError
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.replay import Replay
from tests.fixtures.oneshot_models import calibration, model_of

REQUEST = Request(method="by hand", target="units", scope="global", density=0.5, sequence_length=8)


def llama(layers: int = 6) -> Any:
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    perturb(model)
    return model


def t5() -> Any:
    torch.manual_seed(4)
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 32,
        "num_layers": 4,
        "num_heads": 4,
    }
    model = T5ForConditionalGeneration(T5Config(**sizes, pad_token_id=0, decoder_start_token_id=0)).eval()
    perturb(model)
    return model


def text(seed: int = 0, rows: int = 6, *, padded: bool = False) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(2):
        batch = {"input_ids": torch.randint(3, 40, (rows, 12), generator=generator)}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if padded:
            batch["attention_mask"][0, 8:] = 0
        found.append(batch)
    return found


def without(model: Any, gone: list[Group]) -> Any:
    """Return a copy of a model from which layers are cut."""
    copy = deepcopy(model)
    keep = {group.name: torch.tensor([False]) for group in gone}
    carry_out(copy, Decision(structure=found_in(copy), keep=keep, request=REQUEST), check=False)
    return copy


def mean_loss(model: Any, batches: list[dict[str, Tensor]]) -> float:
    """Return the mean loss per label that counts."""
    read = Batches(model, batches)
    total, terms = 0.0, 0.0
    with torch.no_grad():
        for batch in read.read(labelled=True):
            total += float(model(**batch.inputs).loss * batch.terms)
            terms += float(batch.terms or 0)
    return total / terms


def layers_of(model: Any) -> tuple[Group, ...]:
    structure: Structure = discover(model, (LAYERS,))
    return structure.groups


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "t5"])
@pytest.mark.parametrize("removed", [0, 1])
def test_the_loss_without_blocks_is_that_of_the_model_that_is_cut(family: str, removed: int) -> None:
    if family == "t5":
        model: Any = t5()
        batches = [{**batch, "labels": batch["input_ids"][:, :5]} for batch in text(padded=True)]
    elif family == "llama":
        model, batches = llama(), text(padded=True)
    else:
        model = model_of(family)
        batches = calibration(model)
    layers = layers_of(model)
    gone, candidates = list(layers[-removed:] if removed else ()), layers[: len(layers) - removed]
    replay = Replay(model, discover(model, (LAYERS,)), Batches(model, batches))
    replay.losses([], [])
    losses = replay.losses(gone, candidates)
    for group in candidates:
        cut = without(model, [*gone, group])
        assert float(losses[group.name]) == pytest.approx(mean_loss(cut, batches), rel=1e-5)


def test_layers_go_as_a_greedy_search_over_models_that_are_cut_says() -> None:
    model, batches = llama(), text()
    gone: list[Group] = []
    for _ in range(3):
        left = [group for group in layers_of(model) if group not in gone]
        gone.append(min(left, key=lambda group: mean_loss(without(model, [*gone, group]), batches)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned, plan = prune(model, batches, criterion="perplexity", density={"layers": 0.5})
    assert {name for name, group in plan.groups.items() if not group["keep"]} == {
        group.name for group in gone
    }
    assert mean_loss(pruned, batches) == pytest.approx(mean_loss(without(model, gone), batches), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())


def test_how_rows_are_batched_does_not_matter() -> None:
    model, batches = llama(), text(padded=True)
    rows = [{name: value[i : i + 1] for name, value in batch.items()} for batch in batches for i in range(6)]
    kept = [
        prune(model, source, criterion="perplexity", density={"layers": 0.5})[1].groups
        for source in (batches, rows)
    ]
    assert kept[0] == kept[1]


def test_protected_layers_stay_and_a_repair_follows() -> None:
    model, batches = llama(), text(rows=32)
    pruned, plan = prune(
        model, batches, criterion="perplexity", density={"layers": 0.5},
        protect=["first", "last"], reconstruct="least_squares",
    )  # fmt: skip
    gone = {
        group["layer"] for group in plan.groups.values() if group["kind"] == "layers" and not group["keep"]
    }
    assert len(gone) == 6 - pruned.config.num_hidden_layers == 2
    assert gone <= {1, 2, 3, 4}


def test_at_most_six_tenths_of_the_blocks_run() -> None:
    model, batches = llama(12), text()[:1]
    runs = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal runs
        runs += 1

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(count)
    replay = Replay(model, discover(model, (LAYERS,)), Batches(model, batches))
    replay.losses([], layers_of(model))
    naive = 12 * 11
    assert runs == 12 + 12 * 11 // 2 <= 0.6 * naive


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "perplexity + block_influence", "density": {"layers": 0.5}}, "no scores to be mixed"),
        (
            {"criterion": "last", "allocation": "perplexity", "density": {"layers": 0.5}},
            "no scores to be mixed",
        ),
        ({"criterion": "perplexity", "density": {"layers": 0.5}, "by_block": True}, "Drop .?by_block"),
        ({"criterion": "perplexity", "density": {"channels": 0.5}}, "does not score channels"),
        ({"criterion": "perplexity", "density": {"layers": 0.5}, "steps": 2}, "change places"),
    ],
)
def test_what_cannot_be_meant_is_told_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        prune(llama(2), text(), **options)


def test_a_model_without_a_loss_is_told_so() -> None:
    with pytest.raises(DataError, match="needs one"):
        prune(llama(2), criterion="perplexity", density={"layers": 0.5})
    with pytest.raises(DataError, match="has no loss over labels"):
        prune(llama(2).model, text(), criterion="perplexity", density={"layers": 0.5})


@pytest.mark.parametrize("scoring", ["perplexity", "perplexity + block_influence"])
def test_fine_pruning_refuses_a_search(scoring: str) -> None:
    with pytest.raises(ArgumentError, match=r"scoring.*perplexity"):
        SparseTrainingArguments(scoring=scoring, units=["layers"])


def test_a_loss_that_is_no_number_is_told_and_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(3)
    real = Replay._loss

    def broken(self: Replay, batch: Any, without: str | None) -> Tensor:
        loss = real(self, batch, without)
        return loss * float("nan") if without == "model.layers.0" else loss

    monkeypatch.setattr(Replay, "_loss", broken)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.0.*the loss without it is NaN"):
        prune(model, text(), criterion="perplexity", density={"layers": 0.7})
    assert all("forward" not in vars(module) for module in model.modules())
