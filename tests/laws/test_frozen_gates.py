"""Gates and scales on frozen weights: no weight moves, and the cut, scales folded, is the gated model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel, TrainingArguments

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, gates_of, patch
from patchers.patching.scales import fold_scales, takes_scales
from patchers.units import KINDS, Group
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, NonFiniteError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.load import load_patched
from sparse_trainer.training.trainer import PruningTrainer
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import batch, logits, perturbed, tiny
from tests.fixtures.oneshot_models import MODELS, calibration, model_of
from tests.fixtures.training import quiet_model, rows, sparse_args, trainer

FROZEN = ("frozen-movement", "frozen-l0", "scales")


def scaled(model: Any, **options: Any) -> dict[str, Gate]:
    """Patch a model with scales, close some units and draw the scales."""
    structure = discover(model, ("heads", "channels"))
    generator = torch.Generator().manual_seed(5)

    def make(group: Group) -> Gate:
        gate = Gate(group.num_units, scored=True)
        gate.learn_scale()
        return gate

    gates = patch(model, structure, make)
    for gate in gates.values():
        keep_U = torch.rand(gate.keep_U.shape, generator=generator) > 0.4
        keep_U[0] = True
        gate.set_keep(keep_U)
        gate.scale_U.data.copy_(0.5 + torch.rand(gate.scale_U.shape, generator=generator))
    return gates


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MODELS)
def test_the_cut_is_the_gated_model_with_its_scales(family: str, dtype: torch.dtype) -> None:
    model = model_of(family).to(dtype)
    whole = logits(model)
    scaled(model)
    gated = logits(model)
    near = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype] * float(gated.abs().max())
    torch.testing.assert_close(logits(optimize_model(model)), gated, rtol=0, atol=near)
    assert not torch.allclose(whole, gated, rtol=0, atol=2 * near)


def test_stacked_experts_take_scales() -> None:
    model: Any = tiny_model("mixtral").double().eval()
    structure = discover(model, ("channels",))
    gates = patch(model, structure, lambda group: Gate(group.num_units, scored=True))
    for gate in gates.values():
        gate.learn_scale()
        gate.scale_U.data.copy_(torch.linspace(0.5, 1.5, gate.keep_U.numel()))
    expected = logits(model)
    fold_scales(model, structure)
    assert all(bool((gate.scale_U == 1).all()) for gate in gates.values())
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)  # its norms compute in float32


def test_scales_get_the_gradient_of_open_units_only() -> None:
    model = model_of("llama").train()
    gates = scaled(model)
    logits_sum(model).backward()
    for gate in gates.values():
        closed_U = gate.keep_U == 0
        assert bool((gate.scale_U.grad[closed_U] == 0).all())
        assert bool((gate.scale_U.grad[~closed_U] != 0).any())
        torch.testing.assert_close(
            gate.score_U.grad[~closed_U], (gate.scale_U.grad * gate.scale_U)[~closed_U]
        )


def logits_sum(model: nn.Module) -> torch.Tensor:
    out: torch.Tensor = model(**batch(model)).logits.float()  # type: ignore[arg-type]
    return out.square().sum()


def trainable(family: str) -> PreTrainedModel:
    """Return a classifier without dropout; the Llama with grouped queries, SwiGLU and RMSNorm."""
    if family == "bert":
        return quiet_model()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=40, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    return perturbed(LlamaForSequenceClassification(config)).double().train()


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", FROZEN)
def test_no_weight_moves_and_the_file_is_what_was_trained(method: str, family: str, tmp_path: Path) -> None:
    model = trainable(family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = trainer(tmp_path / "run", sparse_args(method, density=0.5), model)
    run.train()
    after = dict(model.named_parameters())
    assert all(torch.equal(p, after[name]) for name, p in before.items())
    assert not any(after[name].requires_grad for name in before)
    gates = run.coordinator.gates
    learned = [gate.scale_U for gate in gates.values() if gate.scale_U is not None]
    assert bool(learned) == (method != "frozen-movement")
    assert all(bool((scale_U != 1).any()) for scale_U in learned)
    expected = logits(model.eval())
    pruned = optimize_model(model)
    torch.testing.assert_close(logits(pruned), expected, rtol=0, atol=1e-9)
    save_pruned(pruned, tmp_path / "pruned")
    loaded = load_pruned(tmp_path / "pruned")
    assert torch.equal(logits(loaded), logits(pruned))
    assert all(p.requires_grad for p in loaded.parameters())
    assert not any("_gate." in name for name in loaded.state_dict())


def test_a_checkpoint_brings_its_scales_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("frozen-l0"), trainable("llama"))
    run.train()
    run.save_model(str(tmp_path / "saved"))
    loaded = load_patched(tmp_path / "saved")
    assert torch.equal(logits(loaded), logits(run.model.eval()))
    assert torch.equal(logits(optimize_model(loaded)), logits(optimize_model(run.model)))


def test_heads_alone_leave_the_channels_as_zeros_with_their_scales() -> None:
    model = tiny().eval()
    scaled(model)
    expected = logits(model)
    torch.testing.assert_close(logits(optimize_model(model, "heads")), expected, rtol=0, atol=1e-10)


def test_only_units_that_a_weight_reads_take_scales() -> None:
    assert [kind for kind in KINDS if takes_scales(kind)] == ["heads", "channels"]
    model = tiny()
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(scoring="l0", units=["channels", "layers"], learn_scales=True)
    )
    coordinator.patch_model(model)
    by_kind = {coordinator.structure[n].kind: g.scale_U is not None for n, g in coordinator.gates.items()}
    assert by_kind == {"channels": True, "layers": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "magnitude", "freeze_weights": True}, "freeze_weights: nothing would learn: magnitude"),
        ({"scoring": "taylor", "freeze_weights": True}, "freeze_weights: nothing would learn: taylor"),
        ({"scoring": "loraprune", "freeze_weights": True}, "freeze_weights: loraprune reads gradients"),
        ({"freeze_weights": True, "cheaper": ["relu"]}, "freeze_weights: weights have to learn"),
        ({"freeze_weights": True, "preset": "hybrid"}, "freeze_weights: goes with gates"),
        ({"learn_scales": True, "preset": "hybrid"}, "learn_scales: goes with gates"),
        ({"learn_scales": True, "units": ["layers"]}, "learn_scales: no weight reads layers"),
        ({"start_scoring": "taylor"}, "start_scoring: taylor scores while a model trains"),
        ({"start_scoring": "fischer"}, "start_scoring: .*'fischer'"),
        ({"start_scoring": "fisher", "scoring": "wanda"}, "start_scoring: the scores of wanda start"),
        ({"start_scoring": "wanda", "units": ["layers"]}, "start_scoring: wanda does not score layers"),
        ({"scale_learning_rate": 0.1}, "scale_learning_rate: no scale is learned"),
        ({"learn_scales": True, "scale_learning_rate": 0.0}, "scale_learning_rate: 0.0 is not positive"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SparseTrainingArguments(**options)


def test_scales_that_are_no_numbers_stop_a_training() -> None:
    coordinator = ModelPatchingCoordinator(sparse_args("scales"))
    coordinator.patch_model(tiny())
    next(iter(coordinator.gates.values())).scale_U.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="scales are NaN"):
        coordinator.check_finite()


def test_scales_alone_make_up_for_an_earlier_cut(tmp_path: Path) -> None:
    dense = trainable("llama")
    pruned = copy.deepcopy(dense)
    ModelPatchingCoordinator(sparse_args("magnitude")).patch_model(pruned)
    for gate in gates_of(pruned).values():
        gate.set_keep(torch.arange(gate.keep_U.numel()) % 2 == 0)
    pruned = optimize_model(pruned).train()
    sizes = {name: p.shape for name, p in pruned.named_parameters()}
    arguments = SparseTrainingArguments(density=1.0, freeze_weights=True, learn_scales=True)
    assert not arguments.prunes_nothing
    run = PruningTrainer(
        model=pruned,
        args=TrainingArguments(
            str(tmp_path), max_steps=4, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
        ),
        sparse_args=arguments,
        teacher=dense,
        train_dataset=rows(),
    )
    run.train()
    expected = logits(pruned.eval())
    scaled_model = optimize_model(pruned)
    assert {name: p.shape for name, p in scaled_model.named_parameters()} == sizes
    torch.testing.assert_close(logits(scaled_model), expected, rtol=0, atol=1e-9)


def test_adapters_are_not_frozen_by_mistake() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ArgumentError, match="freeze_weights: the model has adapters"):
        ModelPatchingCoordinator(SparseTrainingArguments(freeze_weights=True)).patch_model(model)


@pytest.mark.parametrize("scoring", ["movement", "l0"])
@pytest.mark.parametrize("options", [{}, {"scope": "layer"}, {"density": {"heads": 0.75, "channels": 0.5}}])
def test_scores_start_in_the_order_of_a_one_shot_criterion(scoring: str, options: dict[str, Any]) -> None:
    model = model_of("llama")
    batches = calibration(model)
    kept = {}
    for name, start in (("fisher", None), (scoring, "fisher")):
        patched = copy.deepcopy(model).train()
        arguments = SparseTrainingArguments(scoring=name, start_scoring=start, **options)
        coordinator = ModelPatchingCoordinator(arguments)
        coordinator.patch_model(patched)
        assert coordinator.wants_calibration
        with pytest.raises(ArgumentError, match="has seen none"):
            coordinator.begin(10)
        coordinator.calibrate(batches)
        coordinator.begin(10)
        coordinator.step(10)
        kept[name] = coordinator.pruner.decided()
    for name, keep_U in kept["fisher"].items():
        assert torch.equal(keep_U, kept[scoring][name]), name
    assert not all(bool(keep_U.all()) for keep_U in kept[scoring].values())


def test_odds_expect_what_the_budget_allows() -> None:
    model = model_of("llama")
    arguments = sparse_args("frozen-l0", density=0.4)
    coordinator = ModelPatchingCoordinator(arguments)
    coordinator.patch_model(model)
    coordinator.calibrate(calibration(model))
    coordinator.begin(10)
    penalty = coordinator.pruner.budget_penalty
    scores = {name: gate.score_U for name, gate in coordinator.gates.items()}
    assert float(penalty.expected(coordinator.gates)(scores).detach()) == pytest.approx(0.4, abs=0.06)


def test_the_teacher_of_a_frozen_model_needs_no_weights_of_its_own() -> None:
    for frozen in (True, False):
        model = tiny()
        arguments = SparseTrainingArguments(freeze_weights=frozen, distil_teacher_name_or_path="self")
        coordinator = ModelPatchingCoordinator(arguments)
        coordinator.patch_model(model)
        own = dict(model.named_parameters())
        teacher = coordinator.distiller.teacher
        assert all((own[name] is weight) == frozen for name, weight in teacher.named_parameters())
        whole = logits(teacher)
        for gate in coordinator.gates.values():
            gate.set_keep(torch.arange(gate.keep_U.numel()) > 0)
        assert torch.equal(logits(teacher), whole)
        assert not torch.equal(logits(model), whole)


def test_gates_stay_learnable_where_something_freezes_all() -> None:
    model = tiny()
    coordinator = ModelPatchingCoordinator(sparse_args("frozen-l0", start_scoring=None))
    coordinator.patch_model(model)
    frozen = copy.deepcopy([name for name, p in model.named_parameters() if not p.requires_grad])
    model.requires_grad_(False)
    coordinator.begin(10)
    assert all(p.requires_grad for p in coordinator.score_parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == frozen
    assert gates_by_group(model, coordinator.structure).keys() == coordinator.gates.keys()
