"""Tiny perturbed models with a loss, and calibration sets for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.units import Structure
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.one_shot.repairs.base import Consumer, Repair, Repaired
from sparse_trainer.statistics.moments import MomentSums
from tests.architectures.tiny import tiny_config, tiny_model

# Shape legend: B = sequences, T = tokens, O = outputs, I = input features.

MODELS = ("llama", "gpt2", "bert", "qwen2")
PAD, VOCABULARY = 0, 99


def model_of(name: str) -> PreTrainedModel:
    """Return a seeded float64 model in evaluation mode; BERT with its language-model head."""
    if name != "bert":
        return tiny_model(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForMaskedLM.from_config(tiny_config("bert"))
        perturb(model)
    return model.double().eval()


def widths(model: PreTrainedModel) -> Structure:
    """Return the heads and channels of a model."""
    return discover(model, ("heads", "channels"))


def sequences(model: PreTrainedModel, lengths: Sequence[int], seed: int = 0) -> list[dict[str, Tensor]]:
    """Return batches of one sequence each, without padding."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        ids_BT = torch.randint(3, VOCABULARY, (1, length), generator=generator)
        found.append(
            {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), **_labels(model, ids_BT)}
        )
    return found


def _labels(model: PreTrainedModel, ids_BT: Tensor) -> dict[str, Tensor]:
    if model.config.model_type != "bert":
        return {}
    labels_BT = ids_BT.clone()
    labels_BT[:, ::3] = -100
    return {"labels": labels_BT}


def padded(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return one batch of these sequences, padded on the right."""
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    filler = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    whole: dict[str, Any] = {}
    for name in batches[0]:
        rows = [
            torch.nn.functional.pad(batch[name], (0, longest - batch[name].shape[1]), value=filler[name])
            for batch in batches
        ]
        whole[name] = torch.cat(rows)
    return whole


def calibration(model: PreTrainedModel, rows: int = 8, length: int = 20) -> list[dict[str, Tensor]]:
    """Return batches of two sequences, one of them padded."""
    single = sequences(model, [length - 3 * (i % 2) for i in range(rows)])
    return [padded(single[i : i + 2]) for i in range(0, rows, 2)]


def refit(
    repair: Repair, weight_OI: Tensor, moments: MomentSums, keep_I: Tensor, unit_I: Tensor | None = None
) -> Repaired:
    """Return what a repair makes of a consumer with a bias; without `unit_I` every feature is a unit."""
    units = torch.arange(len(keep_I)) if unit_I is None else unit_I
    consumer = Consumer(
        name="down_proj", weight_OI=weight_OI, has_bias=True, moments=moments, keep_I=keep_I, unit_I=units
    )
    return repair.refit(consumer)


def error(weight_OI: Tensor, moments: MomentSums, keep_I: Tensor, repaired: Repaired) -> Tensor:
    """Return the mean squared distance of the repaired consumer's output from the dense one, summed over outputs."""
    change_OI = weight_OI.clone()
    change_OI[:, keep_I] -= repaired.weight_OK
    second_II = moments.second_II.to(weight_OI.dtype)
    squared = ((change_OI @ second_II) * change_OI).sum()
    if repaired.shift_O is None:
        return squared
    mean_O = change_OI @ moments.mean_I.to(weight_OI.dtype)
    return squared + (repaired.shift_O.square() - 2.0 * repaired.shift_O * mean_O).sum()
