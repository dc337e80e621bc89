"""Options are checked at once, each error naming place, value and remedy."""

from typing import Any

import pytest
from transformers import HfArgumentParser

from patchers.discovery.discover import discover
from patchers.units import CHANNELS, HEADS, LAYERS
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model

BAD: list[tuple[dict[str, Any], str]] = [
    ({"scoring": "movment"}, "scoring.*'movment'.*Did you mean 'movement'"),
    ({"target": "flops"}, "target.*params, macs, units"),
    ({"density": 0}, r"density: 0 is not in \(0, 1\]"),
    ({"density": 1.2}, "density"),
    ({"density": "0.5"}, "density"),
    ({"density": {"heads": 0}}, r"density\.heads"),
    ({"density": {"head": 0.5}}, "Did you mean 'heads'"),
    ({"density": {}}, "no kind"),
    ({"scope": "everywhere"}, "scope"),
    ({"units": ["neurons"]}, "units.*heads, channels"),
    ({"units": ["layers", "heads"]}, "one density per kind"),
    ({"units": ["heads", "channels"], "density": {"heads": 0.5}}, "says nothing of.*channels"),
    ({"multiple_of": 0}, "multiple_of"),
    ({"min_keep": -1}, "min_keep"),
    ({"pruning_warmup_ratio": 0.6, "cooldown_ratio": 0.4}, "leaves no time"),
    ({"standardize": "zscore"}, "Did you mean 'zscore_"),
    ({"scoring": "l0", "units": ["layers", "heads"], "scope": "uniform"}, "one density per kind"),
    ({"scoring": "l0", "l0_learning_rate": 0.0}, "l0_learning_rate: 0.0 is not positive"),
    ({"l0_warmup": 1.5}, r"l0_warmup: 1.5 is not in \[0, 1\]"),
    ({"taylor_order": 3}, "taylor_order"),
    ({"update_every": 0}, "update_every"),
    ({"distil_temperature": 0.0}, "distil_temperature"),
    ({"gate_epsilon_final": 0.0}, "gate_epsilon_final: 0.0 is not positive"),
    ({"taylor_decay": 1.0}, r"taylor_decay: 1.0 is not in \[0, 1\)"),
    ({"gate_penalty": -1.0}, "gate_penalty: -1.0 is negative"),
    ({"distil_alpha_hidden": -0.1}, "distil_alpha_hidden: -0.1 is negative"),
    ({"distil_alpha_ce": 0.0, "distil_alpha_teacher": 0.0}, "distil_alpha_hidden: all are 0"),
    ({"units": []}, "units: names no kind. Name some of heads"),
    ({"scoring": "l0", "units": ["experts"]}, "l0 does not score experts"),
    ({"scoring": "layer_gate", "density": {"experts": 0.5}}, "layer_gate does not score experts"),
    (
        {"protect_plan": "p", "protect_kinds": ["head"]},
        "protect_kinds: unknown value 'head'.*Did you mean 'heads'",
    ),
    ({"protect_plan": "p", "protect_kinds": "heads"}, "protect_kinds: 'heads' is text. Give a list of text"),
    ({"protect_plan": "p", "protect_kinds": ["layers"]}, "layers: movement prunes heads and channels only"),
    (
        {"protect_plan": "p", "units": ["channels"]},
        "heads: movement prunes channels only. Name channels, or drop",
    ),
    ({"protect_plan": "p", "protect_kinds": []}, "protect_plan protects nothing"),
    ({"protect_kinds": ["channels"]}, "not those of which run. Give its plan as protect_plan"),
    ({"protect_plan": "a", "rewind_model_name_or_path": "b"}, "'a' and 'b': one plan at most"),
]

WRONG_TYPES: list[tuple[str, Any, str]] = [
    ("pruning_warmup_ratio", "0.1", "is text. Give a number"),
    ("sequence_length", "128", "is text. Give a whole number"),
    ("score_learning_rate", "1e-2", "is text. Give a number"),
    ("final_threshold", "0.5", "is text. Give a number or null"),
    ("attention_block_rows", "8", "is text. Give a whole number"),
    ("attention_block_rows", 8.0, "is a number. Give a whole number"),
    ("attention_block_rows", True, "is true/false. Give a whole number"),
    ("dense_pruning_method", 3, "is a whole number. Give text or null"),
    ("scoring", ["l0"], "is a list. Give text"),
    ("bias_mask", "no", "is text. Give true or false"),
    ("update_every", 2.5, "is a number. Give a whole number"),
    ("pruning_seed", "x", "is text. Give a whole number"),
    ("exclude", "*.heads", "is text. Give a list of text"),
    ("units", "heads", "is text. Give a list of text or null"),
    ("cheaper", "relu", "is text. Give a list of text"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_TYPES)
def test_values_of_a_wrong_type_are_named_also_when_they_are_set_later(
    name: str, value: object, message: str
) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: .* {message}"):
        SparseTrainingArguments(**{name: value})  # type: ignore[arg-type]
    args = SparseTrainingArguments()
    setattr(args, name, value)
    with pytest.raises(ArgumentError, match=f"{name}: .* {message}"):
        args.check()


def test_old_scripts_write_1_and_0_for_true_and_false_and_tuples_are_lists() -> None:
    args = SparseTrainingArguments(layer_norm_patch=1, gelu_patch=0, units=("heads",))  # type: ignore[arg-type]
    assert args.cheaper_layers == ("no_norm",)
    assert args.kinds == ("heads",)


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("bert", {"units": ["heads", "experts"]}, "units: Bert.* has no experts .* out of units: it has heads, ch"),
        ("bert", {"density": {"heads": 0.5, "experts": 0.5}}, "density: .* has no experts"),
        ("gpt2", {"units": ["attention", "ffn"]}, "GPT2.* has no ffn that can be pruned.*it has heads"),
        ("gpt2", {"units": ["ffn"]}, "GPT2.* has no ffn that can be pruned.*Take ffn out of units"),
        ("deepseek_v3", {"units": ["heads", "experts"]}, "no experts.*Left alone: .*correction bias"),
        ("bert", {"units": ["heads", "channels"], "exclude": ["*.heads"]}, "exclude leaves no heads.*Exclude less"),
        ("bert", {"units": ["ffn"], "include": ["*.heads"]}, "include or exclude leaves no ffn"),
    ],
)  # fmt: skip
def test_kinds_that_were_named_and_are_not_there_are_named(
    model_type: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        ModelPatchingCoordinator(SparseTrainingArguments(**options)).patch_model(tiny_model(model_type))


def test_default_kinds_may_be_absent_in_part() -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(exclude=["*.heads"]))
    coordinator.patch_model(tiny_model("bert"))
    assert {group.kind for group in coordinator.structure.groups} == {"channels"}


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SparseTrainingArguments(**options)


def test_kinds_come_from_units_density_or_criterion() -> None:
    assert SparseTrainingArguments().kinds == ("heads", "channels")
    assert SparseTrainingArguments(scoring="layer_gate").kinds == ("layers",)
    assert SparseTrainingArguments(density={"channels": 0.5}).kinds == ("channels",)
    assert SparseTrainingArguments(units=["ffn", "attention"]).kinds == ("attention", "ffn")


def test_bare_multiple_of_means_channels() -> None:
    budget = SparseTrainingArguments(multiple_of=32, min_keep={"heads": 2}).budget
    groups = {g.kind: g for g in discover(tiny_model("bert")).groups}
    assert (budget.step_of(groups["channels"]), budget.step_of(groups["heads"])) == (32, 1)
    assert (budget.floor_of(HEADS), budget.floor_of(CHANNELS), budget.floor_of(LAYERS)) == (2, 1, 0)


def test_hf_argument_parser_reads_them() -> None:
    parser = HfArgumentParser(SparseTrainingArguments)
    (args,) = parser.parse_dict({"scoring": "taylor", "density": {"heads": 0.5}})
    assert args.kinds == ("heads",)


@pytest.mark.parametrize("scoring", ["movement(x=1)", "obs(rounds=0)", "wnda"])
def test_a_mistake_in_a_scoring_is_told_at_scoring(scoring: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        SparseTrainingArguments(scoring=scoring)
    assert caught.value.where.startswith("scoring")
    assert "Known: ." not in caught.value.remedy
