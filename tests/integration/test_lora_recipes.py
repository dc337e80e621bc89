"""Recipes with adapters: frozen weights stay, stopped runs go on, what cannot work is refused before training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer

from sparse_trainer.errors import RecipeError, SparseTrainerError
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.training.load import load_patched
from tests.fixtures.recipe_files import small, write_small_files

pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_files(tmp_path_factory.mktemp("recipes"))


def lora(files: Path, out: Path, *overrides: str) -> Recipe:
    return small("sst2-local-lora", files, out, "export.verify=false", *overrides)


def go(recipe: Recipe, **options: Any) -> Any:
    return run(recipe, lambda line: None, **options)


def stop_at_step(count: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    step, calls = Trainer.training_step, [0]

    def counted(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > count:
            raise error
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counted)


PLAIN = ("pruning=null", "model.prune_from=pretrained")


def test_without_pruning_it_is_plain_lora_merged_into_a_stock_model(files: Path, tmp_path: Path) -> None:
    result = go(lora(files, tmp_path / "run", *PLAIN, "lora.target_modules=[query, value]"))
    assert not list(result.folder.glob("adapter*"))
    before = load_file(files / "model" / "model.safetensors")
    after = AutoModelForSequenceClassification.from_pretrained(result.folder).bert.state_dict()
    for name, tensor in before.items():
        moved = any(part in name for part in ("query.weight", "value.weight"))
        assert torch.equal(after[name], tensor) != moved, name


@pytest.mark.parametrize(
    "changes",
    [
        ("pruning.scoring=loraprune", "lora.use_rslora=true"),
        ("pruning.scoring=taylor", "lora.use_dora=true", "lora.bias=all"),
        ("pruning.scoring=l0", "model.dense_training=null", "model.prune_from=pretrained",
         "pruning.distil_teacher_name_or_path=self"),
    ],
    ids=["loraprune", "dora", "l0"],
)  # fmt: skip
def test_a_run_that_is_stopped_goes_on_and_ends_as_one_that_was_not(
    changes: tuple[str, ...], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = ("training.save_strategy=steps", "training.save_steps=2", "training.lr_scheduler_type=constant")
    whole = go(lora(files, tmp_path / "whole", *changes, *saving))
    recipe = lora(files, tmp_path / "stopped", *changes, *saving)
    with monkeypatch.context() as patch:
        stop_at_step(3 if "model.dense_training=null" in changes else 7, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(recipe)
    found = go(recipe, resume=True)
    assert Plan.load(found.folder).groups == Plan.load(whole.folder).groups
    now, then = (load_file(folder / "model.safetensors") for folder in (found.folder, whole.folder))
    assert now.keys() == then.keys()
    for name, tensor in then.items():
        torch.testing.assert_close(now[name], tensor, rtol=0, atol=0)
    for checkpoint in (2, 4):
        load_patched(tmp_path / "stopped" / f"checkpoint-{checkpoint}", base_model=files / "model")


def test_a_run_that_is_stopped_after_training_is_cut_alike(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapters are saved with their gates before the model is cut, and are taken from there."""
    changes = ("model.dense_training=null", "model.prune_from=pretrained",
               "pruning.distil_teacher_name_or_path=self", "pruning.scoring=loraprune")  # fmt: skip
    whole = go(lora(files, tmp_path / "whole", *changes))
    recipe = lora(files, tmp_path / "stopped", *changes)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sparse_trainer.run.stages.write_beside", stopped)
        with pytest.raises(KeyboardInterrupt):
            go(recipe)
    stop_at_step(0, monkeypatch, AssertionError("training started again"))
    found = go(recipe, resume=True)
    now, then = (load_file(folder / "model.safetensors") for folder in (found.folder, whole.folder))
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in then.items())


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "an unknown module": (
        ("lora.target_modules=[query, valeu]",),
        r"override 'lora\.target_modules.*: lora\.target_modules: no module is called 'valeu'.*mean 'value'\?",
    ),
    "rank 0": (("lora.r=0",), r"lora\.r: 0 is too small\. Give 1 or more"),
    "an unknown key": (("lora.rank=4",), r"lora\.rank: unknown key"),
    "an unknown start": (("lora.init=pissa",), r"lora\.init: 'pissa' is text.*one of default, gaussian, orthogonal"),
    "loraprune without adapters": (
        ("lora=null", "pruning.scoring=loraprune"), r"has no LoRA adapters.*in a recipe section lora",
    ),
    "loraprune with DoRA": (
        ("lora.use_dora=true", "pruning.scoring=loraprune"), r"no formula.*lora\.use_dora: false",
    ),
    "loraprune beside units without adapters": (
        ("lora.target_modules=[query]", "pruning.scoring=loraprune"),
        r"0\.channels: has no LoRA.*Name some of .*dense in lora\.target_modules",
    ),
    "masks under adapters": (
        ("pruning={dense_pruning_method: topK, attention_pruning_method: topK}",), r"[Aa]dapter",
    ),
    "copies in the blocks": (("lora.modules_to_save=[classifier, key]",), r"modules_to_save"),
    "hidden features beside adapters": (("pruning.units=[hidden]", "pruning.scoring=l0"), r"adapter"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_any_training(
    case: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at_step(0, monkeypatch, AssertionError("training started"))
    changes, said = REFUSED[case]
    with pytest.raises(SparseTrainerError, match=said):
        go(lora(files, tmp_path / "run", *changes))
    assert not (tmp_path / "run").exists()


def test_a_quantized_base_is_refused_before_it_is_loaded(files: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(files / "model")
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(tmp_path / "quantized")
    with pytest.raises(RecipeError, match=r"are quantized: .*Name the unquantized model"):
        go(lora(files, tmp_path / "run", f"model.name_or_path={tmp_path / 'quantized'}"))
