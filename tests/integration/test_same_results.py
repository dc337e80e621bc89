"""Seeded runs of every criterion against what they gave before the source was laid out anew.

To record: `python -m tests.integration.test_same_results`.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from tests.fixtures.oneshot_models import calibration, model_of
from tests.fixtures.training import METHODS, trainer

RECORD = Path(__file__).parents[1] / "data" / "same_results.json"
ONE_SHOT = (
    "afr", "fisher", "ifv", "magnitude", "minitron", "obs", "random", "refer_svd", "snip", "taylor", "taylor_2nd",
    "wanda", "wifn", "wifv",
)  # fmt: skip
MASKS: Mapping[str, dict[str, Any]] = {
    "masks-topk": {"dense_pruning_method": "topK:1d_alt", "attention_pruning_method": "topK"},
    "masks-hybrid": {"preset": "hybrid"},
    "masks-magnitude": {"dense_pruning_method": "magnitude"},
    "masks-l0": {"dense_pruning_method": "l0", "regularization": "l0", "regularization_final_lambda": 5.0},
}
TRAININGS: Mapping[str, dict[str, Any]] = {
    **{name: {"scoring": name, **options} for name, options in METHODS.items()},
    **{name: {"scoring": name, "calibration_samples": 8} for name in ONE_SHOT if name not in METHODS},
    "movement-layer": {"scoring": "movement", "scope": "layer", "multiple_of": 4},
    "movement-macs": {"scoring": "movement", "target": "macs", "scope": "uniform"},
    **MASKS,
}
PRUNINGS: Mapping[str, dict[str, Any]] = {
    **{f"{family} {name}": {"criterion": name} for name in ONE_SHOT for family in ("bert", "llama")},
    "llama mixture": {"criterion": "wanda + 0.5 fisher"},
    "llama allocation": {"criterion": "wifv", "allocation": "taylor", "target": "macs"},
    "llama steps": {"criterion": "taylor", "steps": 2},
    "bert sequential": {"criterion": "wifv", "reconstruct": "least_squares", "sequential": True},
    "llama block": {"criterion": "wanda", "by_block": True, "reconstruct": "least_squares"},
    "llama scale": {
        "criterion": "wanda",
        "reconstruct": "scale",
        "density": {"heads": 0.5, "channels": 0.75},
    },
}


def trained(name: str, folder: Path) -> dict[str, Any]:
    """Fine-prune a tiny BERT; return the loss, the kept units and the outputs of the result."""
    run = trainer(folder, SparseTrainingArguments(**TRAININGS[name]))
    loss = run.train().training_loss
    if name.startswith("masks"):
        return {"loss": loss, "outputs": _outputs(run.model)}
    result = optimize_model(run.model, check=False)
    return {"loss": loss, "kept": _kept(result.pruning_plan), "outputs": _outputs(result)}


def pruned(name: str) -> dict[str, Any]:
    """Prune a tiny model in one shot; return the kept units and the outputs of the result."""
    model = model_of(name.partition(" ")[0])
    options = {"density": 0.6, **PRUNINGS[name]}
    result, plan = prune(model, calibration(model), **options)
    return {"kept": _kept(plan), "outputs": _outputs(result)}


def _kept(plan: Any) -> dict[str, list[int]]:
    return {name: group["keep"] for name, group in plan.groups.items()}


@torch.no_grad()
def _outputs(model: torch.nn.Module) -> list[float]:
    ids = torch.arange(5, 25).view(2, 10)
    found: list[float] = model.eval()(input_ids=ids).logits.flatten()[:6].tolist()
    return found


def check_same(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert now.get("kept") == before.get("kept")
    assert now.get("loss") == pytest.approx(before.get("loss"), abs=1e-6)
    assert now["outputs"] == pytest.approx(before["outputs"], abs=1e-6)


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


@pytest.mark.parametrize("name", TRAININGS)
def test_fine_pruning_gives_what_it_gave(name: str, tmp_path: Path, before: dict[str, Any]) -> None:
    check_same(trained(name, tmp_path), before[f"train {name}"])


@pytest.mark.parametrize("name", PRUNINGS)
def test_one_shot_pruning_gives_what_it_gave(name: str, before: dict[str, Any]) -> None:
    check_same(pruned(name), before[name])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {f"train {name}": trained(name, Path(folder) / name) for name in TRAININGS}
    RECORD.write_text(json.dumps(found | {name: pruned(name) for name in PRUNINGS}) + "\n")
