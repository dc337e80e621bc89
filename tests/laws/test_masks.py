"""Open masks change nothing, closed ones multiply the weights, unpatch gives the very same tensors back."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.layers import linear_at, weight_OI
from patchers.patching.hard_concrete import BETA, HIGH, LOW
from patchers.patching.masks import MaskFactor, multiply
from patchers.patching.patch import gates_of, masks_of, unpatch
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.mask_driver import MaskDriver
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import batch, logits, tiny
from tests.fixtures.same import assert_same

BLOCKS = {"attention_block_rows": 4, "attention_block_cols": 8, "dense_block_rows": 2, "dense_block_cols": 4}
CHANNELS = {option: size for option, size in BLOCKS.items() if option != "dense_block_cols"}
ASKED: Mapping[str, dict[str, Any]] = {
    "elements": {"dense_pruning_method": "topK", "attention_pruning_method": "topK"},
    "blocks": {"dense_pruning_method": "topK", "attention_pruning_method": "topK", **BLOCKS},
    "rows and columns": {"dense_pruning_method": "topK:1d", "attention_pruning_method": "topK:1d", **BLOCKS},
    "channels": {"dense_pruning_method": "topK:1d_alt", "attention_pruning_method": "topK", **CHANNELS},
    "joint": {
        "attention_pruning_method": "topK:joint",
        "attention_block_rows": 4,
        "attention_block_cols": 8,
        "attention_output_with_dense": False,
    },
    "magnitude": {"dense_pruning_method": "magnitude", "attention_pruning_method": "magnitude", **BLOCKS},
    "2:4": {"ampere_pruning_method": "topK"},
    "2:4 and channels": {"dense_pruning_method": "topK:1d_alt", "ampere_pruning_method": "topK"},
}
CASES = [("bert", name) for name in ASKED] + [
    (family, name) for family in ("llama", "gpt2") for name in ("blocks", "channels", "2:4 and channels")
]


def model_of(family: str) -> PreTrainedModel:
    """Return a tiny double-precision model; GPT-2 keeps its weights transposed and q, k and v in one matrix."""
    return tiny() if family == "bert" else tiny_model(family)


def masked(model: PreTrainedModel, *, half: bool, **options: Any) -> ModelPatchingCoordinator:
    """Hang masks, and close about half of each at random."""
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**options))
    coordinator.patch_model(model)
    assert isinstance(coordinator.pruner, MaskDriver)
    if half:
        generator = torch.Generator().manual_seed(5)
        for parameter in coordinator.score_parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        coordinator.begin(2)
        coordinator.step(2)
    return coordinator


def reference(model: PreTrainedModel, coordinator: ModelPatchingCoordinator) -> PreTrainedModel:
    """Return a plain copy whose weights are multiplied by what the masks and gates say."""
    masking = coordinator.pruner
    assert isinstance(masking, MaskDriver)
    keeps = {
        path: mask.keep_OI(weight_OI(linear_at(model, path)).shape[1]) for path, mask in masking.masks.items()
    }
    rows = {path: mask.keep_O for path, mask in masking.masks.items()}
    channels = {
        coordinator.structure[name].consumer: gate.keep_U.double() for name, gate in masking.gates.items()
    }
    plain = copy.deepcopy(model)
    unpatch(plain)
    for path in {*keeps, *channels}:
        linear = linear_at(plain, path)
        weight = weight_OI(linear).data
        weight.mul_(keeps.get(path, torch.ones(())) * channels.get(path, torch.ones(())))
        if linear.bias is not None and path in rows:
            linear.bias.data.mul_(rows[path])
    return plain


@pytest.mark.parametrize(("family", "name"), CASES)
def test_open_masks_are_the_identity(family: str, name: str) -> None:
    model = model_of(family)
    before = logits(model)
    masked(model, half=False, **ASKED[name])
    assert masks_of(model)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(model.train().eval()), before)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_masked_model_is_the_plain_one_with_multiplied_weights(family: str, name: str) -> None:
    model = model_of(family)
    before = logits(model)
    coordinator = masked(model, half=True, **ASKED[name])
    assert not torch.allclose(logits(model), before, atol=1e-3)
    torch.testing.assert_close(logits(model), logits(reference(model, coordinator)), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_optimized_model_says_what_the_masked_one_says(family: str, name: str) -> None:
    model = model_of(family)
    masked(model, half=True, **ASKED[name])
    expected, before = logits(model), {n: p.clone() for n, p in model.named_parameters()}
    compact = optimize_model(model)
    torch.testing.assert_close(logits(compact), expected, rtol=0, atol=1e-10)
    assert not masks_of(compact)
    assert not gates_of(compact)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    if "channels" in name:
        assert compact.num_parameters() < 0.95 * model.num_parameters()


@pytest.mark.parametrize(("family", "name"), CASES)
def test_unpatch_returns_the_very_same_tensors(family: str, name: str) -> None:
    model = model_of(family)
    tensors, keys = dict(model.named_parameters()), list(model.state_dict())
    before = logits(model)
    masked(model, half=True, **ASKED[name])
    unpatch(model)
    assert all(tensor is tensors[n] for n, tensor in model.named_parameters())
    assert list(model.state_dict()) == keys
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(logits(model), before)


def gradient_OI(model: PreTrainedModel, path: str) -> Tensor:
    """Return the gradient of a weight, as [output, input]."""
    linear = linear_at(model, path)
    assert linear.weight.grad is not None
    return linear.weight.grad if isinstance(linear, torch.nn.Linear) else linear.weight.grad.T


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if "channels" not in case[1]])
def test_gradients_are_those_of_a_plain_product(family: str, name: str) -> None:
    """Scores get dL/dM summed over their blocks, closed or open; weights get dL/dW', times the mask."""
    model = model_of(family).train(False)
    coordinator = masked(model, half=True, **ASKED[name])
    masking = coordinator.pruner
    assert isinstance(masking, MaskDriver)
    weights = torch.randn_like(logits(model))
    (model(**batch(model)).logits * weights).sum().backward()
    plain = reference(model, coordinator)
    (plain(**batch(plain)).logits * weights).sum().backward()
    summed: dict[MaskFactor, Tensor] = {}
    for path, mask in masking.masks.items():
        original, outer = weight_OI(linear_at(model, path)), gradient_OI(plain, path)
        torch.testing.assert_close(
            gradient_OI(model, path), outer * mask.keep_OI(original.shape[1]), rtol=0, atol=1e-10
        )
        factors = [f for f in mask.factors if isinstance(f, MaskFactor)]
        for factor in factors:
            product = (outer * original).detach()
            for other in factors:
                product = product if other is factor else multiply(product, other.keep_RC)
            rows, columns = factor.keep_RC.shape
            blocks = product.view(rows, product.shape[0] // rows, columns, -1).sum((1, 3))
            summed[factor] = summed.get(factor, torch.zeros_like(blocks)) + blocks
    # Magnitude has no scores; those of the others move where they are closed too.
    moved = name == "magnitude"
    for factor, expected in summed.items():
        if factor.score_RC is not None:
            assert factor.score_RC.grad is not None
            torch.testing.assert_close(factor.score_RC.grad.double(), expected, rtol=1e-5, atol=1e-6)
            moved |= bool((factor.score_RC.grad[factor.keep_RC == 0] != 0).any())
    assert moved


def test_biases_follow_the_mask_in_the_gradient_too() -> None:
    model = tiny()
    coordinator = masked(model, half=True, attention_pruning_method="topK", attention_block_rows=8,
                         attention_block_cols=0, attention_output_with_dense=False)  # fmt: skip
    assert isinstance(coordinator.pruner, MaskDriver)
    model(**batch(model)).logits.sum().backward()
    value = model.bert.encoder.layer[0].attention.self.value
    closed = coordinator.pruner.masks["bert.encoder.layer.0.attention.self.value"].keep_O == 0
    assert closed.any()
    assert (value.bias.grad[closed] == 0).all()
    assert (value.bias.grad[~closed] != 0).any()


@pytest.mark.parametrize("shape", [":1d_alt", ""])
def test_hard_concrete_values_have_the_gradient_of_their_formula(shape: str) -> None:
    model = tiny().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    options = {"regularization": "l0", "regularization_final_lambda": 1.0, "dense_block_rows": 2}
    columns = {} if shape else {"dense_block_cols": 4}
    coordinator = masked(model, half=False, dense_pruning_method=f"l0{shape}", **options, **columns)
    masking = coordinator.pruner
    assert isinstance(masking, MaskDriver)
    torch.manual_seed(1)
    coordinator.begin(10)
    path = "bert.encoder.layer.0.output.dense"
    site = next(s for s in masking.sites if path in s.paths)
    score = site.score
    assert score is not None

    def loss() -> Tensor:
        return model(**batch(model)).logits.square().sum()

    loss().backward()
    assert score.grad is not None
    value = site.holder().detach()
    inside = ((value > 0) & (value < 1)).flatten().nonzero()[:4].flatten()
    outside = ((value == 0) | (value == 1)).flatten()
    assert len(inside) == 4
    assert (score.grad.flatten()[outside] == 0).all()
    s = (value.flatten()[inside] - LOW) / (HIGH - LOW)
    slope = s * (1 - s) * (HIGH - LOW) / BETA
    buffer = site.holder.value_RC if isinstance(site.holder, MaskFactor) else None
    if buffer is None:  # a gate draws from noise: move that
        buffer, slope = site.holder.noise_U, torch.ones_like(slope)
    for index, factor in zip(inside.tolist(), slope.tolist(), strict=True):
        with torch.no_grad():
            flat = buffer.view(-1)
            flat[index] += 1e-3
            up = loss()
            flat[index] -= 2e-3
            down = loss()
            flat[index] += 1e-3
        difference = float(up - down) / 2e-3 * factor
        assert score.grad.flatten()[index].item() == pytest.approx(difference, rel=2e-2, abs=1e-4)
    model.eval()
    assert set(site.holder().unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", ["joint", "channels"])
def test_a_masked_checkpoint_is_refused_by_stock_loaders(name: str, tmp_path: Path) -> None:
    model = tiny("bert", torch.float32)
    masked(model, half=True, **ASKED[name])
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path)
    again = tiny("bert", torch.float32)
    masked(again, half=False, **ASKED[name])
    again.load_state_dict(model.state_dict())
    assert_same(again, model, logits)


def test_a_copy_of_a_masked_model_is_independent() -> None:
    model = tiny()
    masked(model, half=True, **ASKED["joint"])
    twin = copy.deepcopy(model)
    before = logits(model)
    for mask in set(masks_of(twin).values()):
        for factor in mask.factors:
            factor.keep_RC.zero_()
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(twin), before)
