"""What is collected on a calibration set does not depend on how its sequences are shared out over batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCTC,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForCausalLM,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.errors import DataError
from sparse_trainer.inputs.labels import IGNORED, shifts_labels
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.elements import Elements
from sparse_trainer.statistics.mask_gradients import MaskGradients
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic
from tests.architectures.tiny import tiny_config, tiny_model

ROWS = 2


def headed(auto: object, model_type: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = auto.from_config(tiny_config(model_type))  # type: ignore[attr-defined]
        perturb(model)
    return model.double().eval()


def answered(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs with token labels, of which the rows ignore different numbers, the first one at one row's start."""
    inputs = {n: v for n, v in inputs_for(model, rows=ROWS).items() if n != "decoder_input_ids"}
    if model.config.is_encoder_decoder:
        model.config.decoder_start_token_id = model.config.pad_token_id = 0
    if "labels" not in inputs:
        inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"] = inputs["labels"].clone()
    inputs["labels"][0, :2] = IGNORED
    return inputs


def spans(model: PreTrainedModel) -> dict[str, Tensor]:
    where = torch.tensor([1, 2])
    return {**inputs_for(model, rows=ROWS), "start_positions": where, "end_positions": where + 1}


def classes(model: PreTrainedModel) -> dict[str, Tensor]:
    inputs = {n: v for n, v in inputs_for(model, rows=ROWS).items() if n != "labels"}
    return {**inputs, "labels": torch.tensor([0, 1])}


def sounds(model: PreTrainedModel) -> dict[str, Tensor]:
    labels = torch.tensor([[5, 6, 7], [4, 5, IGNORED]])
    return {**{n: v for n, v in inputs_for(model, rows=ROWS).items() if n != "labels"}, "labels": labels}


CASES: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[PreTrainedModel], dict[str, Tensor]]]] = {
    "llama": (lambda: tiny_model("llama", dtype=torch.float64), answered),
    "t5": (lambda: tiny_model("t5", dtype=torch.float64), answered),
    "bart": (lambda: tiny_model("bart", dtype=torch.float64), answered),
    "llava": (lambda: tiny_model("llava", dtype=torch.float64), answered),
    "whisper": (lambda: tiny_model("whisper", dtype=torch.float64), answered),
    "bert: spans": (lambda: headed(AutoModelForQuestionAnswering, "bert"), spans),
    "bert: classes": (lambda: headed(AutoModelForSequenceClassification, "bert"), classes),
    "wav2vec2: CTC": (lambda: headed(AutoModelForCTC, "wav2vec2"), sounds),
}


def parts(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """One batch per sequence; of pictures that a row has several of, its own."""
    return [
        {n: v[r * (len(v) // ROWS) : (r + 1) * (len(v) // ROWS)] for n, v in inputs.items()}
        for r in range(ROWS)
    ]


@pytest.mark.parametrize(
    "need", [Moments(), MaskGradients(), Elements()], ids=lambda need: type(need).__name__
)
@pytest.mark.parametrize("case", CASES)
def test_one_batch_of_two_is_two_of_one(case: str, need: Statistic[Any]) -> None:
    make, answer = CASES[case]
    model = make()
    inputs = answer(model)
    structure = discover(model, ["channels"], include=["language_model"] if case == "llava" else [])
    both = collect(model, structure, [inputs], [need])
    apart = collect(model, structure, parts(inputs), [need])
    for name in (group.name for group in structure.groups):
        answers = [s.by_group(need, structure.groups)[name] for s in (both, apart)]
        if isinstance(need, Moments):
            found = [(sums.mean_I, sums.variance_I) for sums in answers]
        elif isinstance(need, MaskGradients):
            found = [(sums.absolute_U, sums.square_U) for sums in answers]
        else:
            found = [tuple(sums_TU) for sums_TU in answers]
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-14)
            assert bool(one.abs().sum() > 0), "nothing was collected, and nothing could differ"


def loss(model: PreTrainedModel, ids_BT: Tensor, labels_BT: Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids_BT, labels=labels_BT).loss)


def bart_decoder() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=40, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16
    )
    return BartForCausalLM(config).double().eval()


DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    **{
        name: lambda name=name: tiny_model(name, dtype=torch.float64)
        for name in ("llama", "gpt2", "gemma", "mistral")
    },
    "xlm": lambda: tiny_model("xlm", dtype=torch.float64),
    "xlnet": lambda: tiny_model("xlnet", dtype=torch.float64),
    "trocr": lambda: tiny_model("trocr", dtype=torch.float64),
    "bart decoder": bart_decoder,
}


@pytest.mark.parametrize("name", DECODERS)
def test_labels_are_shifted_exactly_where_the_loss_does_not_read_the_first(name: str) -> None:
    model = DECODERS[name]()
    ids_BT = torch.randint(5, 30, (1, 6), generator=torch.Generator().manual_seed(0))
    changed_BT = ids_BT.clone()
    changed_BT[0, 0] += 1
    reads_first = loss(model, ids_BT, ids_BT) != loss(model, ids_BT, changed_BT)
    assert shifts_labels(model) is not reads_first


def test_rows_without_a_label_that_counts_bring_no_loss() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    inputs = answered(model)
    silent = {n: v[:1] for n, v in inputs.items()} | {
        "labels": torch.full_like(inputs["labels"][:1], IGNORED)
    }
    structure = discover(model, ["channels"])
    name = structure.groups[0].name
    alone = collect(model, structure, [inputs], [MaskGradients()]).of(MaskGradients())[name]
    beside = collect(model, structure, [inputs, silent], [MaskGradients()]).of(MaskGradients())[name]
    assert torch.equal(alone.absolute_U, beside.absolute_U)
    with pytest.raises(DataError, match="counts nowhere"):
        collect(model, structure, [silent], [MaskGradients()])
