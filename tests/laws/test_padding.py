"""What is collected does not depend on how rows are padded: on either side, in sound, in decoders, by any collator."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCTC,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMultipleChoice,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.inputs.labels import IGNORED
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.statistics.block_states import BlockStates
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.elements import Elements
from sparse_trainer.statistics.mask_gradients import MaskGradients
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic, Statistics
from tests.architectures.tiny import tiny_config, tiny_model

LENGTH, REAL = 6, 4
Rows = dict[str, Tensor]
Case = tuple[PreTrainedModel, Rows, list[Rows]]
"""A model, a padded batch, and the same rows one by one without padding."""


def headed(auto: Any, model_type: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = auto.from_config(tiny_config(model_type))
        perturb(model)
    return model.double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(5, 30, shape, generator=torch.Generator().manual_seed(0))


def texts(columns: Rows, *, left: bool) -> tuple[Rows, list[Rows]]:
    """Two rows, the second of which ends, or begins, with padding."""
    real_T = torch.arange(LENGTH) >= LENGTH - REAL if left else torch.arange(LENGTH) < REAL
    mask_BT = torch.stack([torch.ones(LENGTH, dtype=torch.bool), real_T])
    columns = {"input_ids": tokens(2, LENGTH), "attention_mask": mask_BT.long(), **columns}
    first = {name: value[:1] for name, value in columns.items()}
    second = {name: value[1:][:, real_T] for name, value in columns.items()}
    return columns, [first, second]


def left_padded(model_type: str) -> Case:
    return (tiny_model(model_type, dtype=torch.float64), *texts({}, left=True))


def spans() -> Case:
    both, (first, second) = texts({}, left=True)
    first |= {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])}
    second |= {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([3])}
    ahead = torch.tensor([0, LENGTH - REAL])
    for name in ("start_positions", "end_positions"):
        both[name] = torch.cat([first[name], second[name]]) + ahead
    return headed(AutoModelForQuestionAnswering, "bert"), both, [first, second]


def last_token() -> Case:
    """XLNet pads in front, and its classes hang on the last token."""
    both, (first, second) = texts({}, left=True)
    for rows in (both, first, second):
        rows["labels"] = torch.ones(len(rows["input_ids"]), dtype=torch.long)
    return headed(AutoModelForSequenceClassification, "xlnet"), both, [first, second]


def boxes() -> Case:
    bbox = torch.randint(0, 10, (2, LENGTH, 4), generator=torch.Generator().manual_seed(1)).sort(-1).values
    both, apart = texts({"bbox": bbox, "labels": tokens(2, LENGTH) % 2}, left=False)
    both["labels"] = both["labels"].masked_fill(both["attention_mask"] == 0, IGNORED)
    return headed(AutoModelForTokenClassification, "layoutlm"), both, apart


def router_losses() -> Case:
    model, both, apart = left_padded("mixtral")
    model.config.output_router_logits = True
    return model, both, apart


def sounds() -> Case:
    size, real = 2000, 1300
    both = {
        "input_values": torch.randn(2, size, generator=torch.Generator().manual_seed(0)).double(),
        "attention_mask": torch.ones(2, size, dtype=torch.long),
        "labels": torch.tensor([[5, 6], [4, IGNORED]]),
    }
    both["input_values"][1, real:] = 0
    both["attention_mask"][1, real:] = 0
    first = {name: value[:1] for name, value in both.items()}
    second = {n: value[1:] if n == "labels" else value[1:, :real] for n, value in both.items()}
    return headed(AutoModelForCTC, "wav2vec2"), both, [first, second]


def collated(model_type: str) -> Case:
    """As DataCollatorForSeq2Seq makes it: labels, and the decoder's inputs of them beside."""
    model: Any = tiny_model(model_type, dtype=torch.float64)
    model.config.decoder_start_token_id = model.config.pad_token_id = 0
    both, apart = texts({}, left=False)
    both["labels"] = tokens(2, 5).index_fill(1, torch.tensor([3, 4]), 7)
    both["labels"][1, 3:] = IGNORED
    apart[0]["labels"], apart[1]["labels"] = both["labels"][:1], both["labels"][1:, :3]
    for rows in (both, *apart):
        rows["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=rows["labels"])
    return model, both, apart


CASES: dict[str, Callable[[], Case]] = {
    "llama": lambda: left_padded("llama"),
    "gpt2": lambda: left_padded("gpt2"),
    "bloom": lambda: left_padded("bloom"),
    "mixtral: router losses": router_losses,
    "bert: spans": spans,
    "xlnet: classes": last_token,
    "layoutlm: boxes": boxes,
    "wav2vec2: sounds": sounds,
    "t5: collated": lambda: collated("t5"),
    "bart: collated": lambda: collated("bart"),
}


def numbers(found: Statistics, need: Statistic[Any], key: str) -> list[Tensor]:
    sums = found.of(need)[key]
    if isinstance(need, BlockStates):
        return [sums.tokens, sums.cosine, sums.angle, sums.relative_change, sums.change_H]
    if isinstance(need, Moments):
        return [sums.mean_I, sums.variance_I]
    if isinstance(need, MaskGradients):
        return [sums.absolute_U, sums.square_U]
    assert isinstance(need, Elements)
    return list(sums)


@pytest.mark.parametrize(
    "need",
    [Moments(), Moments(every_linear=True), MaskGradients(), Elements(), BlockStates()],
    ids=["Moments", "every linear", "MaskGradients", "Elements", "BlockStates"],
)
@pytest.mark.parametrize("case", CASES)
def test_padding_counts_nowhere(case: str, need: Statistic[Any]) -> None:
    model, both, apart = CASES[case]()
    kinds = [kind for kind in ("heads", "channels", "layers") if kind in need.kinds]
    everything = discover(model, kinds)  # type: ignore[arg-type]
    chosen = tuple(g for g in everything.groups if g.consumer_tensor is None)
    structure = replace(everything, groups=chosen)
    padded, plain = (collect(model, structure, batches, [need]) for batches in ([both], apart))
    assert padded.tokens == plain.tokens
    assert padded.of(need).keys() == plain.of(need).keys() >= {need.key(g) for g in structure.groups}
    for key in padded.of(need):
        for one, two in zip(numbers(padded, need, key), numbers(plain, need, key), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-10)


def test_rows_that_share_a_column_are_read_together_and_padding_is_asked_nothing() -> None:
    model, both, apart = left_padded("llama")
    both["position_ids"] = torch.tensor([[0, 1, 2, 3, 4, 5]])  # one row for all: the batch cannot be split
    structure = discover(model, ["channels"])
    padded, plain = (collect(model, structure, batches, [Elements()]) for batches in ([both], apart))
    for group in structure.groups:
        for one, two in zip(
            *(numbers(found, Elements(), group.name) for found in (padded, plain)), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-10)


def test_several_texts_a_row_need_the_whole_model() -> None:
    model = headed(AutoModelForMultipleChoice, "bert")
    assert isinstance(model, BertForMultipleChoice)
    assert isinstance(model.config, BertConfig)
    pruned, _ = prune(model, [{"input_ids": tokens(2, 3, LENGTH)}], criterion="wanda", density=0.5)
    assert pruned.num_parameters() < model.num_parameters()
