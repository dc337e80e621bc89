"""A table of times: measured on real blocks, kept in a file, monotone, and refused where it is of another device."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import Cache

from patchers.discovery.discover import discover
from sparse_trainer.budget.latency import store
from sparse_trainer.budget.latency.calls import Caller, narrowed
from sparse_trainer.budget.latency.clock import time_calls
from sparse_trainer.budget.latency.conditions import TimingConditions
from sparse_trainer.budget.latency.curve import Curve
from sparse_trainer.budget.latency.foreign import read_csv
from sparse_trainer.budget.latency.measure import measure_table
from sparse_trainer.budget.latency.model_time import ModelTime
from sparse_trainer.budget.latency.sorts import timed_blocks
from sparse_trainer.budget.latency.table import LatencyTable
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.errors import ArgumentError, CheckpointError, DataError, SparseTrainerError
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import tiny

TARGET = TimeTarget(speedup=2.0, sequence_length=8)


def measured(model: Any, target: TimeTarget = TARGET) -> LatencyTable:
    return measure_table(model, discover(model), target, seconds=0.05)


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2", "mixtral", "vit"])
def test_every_kind_of_model_can_be_timed(family: str) -> None:
    model = tiny() if family == "bert" else tiny_model(family)
    structure = discover(model)
    table = measured(model)
    time = ModelTime(table, model, structure)
    nothing = {g.name: g.min_units for g in structure.groups if g.kind.is_width}
    assert 0 < time.seconds(nothing) <= time.dense
    for curve in table.curves.values():
        assert curve.seconds[0] == 0
        assert list(curve.seconds) == sorted(curve.seconds)


def test_a_decoder_is_timed_token_by_token() -> None:
    model = tiny_model("llama")
    target = replace(TARGET, phase="decode")
    structure = discover(model)
    heads = next(g for g in structure.groups if g.kind == "heads")
    caller = Caller(target)
    arguments = caller.of_blocks(model, [heads.block])[heads.block]
    twin = narrowed(model, structure, {heads.name: torch.arange(heads.num_units) < heads.num_units - 1})
    calls = [arguments.call(twin.get_submodule(heads.block), target), caller.of_model(model)]
    assert time_calls(calls, torch.device("cpu"), rounds=4, seconds=0.0).rounds == 4
    # One token goes in, and the caches hold what they held.
    with torch.inference_mode():
        output: Any = calls[1]()
    assert output.logits.shape[1] == 1
    calls[1].reset()
    cache = next(value for value in output.values() if isinstance(value, Cache))
    assert cache.get_seq_length() == TARGET.sequence_length
    assert measured(model, target).rest >= 0
    # The second one's class could be a decoder.
    for encoder in (tiny(), tiny_model("bert"), tiny_model("bert").base_model):
        with pytest.raises(ArgumentError, match="prefill"):
            measured(encoder, target)


def test_the_model_and_its_weights_stay_as_they_were() -> None:
    model = tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_table_predicts_what_its_parts_say() -> None:
    model = tiny()
    structure = discover(model)
    table = LatencyTable(
        conditions=None,
        rest=1.0,
        blocks={"layers": 0.5},
        curves={
            "heads": Curve(widths=(0, 4), seconds=(0.0, 2.0)),
            "channels": Curve(widths=(0, 24, 48), seconds=(0.0, 3.0, 4.0)),
        },
        steps={},
        noise=0.0,
    )
    time = ModelTime(table, model, structure)
    assert time.dense == 1.0 + 3 * (0.5 + 2.0 + 4.0)
    by_kind = {kind: [g for g in structure.groups if g.kind == kind] for kind in structure.kinds.values()}
    half = {g.name: 12 for g in by_kind["channels"]}
    assert time.seconds(half) == 1.0 + 3 * (0.5 + 2.0 + 1.5)
    assert time.seconds({by_kind["layers"][0].name: 0}) == 1.0 + 2 * 6.5
    assert time.seconds({by_kind["ffn"][1].name: 0}) == time.dense - 4.0
    units = {kind: time.unit(model, groups[0]) for kind, groups in by_kind.items()}
    assert units == {
        "heads": 500_000_000,
        "attention": 2_000_000_000,
        "channels": 83_333_333,
        "ffn": 4_000_000_000,
        "layers": 6_500_000_000,
    }
    assert sum(time.parts(half).values()) == pytest.approx(time.seconds(half))


def test_layers_of_other_widths_are_read_off_the_same_curve() -> None:
    model = tiny()
    structure = discover(model)
    first = next(g for g in structure.groups if g.kind == "channels")
    cut = narrowed(model, structure, {first.name: torch.arange(48) < 20})
    blocks = timed_blocks(cut, discover(cut))
    assert len({block.sort for block in blocks}) == 1
    assert {group.num_units for block in blocks for group in block.groups} == {4, 20, 48}


def test_a_table_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(store.CACHE_VARIABLE, str(tmp_path))
    counted = []

    def measure(*arguments: Any) -> LatencyTable:
        counted.append(1)
        return replace(measure_table(*arguments, seconds=0.05), noise=0.01)

    monkeypatch.setattr(store, "measure_table", measure)
    model = tiny()
    structure = discover(model)
    first, again = (store.table_for(model, structure, TARGET) for _ in range(2))
    assert first == again
    assert len(counted) == 1
    # More threads, a longer sequence, another dtype: other times.
    store.table_for(model, structure, replace(TARGET, sequence_length=9))
    store.table_for(model.float(), structure, TARGET)
    assert len(counted) == 3
    # A damaged file is measured again, and said so.
    model.double()
    file = store.cache_file(model, structure, TimingConditions.of(model, TARGET))
    file.write_text("{")
    with caplog.at_level(logging.WARNING):
        store.table_for(model, structure, TARGET)
    assert "Measuring again" in caplog.text
    assert len(counted) == 4
    # The folder cannot be written: nothing is lost but time.
    monkeypatch.setenv(store.CACHE_VARIABLE, str(file))
    store.table_for(model, structure, TARGET)
    assert "not kept" in caplog.text


def test_models_of_the_same_sizes_that_run_other_kernels_share_no_table() -> None:
    plain = tiny()

    def file(model: Any) -> Path:
        return store.cache_file(model, discover(model), TimingConditions.of(model, TARGET))

    assert file(plain) == file(tiny())
    assert file(tiny(hidden_act="relu")) != file(plain)
    other = tiny()
    other.set_attn_implementation("eager")
    assert plain.config._attn_implementation != "eager"
    assert file(other) != file(plain)


def test_times_of_compiled_modules_have_a_table_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed is what `torch.compile` returns, here without a compiler, which takes seconds for each width."""
    monkeypatch.setenv(store.CACHE_VARIABLE, str(tmp_path))
    compiled = []

    def compile_(module: Any, **options: Any) -> Any:
        compiled.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(
        store, "measure_table", lambda *asked: replace(measure_table(*asked, seconds=0.01), noise=0.01)
    )
    model = tiny().float()
    structure, target = discover(model), replace(TARGET, runtime="compile")
    eager = store.table_for(model, structure, TARGET)
    assert compiled == []
    table = store.table_for(model, structure, target)
    assert len(compiled) > 3
    assert all(options == {"dynamic": False} for options in compiled)
    assert table.conditions.runtime == "compile"
    assert store.table_for(model, structure, TARGET) == eager
    assert ModelTime(table, model, structure).dense > 0


def test_a_table_from_another_device_is_refused(tmp_path: Path) -> None:
    model = tiny()
    structure, file = discover(model), tmp_path / "table.json"
    table = measured(model)
    assert table.conditions is not None
    store.save_table(table, file)
    asked = replace(TARGET, table=str(file))
    assert store.table_for(model, structure, asked) == table
    store.save_table(replace(table, conditions=replace(table.conditions, device="A100")), file)
    with pytest.raises(ArgumentError, match="device: A100 there"):
        store.table_for(model, structure, asked)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 7}, "format"),
        ({"rest": -1}, "rest"),
        ({"rest": "x"}, "rest"),
        ({"curves": {"a": {"widths": [0, 2], "seconds": [0.0, -1.0]}}}, "curves"),
        ({"curves": {"a": {"widths": [0, 2], "seconds": [0.0]}}}, "curves"),
        ({"steps": {"a": 0}}, "steps"),
        ({"conditions": {"device": 3}}, "conditions"),
        ({"more": 1}, "fields"),
    ],
)
def test_a_damaged_table_is_one_error(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    model, file = tiny(), tmp_path / "table.json"
    conditions = TimingConditions.of(model, TARGET)
    table = LatencyTable(conditions=conditions, rest=1.0, blocks={}, curves={}, steps={}, noise=0.0)
    values = json.loads(table.to_json())
    file.write_text(json.dumps({**values, **change}))
    with pytest.raises(CheckpointError, match=named):
        store.table_for(model, discover(model), replace(TARGET, table=str(file)))


def test_a_phone_s_times_come_from_a_csv(tmp_path: Path) -> None:
    file = tmp_path / "phone.csv"
    file.write_text(
        "kind,units,milliseconds\nrest,1,1\nlayers,1,0.5\nheads,4,2\nchannels,24,3\nchannels,48,4\n"
    )
    model = tiny()
    structure = discover(model)
    table = store.table_for(model, structure, replace(TARGET, table=str(file)))
    assert ModelTime(table, model, structure).dense == pytest.approx(1e-3 * (1 + 3 * (0.5 + 2 + 4)))
    for rows, named in {
        "channels,48,3": "says nothing of heads",
        "heads,4,1\nchannels,24,3": "nothing of more than 24 channels",
    }.items():
        file.write_text(f"kind,units,milliseconds\nrest,1,1\nlayers,1,0\n{rows}\n")
        with pytest.raises(CheckpointError, match=named):
            ModelTime(read_csv(file), model, structure)
    assert TimeTarget(speedup=2.0, table="PHONE.CSV").is_foreign


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "begin with"),
        ("kind,units\nheads,1\n", "begin with"),
        ("kind,units,milliseconds\nheds,1,2\n", "line 2"),
        ("kind,units,milliseconds\nheads,1,2\nheads,x,2\n", "line 3"),
        ("kind,units,milliseconds\nheads,1,nan\n", "line 2"),
        ("kind,units,milliseconds\nheads,1,2\nheads,1,3\n", "twice"),
        ("kind,units,milliseconds\nrest,1,2\n", "heads or channels"),
        ("kind,units,milliseconds\nheads,1,2\nlayers,1,1\n", "nothing of rest"),
        ("kind,units,milliseconds\nheads,1,2\nrest,1,1\n", "nothing of layers"),
        ("kind,units,milliseconds\nheads,0,2\nheads,1,3\n", "no heads cannot add 2 ms"),
        ("kind,units,milliseconds\nlayers,12,2\n", "layers are one time"),
        ("kind,units,milliseconds\nattention,1,2\n", "'attention' is nothing"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_one_error(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "phone.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=named):
        read_csv(file)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({}, "target"),
        ({"speedup": 2.0, "milliseconds": 3.0}, "two targets"),
        ({"speedup": 1.0}, "speedup"),
        ({"milliseconds": 0.0}, "milliseconds"),
        ({"speedup": 2.0, "batch": 0}, "latency_batch"),
        ({"speedup": 2.0, "phase": "prefil"}, "prefill"),
        ({"speedup": 2.0, "runtime": "jit"}, "eager"),
    ],
)
def test_a_target_that_cannot_be_meant_is_one_error(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(SparseTrainerError, match=named):
        TimeTarget(**asked)
