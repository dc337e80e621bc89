"""Folders with an adapter and its gates: loaded with the base model, cut as in process, and told apart from others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.load import is_patched_checkpoint, load_pruned
from sparse_trainer.run.cut_folder import compact_folder
from sparse_trainer.training.checkpoint import STATE_FILE, save_state
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.gate_file import GATE_FILE
from sparse_trainer.training.load import load_patched
from tests.fixtures.compact_models import logits, tiny
from tests.fixtures.training import sparse_args

peft = pytest.importorskip("peft")

# peft 0.21 asks transformers 5.24 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@torch.no_grad()
def saved(folder: Path, order: str = "adapters first", name: str = "default", **options: Any) -> Any:
    """Return a gated model with adapters, and write its base, and a checkpoint of it."""
    tiny(dtype=torch.float32).save_pretrained(folder / "base")
    model = type(tiny()).from_pretrained(folder / "base")
    config = peft.LoraConfig(target_modules=["query", "output.dense"], task_type="SEQ_CLS", **options)
    coordinator = ModelPatchingCoordinator(sparse_args("movement"))
    if order == "adapters first":
        whole = peft.get_peft_model(model, config, adapter_name=name)
        coordinator.patch_model(whole)
    else:
        whole = peft.get_peft_model(coordinator.patch_model(model), config, adapter_name=name)
    generator = torch.Generator().manual_seed(1)
    for parameter in whole.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    for gate in coordinator.gates.values():
        keep_U = torch.rand(gate.keep_U.shape, generator=generator) > 0.4
        keep_U[:1] = True
        gate.set_keep(keep_U)
    whole.save_pretrained(folder / "checkpoint")
    save_state(folder / "checkpoint", coordinator)
    return whole.eval()


@pytest.mark.parametrize("order", ["adapters first", "gates first"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"name": "mine"}])
def test_a_checkpoint_with_an_adapter_comes_back_and_is_cut_as_in_process(
    options: dict[str, Any], order: str, tmp_path: Path
) -> None:
    model = saved(tmp_path, order, **options)
    assert is_patched_checkpoint(tmp_path / "checkpoint")
    loaded = load_patched(tmp_path / "checkpoint")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-6)
    out, plan = compact_folder(str(tmp_path / "checkpoint"), tmp_path / "out")
    compact = load_pruned(out)
    torch.testing.assert_close(logits(compact), logits(optimize_model(model)), rtol=0, atol=1e-5)
    assert plan.method == "movement"
    assert compact.num_parameters() < tiny().num_parameters()


def test_a_base_model_that_moved_can_be_named(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"base model.*cannot be loaded.*base_model=.*--base-model"):
        load_patched(tmp_path / "checkpoint")
    loaded = load_patched(tmp_path / "checkpoint", base_model=tmp_path / "moved")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-6)


def test_what_is_no_whole_model_is_told_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(CheckpointError, match="sparse-trainer optimize"):
        load_pruned(checkpoint)
    (checkpoint / GATE_FILE).unlink()
    for load in (load_pruned, load_patched):
        with pytest.raises(CheckpointError, match=r"gates beside the adapter are missing"):
            load(checkpoint)
    (checkpoint / STATE_FILE).unlink()
    for load in (load_pruned, load_patched):
        with pytest.raises(CheckpointError, match=r"an adapter of peft, no model.*merge_and_unload"):
            load(checkpoint)


@pytest.mark.parametrize("file", [GATE_FILE, STATE_FILE, "adapter_config.json", "adapter_model.safetensors"])
def test_damage_is_told_by_the_file(file: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "checkpoint" / file).write_bytes(b"{]")
    with pytest.raises(CheckpointError):
        load_patched(tmp_path / "checkpoint")
