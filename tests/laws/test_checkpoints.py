"""Checkpoints from the middle of pruning: gates come back, whatever a type is called on disk and whoever saves it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.conversion_mapping import get_model_conversion_mapping

from patchers.discovery.discover import discover
from patchers.patching.patch import gated, gates_of
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.folders.load import is_patched_checkpoint, load_pruned
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.load import load_patched
from sparse_trainer.training.trainer import PruningTrainer, save_state
from tests.architectures.tiny import NotTestable, model_types, tiny_model

RENAMED = (
    "beit", "clip", "deit", "dinov2", "esm", "gpt_neox", "llava", "mixtral", "nomic_bert", "qwen2_moe", "qwen3_moe",
    "vit",
)  # fmt: skip
"""Types whose weights `save_pretrained` writes under other names than those in memory."""
SHARDS = "20KB"


def saves_other_names(model: PreTrainedModel) -> bool:
    """Tell whether transformers converts the names of a type."""
    return bool(get_model_conversion_mapping(model, add_legacy=False))


def pruned_halfway(model: PreTrainedModel, **options: Any) -> ModelPatchingCoordinator:
    """Patch a model and close some of its gates, or mask blocks where `options` ask for it."""
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**options))
    coordinator.patch_model(model)
    generator = torch.Generator().manual_seed(3)
    for gate in gates_of(model).values():
        # Eight at a time, where there are so many: experts keep widths that their kernels read.
        run = 8 if len(gate.keep_U) % 8 == 0 else 1
        keep_R = torch.rand(len(gate.keep_U) // run, generator=generator) > 0.4
        keep_R[:1] = True
        gate.set_keep(keep_R.repeat_interleave(run))
    return coordinator


def save(coordinator: ModelPatchingCoordinator, folder: Path, **options: Any) -> None:
    coordinator.model.save_pretrained(folder, **options)  # type: ignore[operator]
    save_state(folder, coordinator)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Check every tensor of two models, gates and dtypes included."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    different = [n for n in mine if mine[n].dtype != theirs[n].dtype or not torch.equal(mine[n], theirs[n])]
    assert different == []


def check_comes_back(model_type: str, folder: Path) -> None:
    """The gates come back, and the cut of what was loaded is the cut in the process that saved."""
    model = tiny_model(model_type)
    coordinator = pruned_halfway(model)
    save(coordinator, folder)
    loaded = load_patched(folder)
    assert_same(loaded, model)
    assert_same(optimize_model(loaded, check=False), optimize_model(model, check=False))
    with pytest.raises(RuntimeError, match="mismatch"):
        type(model).from_pretrained(folder)


@pytest.mark.parametrize("model_type", ["bert", "t5", *RENAMED])
def test_a_checkpoint_comes_back_and_is_cut_as_in_process(model_type: str, tmp_path: Path) -> None:
    if model_type != "dinov2":  # transformers 5.16 keeps its names
        assert saves_other_names(tiny_model(model_type)) == (model_type in RENAMED)
    check_comes_back(model_type, tmp_path)


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")
def test_every_type_that_is_renamed_comes_back(tmp_path: Path) -> None:
    # The class of apertus1p5_text cannot be built from a config that was saved (transformers 5.24).
    broken = {}
    for model_type in model_types():
        try:
            if not saves_other_names(tiny_model(model_type)):
                continue
            check_comes_back(model_type, tmp_path / model_type)
        except (NotTestable, UnsupportedModelError):
            continue
        except (AssertionError, ValueError, TypeError, RuntimeError) as error:
            broken[model_type] = str(error)
    assert broken.keys() <= {"apertus1p5_text"}, broken


@pytest.mark.parametrize("model_type", RENAMED)
def test_checkpoints_of_before_hold_the_names_that_transformers_writes(
    model_type: str, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    coordinator = pruned_halfway(model)
    for part in model.modules():
        vars(part).pop("_weight_conversions", None)
    save(coordinator, tmp_path)
    assert_same(load_patched(tmp_path), model)


MASKS = {"dense_pruning_method": "topK", "attention_pruning_method": "topK"}


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("bert", MASKS),
        ("vit", MASKS),
        ("bert", {"scoring": "l0"}),
        ("vit", {"scoring": "layer_gate"}),
        ("bert", {"units": ["hidden"]}),
    ],
    ids=["masks", "masks-vit", "l0", "layers-vit", "hidden"],
)
def test_whatever_hangs_on_the_model_comes_back(
    model_type: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    coordinator = pruned_halfway(model, **options)
    with torch.no_grad():
        for score in coordinator.score_parameters():
            score.normal_()
    save(coordinator, tmp_path, max_shard_size=SHARDS)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(load_patched(tmp_path), model)
    with pytest.raises(RuntimeError, match="mismatch"):
        type(model).from_pretrained(tmp_path)


def test_the_dtype_is_that_of_the_stored_tensors_each_its_own(tmp_path: Path) -> None:
    model = tiny_model("vit", dtype=torch.bfloat16)
    model.layernorm.float()
    save(pruned_halfway(model), tmp_path)
    loaded = load_patched(tmp_path)
    assert_same(loaded, model)
    assert loaded.dtype == torch.bfloat16


PARTS: dict[str, Callable[[Any], PreTrainedModel]] = {
    "base model": lambda model: model.base_model,
    "a tower": lambda model: model.base_model.vision_tower,
    "the language model": lambda model: model.base_model.language_model,
}


@pytest.mark.parametrize(
    ("model_type", "part"), [("llama", "base model"), *[("llava", name) for name in PARTS]]
)
def test_a_part_that_is_saved_alone_does_not_pass_for_a_dense_model(
    model_type: str, part: str, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    pruned_halfway(model)
    inner = PARTS[part](model)
    assert gates_of(inner)
    inner.save_pretrained(tmp_path)
    for loads in (type(inner), AutoModel):
        with pytest.raises(RuntimeError, match="mismatch"):
            loads.from_pretrained(tmp_path)
    assert is_patched_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="middle of pruning"):
        load_pruned(tmp_path)


def test_unpatch_leaves_nothing_of_it(tmp_path: Path) -> None:
    model = tiny_model("vit")
    before = {path: set(vars(module)) for path, module in model.named_modules()}
    with gated(model, discover(model), {}):
        pass
    assert {path: set(vars(module)) for path, module in model.named_modules()} == before
    model.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path), model)


class _Pictures(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": index % 2}


def _picture_trainer(folder: Path) -> Trainer:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=8
    )  # fmt: skip
    options = TrainingArguments(
        str(folder), max_steps=8, save_steps=4, per_device_train_batch_size=4, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    return PruningTrainer(
        model=ViTForImageClassification(config),
        args=options,
        train_dataset=_Pictures(),
        sparse_args=SparseTrainingArguments(density=0.5),
    )


def test_a_type_that_is_renamed_resumes_as_if_uninterrupted(tmp_path: Path) -> None:
    whole, resumed = _picture_trainer(tmp_path), _picture_trainer(tmp_path)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same(resumed.model, whole.model)
