"""Latency: measured side by side, never across devices."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForSequenceClassification, PreTrainedModel

from sparse_trainer.errors import ArgumentError
from sparse_trainer.run import latency as module
from sparse_trainer.run.generation_speed import time_generation
from sparse_trainer.run.latency import (
    Bench,
    Conditions,
    Latency,
    Spread,
    bench,
    find_device,
    find_dtype,
    summarize,
)
from sparse_trainer.run.runtimes import find_runtimes
from sparse_trainer.run.weights import load_weighed
from tests.architectures.tiny import tiny_model
from tests.fixtures.pictures import write_tiny_vit


def tiny() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )


def test_models_take_turns_and_each_starts_some_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tiny(), tiny()
    order: list[str] = []

    def call(model: object, *_: object) -> float:
        order.append("first" if model is first else "second")
        return 0.001 if model is first else 0.002

    monkeypatch.setattr(module, "_call_seconds", call)
    result = bench({"first": first, "second": second}, batch_sizes=(1,), sequence_length=4, rounds=5)
    pairs = [tuple(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert set(pairs) == {("first", "second"), ("second", "first")}
    assert all(a != b for a, b in pairwise(pairs))
    assert result.speedups("second", "first") == {1: Spread(median=0.5, low=0.5, high=0.5)}


def test_a_moment_that_slows_both_models_down_does_not_spread_the_ratio() -> None:
    slow = [1.0, 1.0, 5.0, 2.0, 1.0]
    first, second = (summarize([factor * seconds for seconds in slow]) for factor in (1.0, 0.5))
    assert second.over(first) == Spread(median=0.5, low=0.5, high=0.5)
    assert str(second.over(summarize([1.0] * 5))) == "0.50x (0.50 to 1.00)"


def test_every_batch_size_gets_a_positive_median_within_its_quartiles() -> None:
    model = tiny().train()
    result = bench({"m": model}, batch_sizes=(1, 2), sequence_length=8, rounds=3, threads=1)
    assert list(result.latencies["m"]) == [1, 2]
    for latency in result.latencies["m"].values():
        assert 0 < latency.low <= latency.median <= latency.high
    assert (result.conditions.threads, result.conditions.dtype) == (1, "float32")
    assert model.training


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    bench({"m": tiny()}, batch_sizes=(1,), sequence_length=2, rounds=1, threads=before + 1)
    assert torch.get_num_threads() == before


def test_models_in_different_places_are_not_compared() -> None:
    model = tiny()
    with pytest.raises(ArgumentError, match=r"latencies cannot be compared: a on cpu .* b on meta"):
        bench({"a": model, "b": copy.deepcopy(model).to("meta")})
    with pytest.raises(ArgumentError, match=r"b on cpu in torch\.bfloat16"):
        bench({"a": model, "b": copy.deepcopy(model).to(torch.bfloat16)})


def test_models_of_pictures_are_timed_on_pictures_of_their_size(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(write_tiny_vit(tmp_path / "vit"))
    result = bench({"m": model}, batch_sizes=(1, 2), rounds=2)
    assert set(result.latencies["m"]) == {1, 2}
    assert result.conditions.sequence_length is None


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"sequence_length": 0}, {"batch_sizes": (1, 0)}])
def test_counts_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        bench({"m": tiny()}, **wrong)  # type: ignore[arg-type]


def test_a_single_round_is_its_own_spread() -> None:
    assert summarize([2.0]) == Latency(median=2.0, low=2.0, high=2.0)
    latency = summarize([1.0, 2.0, 3.0, 4.0, 5.0])
    assert latency.high - latency.low == 2.0


def test_devices_and_types_are_found_by_name_or_refused() -> None:
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(ArgumentError, match="device: 'abacus' cannot be used"):
        find_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match="'cuda' cannot be used"):
            find_device("cuda")
    with pytest.raises(ArgumentError, match="Did you mean 'float32'"):
        find_dtype("float3")


def test_json_holds_every_number() -> None:
    conditions = Conditions(device="cpu", dtype="float32", threads=1, sequence_length=8, rounds=1, torch="2")
    result = Bench(conditions=conditions, latencies={"m": {1: Latency(median=1.0, low=0.5, high=2.0)}})
    assert result.to_json()["latencies"] == {"m": {"1": {"median": 1.0, "low": 0.5, "high": 2.0}}}
    assert result.to_json()["conditions"]["device"] == "cpu"


def test_each_model_is_timed_in_each_runtime_in_the_same_rounds() -> None:
    models = {"a": tiny(), "b": tiny()}
    made: list[object] = []

    def ready(model: PreTrainedModel) -> Callable[..., object]:
        made.append(model)
        return model

    found = bench(
        models, batch_sizes=(1,), sequence_length=4, rounds=2, runtimes={"eager": ready, "other": ready}
    )
    assert list(found.latencies) == ["a (eager)", "b (eager)", "a (other)", "b (other)"]
    assert made == [*models.values(), *models.values()]
    assert all(len(sizes[1].rounds) == 2 for sizes in found.latencies.values())


def test_an_unknown_runtime_is_told() -> None:
    with pytest.raises(ArgumentError, match="Did you mean 'eager'"):
        find_runtimes("eagr")


def test_generation_is_timed_for_prompt_and_new_tokens() -> None:
    models = {"a": tiny_model("llama", dtype=torch.float32), "b": tiny_model("llama", dtype=torch.float32)}
    found = time_generation(models, new_tokens=3, prompt_length=5, batch_sizes=(1, 2), rounds=2)
    for sizes in found.values():
        assert set(sizes) == {1, 2}
        assert all(each.prefill.low > 0 and each.decode.low > 0 for each in sizes.values())


def test_what_does_not_generate_is_refused_before_it_is_timed() -> None:
    with pytest.raises(ArgumentError, match="m is no decoder that stands alone"):
        time_generation({"m": tiny()}, new_tokens=1, prompt_length=1, batch_sizes=(1,), rounds=1)
    with pytest.raises(ArgumentError, match="generate"):
        time_generation(
            {"m": tiny_model("llama")}, new_tokens=10**6, prompt_length=1, batch_sizes=(1,), rounds=1
        )


def test_a_model_is_weighed_as_it_lies_on_the_disk(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    model, weight = load_weighed(
        str(tmp_path), device=torch.device("cpu"), dtype=torch.float32, sequence_length=8
    )
    assert weight.parameters == model.num_parameters()
    assert weight.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert min(weight.load_cold, weight.load_warm, weight.macs) > 0
