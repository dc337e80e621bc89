"""Pruning changes weights in place: no cast of them that autocast has kept may be read afterwards."""

import copy
from typing import Any

import pytest
import torch

from sparse_trainer import prune
from sparse_trainer.one_shot.kv_merge import merge_kv_heads
from tests.architectures.tiny import tiny_model


def texts() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [{"input_ids": torch.randint(5, 90, (4, 32), generator=generator)} for _ in range(4)]


def model_of(*, learns: bool) -> Any:
    return tiny_model("llama").float().eval().requires_grad_(learns)


def test_a_search_in_bfloat16_measures_the_refitted_weights() -> None:
    """Autocast keeps casts of weights that ask for gradients only: both models must lose the same."""
    asked = {"density": 0.6, "reconstruct": "least_squares", "units": "channels", "search": "dp"}
    plans = [
        prune(
            model_of(learns=learns),
            texts(),
            criterion="obs",
            search_bfloat16=True,
            search_tokens=256,
            **asked,
        )[1]
        for learns in (True, False)
    ]
    assert plans[0].searches[0]["losses"] == plans[1].searches[0]["losses"]
    assert plans[0].groups == plans[1].groups


@pytest.mark.parametrize("options", [{}, {"sequential": True}, {"steps": 2}])
def test_pruning_under_autocast_reads_no_stale_weights(options: dict[str, Any]) -> None:
    found = []
    for learns in (True, False):
        model = model_of(learns=learns)
        with torch.autocast("cpu", torch.bfloat16):
            model(**texts()[0])
            pruned, _ = prune(
                copy.deepcopy(model),
                texts(),
                criterion="obs",
                density=0.6,
                reconstruct="least_squares",
                **options,
            )
            found.append(pruned(**texts()[0]).logits)
        assert torch.is_autocast_cache_enabled()
    assert torch.equal(*found)


def test_merging_kv_heads_under_autocast_reads_no_stale_weights() -> None:
    found = []
    for learns in (True, False):
        model = model_of(learns=learns)
        with torch.autocast("cpu", torch.bfloat16):
            model(**texts()[0])
            merged = merge_kv_heads(model, texts(), kv_heads=1, inplace=True)
            found.append(merged(**texts()[0]).logits)
    assert torch.equal(*found)
