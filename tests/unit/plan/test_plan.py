"""The record of a decision: round trip, damage, order of writing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from patchers.discovery.discover import discover
from patchers.patching.patch import gates_of
from sparse_trainer.cut.decision import Request
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of, remember_request
from sparse_trainer.errors import CheckpointError
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.load import load_patched
from sparse_trainer.training.protect import put_first
from sparse_trainer.training.trainer import save_state
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import branch_keep, patched, tiny, uneven_keep


@pytest.fixture(scope="module")
def plan() -> Plan:
    model = tiny()
    gated = patched(model, uneven_keep(discover(model)))
    remember_request(
        gated, Request(method="movement", target="macs", density={"heads": 0.5, "channels": 0.25})
    )
    found = plan_of(optimize_model(gated))
    assert found is not None
    return found


def test_json_round_trip(plan: Plan, tmp_path: Path) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_dict(plan.to_dict()) == plan
    plan.save(tmp_path / PLAN_FILE)
    assert Plan.load(tmp_path / PLAN_FILE) == Plan.load(tmp_path) == plan
    assert [path.name for path in tmp_path.iterdir()] == [PLAN_FILE]


def test_records_the_request_and_what_came_of_it(plan: Plan) -> None:
    assert (plan.method, plan.target, plan.density_asked) == (
        "movement",
        "macs",
        {"heads": 0.5, "channels": 0.25},
    )
    assert plan.architecture == "BertForSequenceClassification"
    assert plan.groups["bert.encoder.layer.0.heads"] == {
        "kind": "heads",
        "layer": 0,
        "size": 4,
        "keep": [1, 3],
    }
    assert plan.shapes["bert.encoder.layer.0.attention.self.query.weight"] == ([32, 32], [16, 32])
    assert plan.shapes["bert.encoder.layer.1.attention.self.query.weight"] == ([32, 32], None)
    assert plan.shapes["bert.encoder.layer.2.intermediate.dense.weight"] == ([48, 32], [0, 32])
    assert "bert.embeddings.word_embeddings.weight" not in plan.shapes


def test_counts_what_the_model_counts() -> None:
    model = tiny()
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    plan = plan_of(compact)
    assert plan is not None
    assert plan.params == {"dense": model.num_parameters(), "compact": compact.num_parameters()}
    assert plan.macs["compact"] < plan.macs["dense"]


def test_names_of_moved_layers_are_those_of_the_dense_model() -> None:
    model = tiny()
    keep = {"bert.encoder.layer.0.layer": torch.tensor([False])}
    plan = plan_of(optimize_model(patched(model, keep)))
    assert plan is not None
    assert {name.split(".")[3] for name in plan.shapes} == {"0"}
    assert all(after is None for _, after in plan.shapes.values())


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("format", 99, "format"),
        ("model_type", None, "model_type"),
        ("density_asked", 1.5, "density_asked"),
        ("density_asked", {"hands": 0.5}, "density_asked"),
        ("density_reached", "half", "density_reached"),
        ("params", {"dense": 3}, "params"),
        ("macs", {"dense": 3, "compact": -1}, "macs"),
        ("groups", [], "groups"),
        ("groups", {"g": {"kind": "heads", "layer": 0, "size": 4}}, "groups.g"),
        ("groups", {"g": {"kind": "hands", "layer": 0, "size": 4, "keep": []}}, "groups.g.kind"),
        ("groups", {"g": {"kind": "heads", "layer": -1, "size": 4, "keep": []}}, "groups.g.layer"),
        ("groups", {"g": {"kind": "heads", "layer": 0, "size": True, "keep": []}}, "groups.g.size"),
        ("groups", {"g": {"kind": "heads", "layer": 0, "size": 4, "keep": [4]}}, "groups.g.keep"),
        ("groups", {"g": {"kind": "heads", "layer": 0, "size": 4, "keep": [-1, 0]}}, "groups.g.keep"),
        ("groups", {"g": {"kind": "heads", "layer": 0, "size": 4, "keep": [2, 1]}}, "groups.g.keep"),
        ("groups", {"g": {"kind": "heads", "layer": 0, "size": 4, "keep": [1, 1]}}, "groups.g.keep"),
        ("groups", {"g": {"kind": "heads", "layer": 0, "size": 4, "keep": [0, True]}}, "groups.g.keep"),
        ("groups", {"g": {"kind": "heads", "layer": 0, "size": 4, "keep": "0"}}, "groups.g.keep"),
        ("shapes", {"w": [[1, 2]]}, "shapes"),
        ("shapes", {"w": [[1, "2"], None]}, "shapes"),
        ("versions", {"torch": 2}, "versions"),
    ],
)
def test_damage_is_named(plan: Plan, tmp_path: Path, field: str, value: Any, named: str) -> None:
    file = tmp_path / PLAN_FILE
    file.write_text(json.dumps({**plan.to_dict(), field: value}), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        Plan.load(file)
    assert caught.value.where == f"{file}: {named}"


def test_missing_and_unknown_fields_are_named(plan: Plan) -> None:
    values = plan.to_dict()
    del values["macs"]
    with pytest.raises(CheckpointError, match="macs: missing"):
        Plan.from_dict(values)
    with pytest.raises(CheckpointError, match="extra: unknown"):
        Plan.from_dict({**plan.to_dict(), "extra": 1})
    with pytest.raises(CheckpointError, match="list instead of an object"):
        Plan.from_dict([])


@pytest.mark.parametrize("text", ["", "{", '{"format": 1', "\x00"])
def test_text_that_is_no_json_names_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / PLAN_FILE
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=PLAN_FILE):
        Plan.load(file)
    file.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(CheckpointError, match=PLAN_FILE):
        Plan.load(file)
    with pytest.raises(CheckpointError, match="nowhere"):
        Plan.load(tmp_path / "nowhere.json")


def test_a_plan_for_another_model_is_refused(plan: Plan) -> None:
    with pytest.raises(CheckpointError, match="no such group"):
        optimize_model(tiny("roberta"), plan=plan)
    with pytest.raises(CheckpointError, match=r"channels\.size: 48 units, but the model has 40"):
        optimize_model(tiny(intermediate_size=40), plan=plan)


def test_branches_are_recorded() -> None:
    model = tiny()
    plan = plan_of(optimize_model(patched(model, branch_keep(discover(model)))))
    assert plan is not None
    assert plan.groups["bert.encoder.layer.0.attention"]["keep"] == []
    assert plan.groups["bert.encoder.layer.2.layer"]["keep"] == []
    assert plan.groups["bert.encoder.layer.1.attention"]["keep"] == [0]


def test_a_plan_of_both_cuts_needs_units_that_a_second_cut_does_not_count_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model("llama")
    heads = discover(model).of(["heads"])
    assert heads[0].num_units > 1
    compact = optimize_model(patched(model, {heads[0].name: torch.arange(heads[0].num_units) == 1}))
    again = next(g for g in discover(compact).of(["heads"]) if g.name == heads[0].name)
    assert again.num_units > 1
    args: dict[str, Any] = {"scoring": "random", "units": ["heads"], "density": 0.5}

    def cut(**options: Any) -> Plan:
        coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**args, **options))
        smaller = coordinator.patch_model(copy.deepcopy(compact))
        coordinator.begin(1)
        coordinator.step()
        return plan_of(optimize_model(smaller))

    assert cut(exclude=[again.name]).groups[again.name]["keep"] == [1]
    assert "counted anew" not in caplog.text
    assert cut().groups[again.name]["size"] == again.num_units
    assert "counted anew" in caplog.text


def test_a_group_that_a_second_cut_takes_whole_is_gone_in_the_units_of_the_first() -> None:
    model = tiny_model("llama")
    heads = discover(model).of(["heads"])[0]
    compact = optimize_model(patched(model, {heads.name: torch.arange(heads.num_units) == 1}))
    again = discover(compact)[heads.name]
    gone = torch.zeros(again.num_units, dtype=torch.bool)
    assert plan_of(optimize_model(patched(compact, {again.name: gone}))).groups[heads.name]["keep"] == []


def test_protected_units_move_to_the_device_of_the_scores_once() -> None:
    protected = {"a": torch.tensor([True, False])}
    scores = {"a": torch.zeros(2, device="meta"), "b": torch.zeros(2, device="meta")}
    assert put_first(scores, protected)["a"].device.type == "meta"
    moved = protected["a"]
    assert moved.device.type == "meta"
    put_first(scores, protected)
    assert protected["a"] is moved


def test_a_checkpoint_of_a_protected_run_loads_without_its_first_plan(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "first.json")
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(
            density=0.9, protect_plan=str(tmp_path / "first.json"), protect_kinds=["channels"]
        )
    )
    model = coordinator.patch_model(tiny())
    assert set(coordinator.pruner.protected) == {f"bert.encoder.layer.{i}.channels" for i in range(3)}
    model.save_pretrained(tmp_path / "checkpoint")
    save_state(tmp_path / "checkpoint", coordinator)
    (tmp_path / "first.json").unlink()
    assert gates_of(load_patched(tmp_path / "checkpoint"))


def test_a_kind_that_contradicts_the_group_is_refused(plan: Plan) -> None:
    values = plan.to_dict()
    name = next(name for name, group in values["groups"].items() if group["kind"] == "heads")
    values["groups"][name]["kind"] = "channels"
    with pytest.raises(CheckpointError, match=r"kind: 'channels', but these units are heads"):
        optimize_model(tiny(), plan=values)
