"""Options of LoRA, in the dtypes people train in: open gates change nothing, closed ones equal the cut."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import patch
from patchers.units import Kind
from sparse_trainer.criteria.training.registry import read_scoring, scorings
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import batch, tiny

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),
]

KINDS: tuple[Kind, ...] = ("heads", "channels", "attention", "ffn", "layers")  # type: ignore[assignment]
LINEARS: dict[str, Any] = {
    "bert": ["query", "value", "dense"],
    "llama": "all-linear",
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
EMBEDDINGS = {"bert": "word_embeddings", "llama": "embed_tokens", "gpt2": "wpe"}
OPTIONS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "bias of all": {"bias": "all"},
    "bias of adapters": {"bias": "lora_only"},
    "saved modules": {"modules_to_save": "embeddings"},
    "dora, rslora, bias, saved": {
        "use_dora": True, "use_rslora": True, "bias": "all", "modules_to_save": "embeddings",
    },
    "gaussian": {"init_lora_weights": "gaussian"},
}  # fmt: skip
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-2}
"""Of the largest output: a merge rounds the weights to the dtype of the model."""


def dense(family: str, dtype: torch.dtype) -> PreTrainedModel:
    return tiny(family, dtype) if family == "bert" else tiny_model(family, dtype=dtype)


@torch.no_grad()
def adapted(model: nn.Module, family: str, options: dict[str, Any]) -> Any:
    """Return a model around `model`, whose adapters, copies and biases are not what peft starts with."""
    saved = [EMBEDDINGS[family]] if "modules_to_save" in options else None
    config = peft.LoraConfig(
        **{"r": 4, "target_modules": LINEARS[family], **options, "modules_to_save": saved}
    )
    wrapped = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and not name.endswith("score_U"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return wrapped


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**batch(model)).logits
    return logits.float()


def hang(model: nn.Module) -> dict[str, Gate]:
    structure = discover(model, KINDS)
    return patch(model, structure, lambda group: Gate(group.num_units, scored=True))


def close(gates: dict[str, Gate]) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, gate in gates.items():
        kind = name.rpartition(".")[2]
        if kind in ("heads", "channels"):
            gate.set_keep(torch.rand(gate.keep_U.shape, generator=generator) > 0.4)
        elif kind == "ffn" and ".1." in name:
            gate.set_keep(torch.tensor([False]))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", LINEARS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_open_gates_change_nothing_and_closed_ones_equal_the_cut(
    family: str, options: str, dtype: torch.dtype
) -> None:
    model = adapted(dense(family, dtype), family, OPTIONS[options])
    before = outputs(model)
    gates = hang(model)
    assert torch.equal(outputs(model), before)
    close(gates)
    masked = outputs(model)
    limit = TOLERANCE[dtype] * float(masked.abs().max())
    assert float((masked - before).abs().max()) > 2 * limit
    compact = optimize_model(model, check=dtype == torch.float32)
    assert compact.num_parameters() < dense(family, dtype).num_parameters()
    assert compact.dtype == dtype
    assert float((outputs(compact) - masked).abs().max()) <= limit
    merged = copy.deepcopy(model).merge_and_unload()
    assert float((outputs(merged) - masked).abs().max()) <= limit
    again = optimize_model(merged, check=dtype == torch.float32)
    assert torch.equal(outputs(again), outputs(compact))
    with model.disable_adapter():
        assert float((outputs(model) - masked).abs().max()) > limit


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("scoring", scorings())
def test_every_criterion_scores_units_whose_weights_are_frozen(scoring: str, family: str) -> None:
    """None of them reads a gradient that nobody takes: scores differ from unit to unit, and are finite."""
    torch.manual_seed(0)
    criterion = read_scoring(scoring)
    args = SparseTrainingArguments(scoring=scoring, density=0.67, score_learning_rate=0.1)
    coordinator = ModelPatchingCoordinator(args)
    model = adapted(dense(family, torch.float32), family, {}).train()
    coordinator.patch_model(model)
    inputs = {**batch(model)}
    labels = (
        inputs["input_ids"] if family == "llama" else torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
    )
    inputs["labels"] = labels
    if coordinator.wants_calibration:
        coordinator.calibrate([inputs])
    coordinator.begin(8)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(coordinator.parameter_groups(lr=1e-2))
    for _ in range(4):
        outputs = model(**inputs)
        coordinator.loss(outputs.loss, inputs, outputs).backward()
        coordinator.observe()
        optimizer.step()
        optimizer.zero_grad()
        coordinator.step()
    assert coordinator.metrics()["density"] < 1
    scores = criterion.scores(coordinator.model, coordinator.structure, coordinator.gates)
    every_N = torch.cat([score_U.detach().flatten().float() for score_U in scores.values()])
    assert every_N.isfinite().all()
    # Where the noise of l0 holds a gate fully open or closed, it learns nothing in these few steps.
    assert every_N.unique().numel() > (0.05 if scoring == "l0" else 0.5) * every_N.numel()
    for name, tensor in frozen.items():
        assert torch.equal(model.get_parameter(name), tensor), name
        assert model.get_parameter(name).grad is None
