"""Criteria side by side: the losses of models that `prune` makes, paired errors, and one pass over the text."""

import copy
import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_trainer.errors import ArgumentError
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.run.compare import compare_criteria, write_comparison
from tests.fixtures.oneshot_models import model_of, sequences

NAMES = ("magnitude", "wanda", "kfac_obs(rounds=2)")


def prunings(*names: str, **options: Any) -> list[PruneOptions]:
    return [PruneOptions(criterion=name, **{"density": {"channels": 0.5}, **options}) for name in names]


def losses(model: Any, rows: list[dict[str, torch.Tensor]]) -> list[tuple[float, int]]:
    counts = [row["input_ids"].shape[1] - 1 for row in rows]
    with torch.no_grad():
        means = [float(model(**row, labels=row["input_ids"]).loss) for row in rows]
    return [(mean * count, count) for mean, count in zip(means, counts, strict=True)]


def test_losses_and_paired_errors_are_those_of_models_that_prune_makes(tmp_path: Path) -> None:
    model = model_of("llama")
    before = copy.deepcopy(model.state_dict())
    calibration, held_out = sequences(model, (60,) * 4), sequences(model, (20, 31, 24), seed=5)
    found = compare_criteria(model, calibration, held_out, prunings(*NAMES, reconstruct="least_squares"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    dense = losses(model, held_out)
    tokens = sum(count for _, count in dense)
    assert found.labels == tokens
    assert [o.loss for o in found.outcomes] == sorted(o.loss for o in found.outcomes)
    assert found.outcomes[0].behind == 0.0
    for outcome in found.outcomes:
        pruned, plan = prune(
            model,
            calibration,
            criterion=outcome.criterion,
            density={"channels": 0.5},
            reconstruct="least_squares",
        )
        mine = losses(pruned, held_out)
        rise = sum(a - b for (a, _), (b, _) in zip(mine, dense, strict=True)) / tokens
        parts = [(a - b - rise * n) ** 2 for (a, n), (b, _) in zip(mine, dense, strict=True)]
        # Causal losses are computed in float32.
        assert outcome.rise == pytest.approx(rise, abs=1e-6)
        assert outcome.rise_stderr == pytest.approx(math.sqrt(sum(parts) * 3 / 2) / tokens, abs=1e-6)
        assert outcome.density == plan.density_reached
        assert found.plans[outcome.criterion].groups == plan.groups
    files = write_comparison(found, tmp_path / "out", draw=False)
    rows = list(csv.DictReader(files["table"].read_text().splitlines()))
    assert [row["criterion"] for row in rows] == [outcome.criterion for outcome in found.outcomes]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "there is none"),
        (prunings("wanda", "wanda"), "stands there twice"),
        (prunings("perplexity", density={"layers": 0.5}), "passes of its own"),
        (prunings("wanda", search="dp"), "passes of its own"),
        (prunings("wanda", steps=2), "passes of its own"),
        (prunings("wanda", density=0.5, units=("weights",)), "passes of its own"),
    ],
)
def test_what_cannot_share_a_pass_is_refused(made: list[PruneOptions], message: str) -> None:
    model = model_of("llama")
    with pytest.raises(ArgumentError, match=message):
        compare_criteria(model, sequences(model, (20,)), sequences(model, (20,)), made)


def test_a_classifier_is_judged_by_its_own_labels() -> None:
    model = model_of("bert")
    rows = sequences(model, (20,) * 4)
    found = compare_criteria(model, rows, rows[:1], prunings("wanda", "fisher"))
    assert found.outcomes[0].rise_stderr is None
    assert found.sequences == 1
