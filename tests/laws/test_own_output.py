"""Losses without labels: the same however rows are padded and shared out, and the curvature of the divergence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import patch, unpatch
from patchers.units import CHANNELS, HEADS
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.one_shot.search.divergence import DenseOutput
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.mask_gradients import MaskGradients
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.output_gradients import OutputGradients
from tests.architectures.tiny import tiny_config

Rows = dict[str, Tensor]
LENGTH, REAL, ROWS = 6, 4, 3
WIDTHS = (HEADS, CHANNELS)
MODELS: dict[str, tuple[Any, Pooling | None]] = {
    "classes": (AutoModelForSequenceClassification, None),
    "labels": (AutoModelForSequenceClassification, None),
    "token classes": (AutoModelForTokenClassification, None),
    "spans": (AutoModelForQuestionAnswering, None),
    "masked tokens": (AutoModelForMaskedLM, None),
    "tokens": (AutoModel, None),
    "texts": (AutoModel, Pooling(mode="mean")),
    "first tokens": (AutoModel, Pooling(mode="cls")),
}


def model_with(head: str, **changes: Any) -> PreTrainedModel:
    config = tiny_config("bert")
    config.update(changes | ({"problem_type": "multi_label_classification"} if head == "labels" else {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = MODELS[head][0].from_config(config)
        perturb(model)
    return model.double().eval()


def padded(rows: int = ROWS) -> Rows:
    """Rows of which all but the first end with padding."""
    ids_BT = torch.randint(5, 30, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones(rows, LENGTH, dtype=torch.long)
    mask_BT[1:, REAL:] = 0
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def apart(rows: Rows) -> list[Rows]:
    """The same rows one by one, without padding."""
    lengths = rows["attention_mask"].sum(1)
    return [
        {name: value[row : row + 1, : lengths[row]] for name, value in rows.items()}
        for row in range(len(lengths))
    ]


def more_padding(rows: Rows) -> list[Rows]:
    return [{name: torch.nn.functional.pad(value, (0, 3)) for name, value in rows.items()}]


@pytest.mark.parametrize("change", [apart, more_padding])
@pytest.mark.parametrize("head", MODELS)
def test_neither_padding_nor_batches_change_what_is_collected(
    head: str, change: Callable[[Rows], list[Rows]]
) -> None:
    model, pooling = model_with(head), MODELS[head][1]
    structure = discover(model, WIDTHS)
    found = [
        collect(model, structure, Batches(model, rows, pooling), [MaskGradients(), OutputGradients()])
        for rows in ([padded()], change(padded()))
    ]
    for group in structure.groups:
        one, other = (each.of(MaskGradients())[group.name] for each in found)
        assert float(one.square_U.sum()) > 0
        torch.testing.assert_close(one.square_U, other.square_U)
        torch.testing.assert_close(one.absolute_U, other.absolute_U)
        felt = [each.of(OutputGradients())[group.consumer].second_OO for each in found]
        torch.testing.assert_close(*felt)


@pytest.mark.parametrize("head", MODELS)
def test_padding_does_not_change_the_divergence(head: str) -> None:
    model, other = (model_with(head).requires_grad_(False) for _ in range(2))
    for weight in other.parameters():
        weight.mul_(1.05)
    totals = []
    for rows in ([padded()], apart(padded()), more_padding(padded())):
        total, positions = 0.0, 0
        for batch in Batches(model, rows, MODELS[head][1]).read(labelled=False):
            dense = DenseOutput(model(**batch.inputs), batch)
            total += float(dense.divergence(other(**batch.inputs)))
            positions += dense.positions
        totals.append((total, positions))
    assert totals[0][0] > 0
    assert totals[1] == pytest.approx(totals[0])
    assert totals[2] == pytest.approx(totals[0])


@pytest.mark.parametrize("head", ["classes", "labels", "texts", "tokens"])
def test_squared_gradients_are_the_curvature_of_the_divergence(head: str) -> None:
    """One text many times over: the mean square is the second derivative of the divergence in each gate."""
    model, pooling, copies = model_with(head, num_hidden_layers=1), MODELS[head][1], 1500
    structure = discover(model, WIDTHS)
    row = {name: value[:1] for name, value in padded().items()}
    many = [{name: value.expand(copies, -1) for name, value in row.items()}]
    sums = collect(model, structure, Batches(model, many, pooling), [MaskGradients()]).of(MaskGradients())
    (batch,) = Batches(model, [row], pooling).read(labelled=False)
    dense = DenseOutput(model(**batch.inputs), batch)
    gates = patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    step = 1e-3
    for group in structure.groups:
        for unit in range(group.num_units):
            moved = []
            for sign in (1, -1):
                gates[group.name].keep_U = torch.ones(group.num_units, dtype=torch.float64)
                gates[group.name].keep_U[unit] += sign * step
                with torch.no_grad():
                    moved.append(float(dense.divergence(model(**batch.inputs))))
            gates[group.name].keep_U = torch.ones(group.num_units, dtype=torch.float64)
            curvature = sum(moved) / step**2
            found = float(sums[group.name].square_U[unit]) / copies
            assert found == pytest.approx(curvature, rel=0.15, abs=1e-9), (group.name, unit)
    unpatch(model)


def test_labels_that_are_right_each_by_itself_are_compared_one_by_one() -> None:
    dense, other = (model_with("labels").requires_grad_(False) for _ in range(2))
    for weight in other.parameters():
        weight.mul_(1.05)
    row = padded(1)
    p, q = (torch.distributions.Bernoulli(logits=model(**row).logits) for model in (dense, other))
    (batch,) = Batches(dense, [row]).read(labelled=False)
    found = DenseOutput(dense(**batch.inputs), batch).divergence(other(**batch.inputs))
    assert float(found) == pytest.approx(float(torch.distributions.kl_divergence(p, q).sum()))


@pytest.mark.parametrize(("head", "apart"), [("labels", True), ("classes", False), ("token classes", False)])
def test_only_what_classifies_rows_has_labels_one_by_one(head: str, apart: bool) -> None:
    changes = {} if head == "classes" else {"problem_type": "multi_label_classification"}
    (batch,) = Batches(model_with(head, **changes), [padded(1)]).read(labelled=False)
    assert batch.has_labels_one_by_one == apart


@pytest.mark.parametrize("search", [None, "dp", "evolve"])
@pytest.mark.parametrize("criterion", ["fisher", "obs", "kfac_obs", "taylor", "fisher + obs"])
@pytest.mark.parametrize("head", ["classes", "labels", "texts"])
def test_a_model_without_labels_is_pruned_the_same_however_it_is_padded(
    head: str, criterion: str, search: str | None
) -> None:
    rows = [padded(ROWS * 8)]
    cut = [
        prune(
            model_with(head),
            given,
            criterion=criterion,
            search=search,
            density=0.5,
            reconstruct="least_squares",
            pooling="mean" if head == "texts" else None,
        )
        for given in (rows, apart(rows[0]))
    ]
    assert cut[0][1].groups == cut[1][1].groups
    for one, other in zip(cut[0][0].parameters(), cut[1][0].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_pooling_beside_a_head_is_refused() -> None:
    with pytest.raises(ArgumentError, match="has a head"):
        prune(model_with("classes"), [padded()], pooling="mean")
    with pytest.raises(ArgumentError, match="pooling"):
        prune(model_with("texts"), [padded()], pooling="sum")


def test_labels_count_where_there_are_some() -> None:
    model, rows = model_with("classes"), padded()
    structure = discover(model, WIDTHS)
    labelled = [{**rows, "labels": torch.tensor([0, 1, 0])}]
    found = [collect(model, structure, given, [MaskGradients()]) for given in ([rows], labelled)]
    one, other = (each.of(MaskGradients())[structure.groups[0].name].square_U for each in found)
    assert not torch.allclose(one, other)


def test_what_needs_no_loss_is_as_it_was() -> None:
    model, rows = model_with("texts"), [padded()]
    structure = discover(model, WIDTHS)
    found = [
        collect(model, structure, Batches(model, rows, pooling), [Moments()]) for pooling in (None, Pooling())
    ]
    for path, moments in found[0].of(Moments()).items():
        assert torch.equal(moments.mean_I, found[1].of(Moments())[path].mean_I)


def labels_said(logits_NC: Tensor, other_NC: Tensor) -> float:
    """How far labels that are right each by itself are apart."""
    (batch,) = Batches(model_with("labels"), [padded(1)]).read(labelled=False)
    return float(DenseOutput({"logits": logits_NC}, batch).divergence({"logits": other_NC}))


def test_small_divergences_of_labels_are_not_lost_among_large_sums() -> None:
    dense_NC, step_NC = torch.randn(2, 4096, 20, generator=torch.Generator().manual_seed(0)).unbind()
    other_NC = 3 * dense_NC + 1e-3 * step_NC
    exact = labels_said(3 * dense_NC.double(), other_NC.double())
    assert labels_said(3 * dense_NC, other_NC) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_that_are_certain_have_a_divergence(dtype: torch.dtype) -> None:
    certain_NC = torch.tensor([[100.0, -100.0]], dtype=dtype)
    assert labels_said(certain_NC, certain_NC) == 0.0
    assert labels_said(certain_NC, -certain_NC) == pytest.approx(200.0)


def test_text_alone_is_refused_for_a_decoder_that_reads_labels_with_what_to_do() -> None:
    model = AutoModelForSeq2SeqLM.from_config(tiny_config("t5"))
    rows = [{"input_ids": padded(1)["input_ids"]}]
    for labelled in (True, False):
        with pytest.raises(DataError, match="in Python"):
            collect(
                model,
                discover(model, WIDTHS),
                Batches(model, rows),
                [MaskGradients()] if labelled else [Moments()],
            )
