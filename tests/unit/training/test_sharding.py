"""What is refused of FSDP and DeepSpeed, from what accelerate says of them: one error each, with a remedy."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from sparse_trainer.errors import ArgumentError
from sparse_trainer.run.together import check_alone, from_first, is_first, together
from sparse_trainer.training.agreement import Agreement
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.sharding import check_sharing, set_apart


class CPUOffloadPolicy:
    """Of the name that torch gives it."""


def accelerator(kind: str, **options: Any) -> Any:
    plugin = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "cpu_offload": None, **options}
    state = SimpleNamespace(
        fsdp_plugin=SimpleNamespace(**plugin), deepspeed_plugin=SimpleNamespace(**options)
    )
    parallel = SimpleNamespace(non_data_parallel_size=options.get("tensors", 1))
    return SimpleNamespace(distributed_type=DistributedType(kind), state=state, parallelism_config=parallel)


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("FSDP", {"fsdp_version": 1}, "movement", "fsdp_config.version"),
    ("FSDP", {"cpu_ram_efficient_loading": True}, "movement", "fsdp_config.cpu_ram_efficient_loading"),
    ("FSDP", {"cpu_offload": CPUOffloadPolicy()}, "movement", "fsdp_config.cpu_offload"),
    ("FSDP", {"tensors": 2}, "movement", "parallelism_config"),
    ("FSDP", {}, "wanda", "scoring"),
    ("DEEPSPEED", {"zero_stage": 3}, "movement", "deepspeed: zero_optimization.stage"),
    ("DEEPSPEED", {"zero_stage": 2}, "taylor", "scoring"),
    ("DEEPSPEED", {"zero_stage": 2}, "l0", "scoring"),
]


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "99")


@pytest.mark.parametrize(("kind", "options", "scoring", "where"), REFUSED)
def test_what_cannot_work_is_refused(kind: str, options: dict[str, Any], scoring: str, where: str) -> None:
    asked = SparseTrainingArguments(scoring=scoring).driver_options
    with pytest.raises(ArgumentError) as caught:
        check_sharing(accelerator(kind, **options), nn.Linear(1, 1), asked)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("kind", "options"), [("FSDP", {}), ("DEEPSPEED", {"zero_stage": 2}), ("MULTI_GPU", {})]
)
def test_what_can_work_passes(kind: str, options: dict[str, Any]) -> None:
    asked = SparseTrainingArguments(scoring="movement").driver_options
    check_sharing(accelerator(kind, **options), nn.Linear(1, 1), asked)


def test_old_libraries_are_named_with_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1.10.1")
    asked = SparseTrainingArguments(scoring="movement").driver_options
    with pytest.raises(ArgumentError, match=r'pip install "torch>=2.7"'):
        check_sharing(accelerator("FSDP"), nn.Linear(1, 1), asked)


def test_whole_parameters_leave_the_groups_of_shared_ones() -> None:
    first, second, third = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [first, second], "lr": 0.5}, {"params": [third]}], lr=0.1)
    set_apart(optimizer, [second, third])
    assert [group["params"] for group in optimizer.param_groups] == [[first], [third], [second]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1, 0.5]


def test_one_process_alone_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = Agreement()
    agreement.take_in({"a": torch.ones(2)})
    agreement.check({"a": torch.zeros(2)}, 1)
    with together():
        assert is_first()
    assert from_first(lambda: 3) == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match="is the work of one process, and 2 were started"):
        check_alone("prune")
