"""Gates that learn on frozen weights: against a training by hand, and on models with layers that do nothing."""

import random
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from patchers.discovery.discover import discover
from patchers.patching.patch import is_patched
from patchers.units import LAYERS
from sparse_trainer import prune
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.criteria.calibration.layer_gate import LearnedGate
from sparse_trainer.errors import ArgumentError, DataError, NonFiniteError, SparseTrainerError
from sparse_trainer.one_shot.gate_learning import learn_gates
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.layers import compare_layers
from sparse_trainer.statistics.calibration import Batches

SHORT = "layer_gate(steps=2)"
HALF: dict[str, Any] = {"density": {"layers": 0.5}}


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


def text(rows: int = 6) -> list[dict[str, Tensor]]:
    ids = torch.randint(3, 64, (rows, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


@cache
def _with_idle(*idle: str) -> Any:
    """Return a model that has learned the text with linears that write nothing: all others matter."""
    model = llama()
    for path in idle:
        model.model.layers.get_submodule(path).weight.requires_grad_(False).zero_()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**text()[0], labels=text()[0]["input_ids"]).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def with_idle(*idle: str) -> Any:
    return deepcopy(_with_idle(*idle))


def idle_layers() -> Any:
    return with_idle("1.self_attn.o_proj", "1.mlp.down_proj", "4.self_attn.o_proj", "4.mlp.down_proj")


def gone(plan: Plan, kind: str = "layers") -> list[int]:
    return [group["layer"] for group in plan.groups.values() if group["kind"] == kind and not group["keep"]]


def drawn_by_hand(score: Any, cost: Any, kept: float, temperature: float) -> tuple[Any, Any]:
    """Return the gates and their Jacobian: with slopes w = g (1 - g) / temperature, diag(w) - w (c w)^T / c^T w."""

    def gates_at(threshold: float) -> Any:
        return 1 / (1 + np.exp(-(score - threshold) / temperature))

    gates = gates_at(brentq(lambda t: float(cost @ gates_at(t)) - kept, -100, 100, xtol=1e-13))
    slopes = gates * (1 - gates) / temperature
    return gates, np.diag(slopes) - np.outer(slopes, cost * slopes) / (cost @ slopes)


def test_it_learns_what_a_training_by_hand_learns() -> None:
    model = llama(4)
    batch = {name: value[:1] for name, value in text()[0].items()}
    structure = discover(model, (LAYERS,))
    options = LearnedGate(steps=3, learning_rate=0.5, temperature=0.7, seed=5)
    costs = {group.name: 1 + group.layer for group in structure.groups}
    scores = learn_gates(model, structure, Batches(model, [batch]), options, costs=costs, density=0.6)

    uniform = torch.rand(3, 4, generator=torch.Generator().manual_seed(5)).double().numpy()
    score, velocity = np.zeros(4), np.zeros(4)
    for step in range(3):
        noisy = score + np.log(uniform[step]) - np.log(1 - uniform[step])
        gates, jacobian = drawn_by_hand(noisy, np.array([0.1, 0.2, 0.3, 0.4]), 0.6, 0.7)
        g_L = torch.tensor(gates, dtype=torch.float32, requires_grad=True)
        handles = [
            layer.register_forward_hook(lambda _, args, y, g=g: args[0] + g * (y - args[0]))
            for layer, g in zip(model.model.layers, g_L, strict=True)
        ]
        model(**batch, labels=batch["input_ids"]).loss.backward()
        for handle in handles:
            handle.remove()
        assert g_L.grad is not None
        slope = jacobian.T @ g_L.grad.double().numpy()
        velocity = 0.9 * velocity + slope / np.linalg.norm(slope)
        score = score - 0.5 * (1 - step / 3) * velocity
    learned_L = torch.cat([scores[group.name] for group in structure.groups])
    torch.testing.assert_close(learned_L, torch.tensor(score, dtype=torch.float32), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_do_nothing_go(dtype: torch.dtype) -> None:
    model = idle_layers().to(dtype)
    _, plan = prune(model, text(), criterion="layer_gate(steps=40)", density={"layers": 0.67})
    assert gone(plan) == [1, 4]


@pytest.mark.parametrize(("kind", "last"), [("attention", "self_attn.o_proj"), ("ffn", "mlp.down_proj")])
def test_branches_that_do_nothing_go(kind: str, last: str) -> None:
    model = with_idle(f"0.{last}", f"3.{last}")
    _, plan = prune(model, text(), criterion="layer_gate(steps=40)", units=[kind], density=0.67)
    assert gone(plan, kind) == [0, 3]


@pytest.mark.parametrize("removed", [1, 2, 3])
def test_gates_end_near_0_or_1_and_within_the_budget(removed: int) -> None:
    model = idle_layers()
    structure = discover(model, (LAYERS,))
    costs, kept = {group.name: 1 for group in structure.groups}, 1 - removed / 6
    options = LearnedGate(steps=60)
    scores = learn_gates(model, structure, Batches(model, text()), options, costs=costs, density=kept)
    score_L, same_L = torch.cat(list(scores.values())), torch.full((6,), 1 / 6)
    gate_L = options.draw(score_L, torch.full((6,), 0.5), same_L, kept)
    assert float(gate_L.mean()) == pytest.approx(kept, abs=1e-4)
    if removed == 2:  # one of two layers that do nothing is as good as the other
        assert ((gate_L < 0.05) | (gate_L > 0.95)).all(), gate_L


@pytest.mark.parametrize("kept", [0.05, 0.6, 0.95])
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
def test_what_gates_cost_is_the_budget_in_every_pass(kept: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    score_U = (scale * torch.randn(8, generator=generator)).requires_grad_()
    cost_U = torch.rand(8, generator=generator)
    cost_U = cost_U / cost_U.sum()
    gate_U = LearnedGate(temperature=1.0).draw(score_U, torch.full_like(score_U, 0.5), cost_U, kept)
    assert float((cost_U @ gate_U).detach()) == pytest.approx(kept, abs=1e-4)
    assert ((gate_U >= 0) & (gate_U <= 1)).all()
    (cost_U @ gate_U).backward()
    assert score_U.grad is not None
    assert float(score_U.grad.abs().max()) < 1e-4  # no score changes what all of them cost


def test_the_model_and_the_random_states_are_left_as_they_were() -> None:
    model = llama()
    batches = text()
    model.train()
    model.model.layers[0].eval()
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    asked = {name: value.requires_grad for name, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    config, fields = model.config.to_json_string(), [set(vars(module)) for module in model.modules()]
    before = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1])
    compare_layers(model, batches, criteria=[SHORT], density=0.5, study=False)
    after = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1])
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])
    assert (before[2] == after[2]).all()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert {name: value.requires_grad for name, value in model.named_parameters()} == asked
    assert all(value.grad is None for value in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == fields
    assert model.config.to_json_string() == config
    assert not is_patched(model)


def test_the_seed_alone_says_what_is_learned_however_rows_are_batched() -> None:
    model = llama()
    batches = text()
    batches[0]["attention_mask"][0, 8:] = 0
    rows = [{name: value[i : i + 1] for name, value in batches[0].items()} for i in range(6)]
    scores = []
    for seed, source in enumerate((batches, rows, batches)):
        torch.manual_seed(seed)
        criterion = (
            "layer_gate(steps=6, batch_size=2)" if seed < 2 else "layer_gate(steps=6, batch_size=2, seed=1)"
        )
        found = compare_layers(model, source, criteria=[criterion], density=0.5, study=False).scores
        scores.append(torch.tensor(next(iter(found.values()))))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(scores[0], scores[2], rtol=1e-5)


def test_protected_layers_stay_and_a_repair_follows() -> None:
    model = llama()
    pruned, plan = prune(
        model, text(rows=32), criterion=SHORT, protect=["first", "last"], reconstruct="least_squares", **HALF
    )  # fmt: skip
    assert len(gone(plan)) == 6 - pruned.config.num_hidden_layers == 2
    assert set(gone(plan)) <= {1, 2, 3, 4}
    assert "repaired by least_squares" in plan.method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "layer_gate + block_influence", **HALF}, "no scores to be mixed"),
        ({"criterion": "last", "allocation": "layer_gate", **HALF}, "no scores to be mixed"),
        ({"criterion": "layer_gate", **HALF, "by_block": True}, "Drop .?by_block"),
        ({"criterion": "layer_gate", "density": {"channels": 0.5}}, "does not score channels"),
        ({"criterion": "layer_gate", **HALF, "steps": 2}, "change places"),
        ({"criterion": "layer_gate(steps=0)", **HALF}, "layer_gate.steps: 0 is too small"),
        (
            {"criterion": "layer_gate(learning_rate=0)", **HALF},
            "layer_gate.learning_rate: 0.* is not positive",
        ),
        ({"criterion": "layer_gate(seed=-1)", **HALF}, "seed: -1"),
    ],
)
def test_what_cannot_be_meant_is_told_before_any_work(options: dict[str, Any], message: str) -> None:
    model = llama(2)
    with pytest.raises(ArgumentError, match=message):
        prune(model, text(), **options)


def test_what_cannot_be_learned_from_is_told_and_leaves_no_gates() -> None:
    model = llama(2)
    batches = text()
    silent = [{**batches[0], "labels": torch.full_like(batches[0]["input_ids"], -100)}]
    with pytest.raises(DataError, match="needs one"):
        prune(model, criterion=SHORT, **HALF)
    with pytest.raises(DataError, match="there is no loss"):
        prune(model, silent, criterion=SHORT, **HALF)
    with pytest.raises(DataError, match="has no loss over labels"):
        prune(model.model, [{"input_ids": batches[0]["input_ids"]}], criterion=SHORT, **HALF)
    with torch.no_grad():
        model.model.embed_tokens.weight[2] = torch.nan
    rows = [*batches, {"input_ids": torch.full((1, 12), 2)}]
    with pytest.raises(NonFiniteError, match="gate became NaN"):
        prune(model, rows, criterion="layer_gate(steps=7)", inplace=True, **HALF)
    assert not is_patched(model)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(SparseTrainerError, match="NaN"):
        prune(model, batches, criterion=SHORT, inplace=True, **HALF)
    assert not is_patched(model)


def test_a_layer_that_no_batch_reaches_is_told() -> None:
    model = llama(3)
    structure = discover(model, (LAYERS,))
    costs = {group.name: 1 for group in structure.groups}
    batches = Batches(model, text())
    model.config.num_hidden_layers = 2
    with pytest.raises(DataError, match=r"layers\.2.*ran through"):
        learn_gates(model, structure, batches, LearnedGate(steps=1), costs=costs, density=0.5)
    assert not is_patched(model)
