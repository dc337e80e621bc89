"""Latency: measured side by side, never across devices."""

import copy
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForSequenceClassification

from sparse_trainer.convert import folder
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.folders.configs import read_config
from sparse_trainer.run import runtimes
from sparse_trainer.run.bench import BenchOptions, run_bench
from sparse_trainer.run.latency import (
    Bench,
    Conditions,
    Latency,
    Spread,
    bench,
    find_device,
    find_dtype,
    summarize,
    take_turns,
)
from sparse_trainer.run.peak_memory import MemoryRequest, peak_memory
from sparse_trainer.run.runtimes import find_runtimes
from sparse_trainer.run.side_by_side import time_forward, time_generation
from sparse_trainer.run.weights import load_weighed
from tests.fixtures.pictures import write_tiny_vit
from tests.fixtures.recipe_files import write_tiny_llama


def tiny() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )


def test_calls_take_turns_and_each_starts_some_rounds() -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return 1.0 if name == "first" else 2.0

        return run

    found = take_turns({name: call(name) for name in ("first", "second")}, rounds=5)
    assert found == {"first": [1.0] * 5, "second": [2.0] * 5}
    pairs = [tuple(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert set(pairs) == {("first", "second"), ("second", "first")}
    assert all(a != b for a, b in pairwise(pairs))
    assert summarize(found["first"]).over(summarize(found["second"])) == Spread(median=0.5, low=0.5, high=0.5)


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


class Fixed:
    """A model whose forward pass takes no time, and which tells what was asked of it."""

    def __init__(self, reads_length: bool = True, writes: bool = True) -> None:
        self.reads_length, self.writes = reads_length, writes
        self.asked: list[tuple[int, int]] = []

    def forward(self, rows: int, length: int) -> Callable[[], object]:
        self.asked.append((rows, length))
        return lambda: None

    def generate(self, rows: int, length: int, new_tokens: int) -> Callable[[], tuple[float, float]] | None:
        return (lambda: (rows / 10, length / 10)) if self.writes else None


def test_every_batch_size_is_timed_with_every_length_in_every_runtime() -> None:
    ready = {(model, runtime): Fixed() for runtime in ("x", "y") for model in ("dense", "cut")}
    found = time_forward(
        ready, batch_sizes=(1, 4), lengths=(8, 16), rounds=2, device=torch.device("cpu"), baseline="dense"
    )
    want = {(1, 8), (4, 8), (1, 16), (4, 16)}
    assert {(each.model, each.runtime, each.rows, each.length) for each in found} == {
        (*name, *size) for name in ready for size in want
    }
    assert all(each.speedup is not None for each in found)
    assert all(set(one.asked) == want for one in ready.values())
    # Beside the first runtime, the second one of the same model.
    assert {each.runtime for each in found if each.beside is not None} == {"y"}


def test_prompts_of_llama_cpp_are_not_held_against_others() -> None:
    ready = {("m", runtime): Fixed() for runtime in ("eager", "onnx", "gguf")}
    found = time_forward(
        ready, batch_sizes=(1,), lengths=(8,), rounds=2, device=torch.device("cpu"), baseline=None
    )
    assert [each.beside is not None for each in found] == [False, True, False]


def test_inputs_of_their_own_size_are_timed_once_for_all_lengths() -> None:
    found = time_forward(
        {("m", "x"): Fixed(reads_length=False)},
        batch_sizes=(2,),
        lengths=(8, 16),
        rounds=1,
        device=torch.device("cpu"),
        baseline=None,
    )
    assert [(each.rows, each.length, each.speedup) for each in found] == [(2, None, None)]
    assert found[0].per_second == pytest.approx(2 / found[0].latency.median)


def test_generation_is_timed_where_a_runtime_writes() -> None:
    ready = {("dense", "x"): Fixed(), ("cut", "x"): Fixed(), ("dense", "y"): Fixed(writes=False)}
    found = time_generation(ready, batch_sizes=(2,), lengths=(5,), new_tokens=3, rounds=2, baseline="dense")
    assert [(each.model, each.runtime) for each in found] == [("dense", "x"), ("cut", "x")]
    assert found[0].per_second == pytest.approx(2 / 0.5)
    assert found[0].read_per_second == pytest.approx(2 * 5 / 0.2)
    assert found[0].to_json()["prefill_per_second"] == found[0].read_per_second
    assert found[1].faster is not None
    assert found[1].faster[0].median == 1.0


def test_an_unknown_runtime_is_told() -> None:
    with pytest.raises(ArgumentError, match="Did you mean 'eager'"):
        find_runtimes("eagr")


def test_a_runtime_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(folder, "version", version)
    with pytest.raises(ArgumentError) as told:
        find_runtimes("eager,onnx")
    assert re.fullmatch(
        r"runtimes: onnx is not installed \(tested with [\d.]+\)\. "
        r"Run `pip install 'sparse-trainer\[onnx\]'`\.",
        str(told.value),
    )
    with pytest.raises(ArgumentError, match=r"runtimes: gguf is not .*sparse-trainer\[llamacpp\]"):
        find_runtimes("gguf")


def options(model: Path, **more: Any) -> BenchOptions:
    asked = {"batch_sizes": (2,), "lengths": (8,), "rounds": 2, "threads": 1}
    place: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    return BenchOptions(model=str(model), **(asked | place | more))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("bench") / "llama")


def test_a_model_is_not_timed_against_itself(llama: Path) -> None:
    with pytest.raises(ArgumentError, match="is the model itself"):
        options(llama, against=f"{llama}/../llama")


def test_each_length_is_checked_against_the_positions(llama: Path) -> None:
    # The model has 64 positions.
    with pytest.raises(ArgumentError, match="sequence_length: 65 tokens, and the model has positions for 64"):
        run_bench(options(llama, lengths=(8, 65)))
    with pytest.raises(ArgumentError, match="generate: 60 tokens after 8"):
        run_bench(options(llama, generate=60))


def test_what_does_not_generate_is_refused_before_it_is_timed(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="is no decoder that stands alone"):
        run_bench(options(tmp_path, generate=1))


def test_generation_wants_a_runtime_that_times_it(llama: Path) -> None:
    options = {"model": str(llama), "device": torch.device("cpu"), "dtype": torch.float32}
    with pytest.raises(ArgumentError, match=r"generate: is not timed in compile\. Name another runtime"):
        run_bench(BenchOptions(**options, runtimes="compile", generate=3))


def test_new_tokens_need_positions_too(llama: Path) -> None:
    positions = read_config(str(llama)).max_position_embeddings
    with pytest.raises(
        ArgumentError, match=rf"generate: 4 tokens after {positions - 3}, .* {positions}\. Give 3 or"
    ):
        run_bench(options(llama, generate=4, lengths=(positions - 3,)))


def test_runtimes_may_have_spaces_between_them_as_numbers_may() -> None:
    assert list(find_runtimes("eager, compile")) == ["eager", "compile"]


def test_what_a_runtime_cannot_run_is_refused_before_a_model_is_loaded(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "check_installed", lambda *_: None)
    monkeypatch.setattr("sparse_trainer.run.bench.load_weighed", None)
    with pytest.raises(ArgumentError, match="runtimes: onnx is timed on the CPU in float32"):
        run_bench(options(llama, runtimes="eager,onnx", dtype=torch.bfloat16))


def test_a_measured_process_that_is_ended_costs_no_other_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request = MemoryRequest(
        name="big", tokens=None, device="cpu", dtype=torch.float32, threads=1, rows=1, length=1
    )
    monkeypatch.setattr("sparse_trainer.run.peak_memory.sys.platform", "linux")
    monkeypatch.setattr(MemoryRequest, "__reduce__", lambda self: (os._exit, (9,)))  # as the system ends it
    assert peak_memory(request) is None
    assert "big: the process that measures its memory was ended" in caplog.text


def test_a_gguf_file_runs_in_llama_cpp_only(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises((CheckpointError, ArgumentError), match=r"is not there|is not installed"):
        run_bench(options(file))
    file.touch()
    with pytest.raises(ArgumentError, match=r"runtimes: eager does not run .*model.gguf, a GGUF file"):
        run_bench(options(file, runtimes="eager"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")
def test_memory_at_the_peak_holds_the_weights(llama: Path) -> None:
    result = run_bench(options(llama, memory=True))
    (peak,) = result.memory.values()
    weight = result.weights[str(llama)].file_bytes
    assert peak is not None
    assert weight is not None
    assert weight < peak < 1e9


def test_a_model_is_weighed_as_it_lies_on_the_disk(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    model, weight = load_weighed(
        str(tmp_path), device=torch.device("cpu"), dtype=torch.float32, sequence_length=8
    )
    assert weight.parameters == model.num_parameters()
    assert weight.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert min(weight.load_cold, weight.load_warm, weight.macs or 0) > 0
