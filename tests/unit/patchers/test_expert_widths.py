"""Widths of experts follow what the default kernels of transformers read: rows of 16 bytes, or a multiple."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.errors import UnsupportedModelError
from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, patch
from patchers.surgery import cut
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, BudgetError
from sparse_trainer.inputs.make import forward_outputs, inputs_for
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def mixture(dtype: torch.dtype = torch.float32, *, width: int = 48) -> PreTrainedModel:
    """Return a small mixture with the experts implementation that transformers takes by itself."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    perturb(model)
    return model.to(dtype).eval()


def widths(model: Any) -> list[int]:
    return [layer.mlp.experts.down_proj.shape[2] for layer in model.model.layers]


def rows() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 64, (2, 8), generator=generator)} for _ in range(2)]


def test_the_default_implementation_is_the_one_under_test() -> None:
    assert mixture().config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scope", ["global", "layer", "uniform"])
def test_a_pruned_mixture_runs_in_half_precision_too(dtype: torch.dtype, scope: str) -> None:
    pruned, plan = prune(
        mixture(dtype), rows(), criterion="fisher", units=["channels"], density=0.6, scope=scope
    )
    assert all(width % 8 == 0 and width < 48 for width in widths(pruned))
    assert isinstance(plan.density_reached, float)
    assert abs(plan.density_reached - 0.6) <= 8 / 48
    assert all(o.isfinite().all() for o in forward_outputs(pruned.to(torch.bfloat16), inputs_for(pruned)))


@pytest.mark.parametrize("dtype", TYPES)
def test_smaller_multiples_are_refused_before_any_statistics(dtype: torch.dtype) -> None:
    def never(*_: object) -> None:
        raise AssertionError("scored first")

    with pytest.raises(ArgumentError, match=r"multiple_of: .*Leave it out, or give 8") as raised:
        prune(
            mixture(dtype), rows(), criterion="fisher", density={"channels": 0.6}, multiple_of=1, watch=never
        )
    assert f"multiples of {4 if dtype == torch.float32 else 8}" in str(raised.value)


def test_what_float32_kernels_take_can_be_asked_for() -> None:
    pruned, _ = prune(
        mixture(), rows(), criterion="fisher", density={"channels": 0.75}, scope="uniform", multiple_of=4
    )
    assert widths(pruned) == [36, 36]
    with pytest.raises(ArgumentError, match="multiples of 8"):
        prune(
            mixture(torch.bfloat16),
            rows(),
            criterion="fisher",
            density={"channels": 0.75},
            multiple_of={"channels": 4},
        )


def test_any_width_goes_with_kernels_that_take_any() -> None:
    model = mixture()
    model.set_experts_implementation("eager")
    pruned, _ = prune(
        model, rows(), criterion="random", density={"channels": 0.77}, scope="uniform", multiple_of=1
    )
    assert widths(pruned) == [37, 37]
    forward_outputs(pruned, inputs_for(pruned))


def test_a_mixture_whose_own_width_is_odd_keeps_all_or_a_multiple() -> None:
    model = mixture(width=20)
    pruned, _ = prune(model, rows(), criterion="random", density={"channels": 0.85}, scope="layer")
    assert set(widths(pruned)) <= {8, 16, 20}
    forward_outputs(pruned, inputs_for(pruned))


def test_a_budget_that_the_multiples_do_not_reach_names_the_range() -> None:
    with pytest.raises(BudgetError, match=r"density in \[0\.1667, 1\]"):
        prune(mixture(), rows(), criterion="random", density={"channels": 0.1})


@pytest.mark.parametrize(
    "options",
    [
        {"scoring": "movement", "units": ["channels"]},
        {"scoring": "movement", "units": ["channels"], "scope": "uniform"},
        {"scoring": "l0", "units": ["heads", "channels", "attention", "layers"]},
        {"scoring": "taylor", "density": {"heads": 0.5, "channels": 0.6}},
    ],
)
def test_fine_pruning_selects_aligned_widths(options: dict[str, Any]) -> None:
    model = mixture()
    arguments = SparseTrainingArguments(
        **{"density": 0.6, **options}, pruning_warmup_ratio=0.0, cooldown_ratio=0.0, pruning_seed=1
    )
    coordinator = ModelPatchingCoordinator(arguments)
    coordinator.patch_model(model)
    coordinator.begin(2)
    for score_N in coordinator.score_parameters():
        score_N.data.add_(torch.randn_like(score_N))
    for _ in range(2):
        model(**rows()[0], labels=rows()[0]["input_ids"]).loss.backward()
        coordinator.observe()
        coordinator.step()
    compact = optimize_model(model)
    assert all(layer.mlp.experts.down_proj.shape[2] % 8 == 0 for layer in compact.model.layers)
    forward_outputs(compact, inputs_for(compact))


def test_training_with_smaller_multiples_is_refused_when_gates_hang() -> None:
    arguments = SparseTrainingArguments(density={"channels": 0.5}, multiple_of=2)
    with pytest.raises(ArgumentError, match="multiple_of"):
        ModelPatchingCoordinator(arguments).patch_model(mixture())


def test_a_decision_that_the_kernels_cannot_run_is_refused_with_what_to_do() -> None:
    model = mixture()
    structure = discover(model, ["channels"])
    keep = {group.name: torch.arange(48) < 37 for group in structure.groups}
    patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    for name, gate in gates_by_group(model, structure).items():
        gate.set_keep(keep[name])
    with pytest.raises(
        UnsupportedModelError, match=r"multiples of 4 channels, not 37.*implementation\('eager'\)"
    ):
        optimize_model(model)
    model.set_experts_implementation("eager")
    assert widths(optimize_model(model)) == [37, 37]


def test_zeros_of_experts_go_as_far_as_the_kernels_allow() -> None:
    model: Any = mixture()
    for layer in model.model.layers:
        layer.mlp.experts.down_proj.data[:, :, 5:24] = 0
    compact = optimize_model(copy.deepcopy(model))
    assert widths(compact) == [32, 32]
    for one, other in zip(
        forward_outputs(compact, inputs_for(model)), forward_outputs(model, inputs_for(model)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 8), (torch.float16, 8)])
def test_kernels_take_the_width_that_they_are_said_to_take_and_no_smaller_one(
    dtype: torch.dtype, width: int
) -> None:
    """Where torch comes to take any width, the rule may go."""
    model = mixture(dtype)
    group = discover(model, ["channels"]).groups[0]
    assert group.least_multiple == width
    cut(model, discover(model, ["channels"]), {group.name: torch.arange(48) < width})
    forward_outputs(model, inputs_for(model))
    narrow = mixture(dtype, width=width // 2)
    with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        forward_outputs(narrow, inputs_for(narrow))
