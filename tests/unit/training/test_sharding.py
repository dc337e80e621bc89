"""Criteria that cannot score where a model is shared out are refused: a stand-in says how it would be."""

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import DistributedType

from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.sharding import check_sharing
from tests.fixtures.compact_models import tiny

FSDP2 = SimpleNamespace(
    fsdp_version=2,
    cpu_ram_efficient_loading=False,
    cpu_offload=False,
    state_dict_type=SimpleNamespace(name="FULL"),
)
WAYS: dict[str, Any] = {
    "FSDP2": SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        parallelism_config=None,
        state=SimpleNamespace(fsdp_plugin=FSDP2),
    ),
    "DeepSpeed": SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2)),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_that_no_process_has_whole_are_not_scored(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_trainer.training.sharding._LEAST", {})
    check_sharing(WAYS[way], tiny("bert"), SparseTrainingArguments(scoring="movement").driver_options)
    with pytest.raises(ArgumentError, match=r"loraprune.* reads gradients"):
        check_sharing(WAYS[way], tiny("bert"), SparseTrainingArguments(scoring="loraprune").driver_options)
