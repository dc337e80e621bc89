"""Criteria side by side: the losses of models that `prune` makes, paired errors, and one pass over the text."""

import copy
import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from sparse_trainer.errors import ArgumentError, DataError
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


def test_losses_and_paired_errors_are_those_of_models_that_prune_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    drawn: list[Any] = []
    monkeypatch.setattr("sparse_trainer.run.compare.save_picture", lambda figure, path: drawn.append(figure))
    files = write_comparison(found, tmp_path / "out")
    losses_axis, *widths = drawn[0].axes
    assert drawn[0].get_suptitle() == f"{found.plans[NAMES[0]].architecture}, criteria, density 0.50"
    assert losses_axis.get_title("left") == "rise of the loss per label, in nats"
    assert widths[-1].get_xlabel() == "layer"
    for axis in widths:  # from none to all, so that heights compare
        assert axis.get_ylim()[0] == 0
        assert len(axis.lines) == len(NAMES)
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


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_without_labels_cuts_are_judged_by_how_far_the_output_moves(pooling: str | None) -> None:
    model = model_of("bert")
    if pooling is not None:
        model = AutoModel.from_config(model.config).eval()
    rows = [{"input_ids": row["input_ids"]} for row in sequences(model, (20, 20, 12, 16))]
    found = compare_criteria(model, rows[:2], rows[2:], prunings("wanda", "fisher", pooling=pooling))
    assert found.measure == "divergence"
    assert found.dense_loss == pytest.approx(0.0, abs=1e-12)
    assert found.sequences == 2
    assert found.labels == (12 + 16 if pooling is None else 2)
    for outcome in found.outcomes:
        pruned, _ = prune(
            model, rows[:2], criterion=outcome.criterion, density={"channels": 0.5}, pooling=pooling
        )
        with torch.no_grad():
            moved = [_moved(model(**row), pruned(**row), pooling) for row in rows[2:]]
        assert outcome.loss > 0
        assert outcome.loss == pytest.approx(sum(moved) / found.labels, rel=1e-4)


def test_losses_and_divergences_are_not_added_up() -> None:
    model = model_of("bert")
    labelled = sequences(model, (20,) * 3)
    bare = [{"input_ids": row["input_ids"]} for row in labelled]
    with pytest.raises(DataError, match="only some sequences have labels"):
        compare_criteria(model, bare, [*labelled[:2], bare[2]], prunings("wanda"))


def _moved(dense: Any, other: Any, pooling: str | None) -> float:
    if pooling is None:
        p, q = (torch.distributions.Categorical(logits=each.logits) for each in (dense, other))
        return float(torch.distributions.kl_divergence(p, q).sum())
    a, b = (each.last_hidden_state.mean(1) for each in (dense, other))
    return float((a - b).square().sum() / a.square().sum())
