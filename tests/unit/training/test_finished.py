"""A model that is cut in its place in a Trainer: what the lines of a script that follow do with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForSequenceClassification

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GATE_FILE, STATE_FILE
from sparse_trainer.folders.load import is_patched_checkpoint, load_pruned
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.training.trainer import PruningTrainer
from tests.fixtures.same import assert_same_tensors
from tests.fixtures.training import quiet_model, sparse_args, trainer

MASKS = {"scoring": "movement", "dense_pruning_method": "topK:1d_alt", "attention_pruning_method": "disabled"}
LORA = [
    # peft 0.21 asks transformers 5.24 for a property by its old name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


def with_adapters() -> Any:
    """Return a model with LoRA on every linear of its blocks."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(target_modules=["query", "output.dense"], r=4, task_type="SEQ_CLS")
    return peft.get_peft_model(quiet_model(), config)


def trained(folder: Path, *, lora: bool = False, **options: Any) -> PruningTrainer:
    """Return a trainer that has trained, and saved its model with the gates."""
    asked = {"scoring": "movement", "density": 0.5, **options}
    run = trainer(folder, sparse_args(asked.pop("scoring"), **asked), with_adapters() if lora else None)
    run.train()
    run.save_model()
    return run


@pytest.mark.parametrize(
    ("options", "lora"),
    [({}, False), (MASKS, False), pytest.param({}, True, marks=LORA)],
    ids=["gates", "masks", "lora"],
)
def test_it_is_judged_and_saved_as_any_model(options: dict[str, Any], lora: bool, tmp_path: Path) -> None:
    run = trained(tmp_path, lora=lora, **options)
    assert is_patched_checkpoint(tmp_path)
    assert (tmp_path / STATE_FILE).is_file()
    before = run.evaluate()

    run.model = optimize_model(run.model)
    assert run.evaluate()["eval_loss"] == pytest.approx(before["eval_loss"], abs=1e-5)
    answers = torch.as_tensor(run.predict(run.eval_dataset).predictions)
    run.save_model()

    gone = (STATE_FILE, GATE_FILE, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert Plan.load(tmp_path).params["compact"] == run.model.num_parameters()
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert_same_tensors(stock, run.model)
    loaded = load_pruned(tmp_path).eval()
    assert_same_tensors(loaded, run.model)
    rows = torch.tensor([row["input_ids"] for row in run.eval_dataset])
    with torch.no_grad():
        torch.testing.assert_close(loaded(rows).logits, answers, rtol=0, atol=1e-5)


def test_what_is_pushed_is_the_cut_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: pushed.update(options))
    run = trained(tmp_path)
    run.model = optimize_model(run.model)
    run.hub_model_id = "someone/tiny"
    run.push_to_hub(tasks="text-classification")
    assert pushed["folder_path"] == str(tmp_path)
    assert load_pruned(tmp_path).num_parameters() == run.model.num_parameters()
    assert (tmp_path / PLAN_FILE).is_file()
    card = (tmp_path / "README.md").read_text()
    assert "structured-sparsity" in card
    assert "asked to keep 50% of the prunable params" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card


def test_before_the_cut_the_card_is_the_trainers(tmp_path: Path) -> None:
    run = trained(tmp_path)
    run.create_model_card(model_name="tiny")
    assert "structured-sparsity" not in (tmp_path / "README.md").read_text()


def test_it_does_not_train_on_in_its_place(tmp_path: Path) -> None:
    """The optimizer holds the weights of the model before the cut, and would train these in silence."""
    run = trained(tmp_path)
    run.model = optimize_model(run.model)
    with pytest.raises(ArgumentError, match=r"trainer.model: was cut.*Give it to a new Trainer"):
        run.train()
    again = trainer(tmp_path / "again", sparse_args("movement", density=0.5), run.model)
    again.train()
    assert optimize_model(again.model).num_parameters() < run.model.num_parameters()
