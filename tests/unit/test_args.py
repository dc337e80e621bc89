"""Options are checked at once, each error naming place, value and remedy."""

from typing import Any

import pytest
from transformers import HfArgumentParser

from sparse_trainer import SparseTrainingArguments
from sparse_trainer.errors import ArgumentError

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
    ({"warmup_ratio": 0.6, "cooldown_ratio": 0.4}, "leaves no time"),
    ({"standardize": "zscore"}, "Did you mean 'zscore_"),
    ({"scoring": "l0", "units": ["layers", "heads"], "scope": "uniform"}, "one density per kind"),
    ({"scoring": "l0", "l0_learning_rate": 0.0}, "l0_learning_rate: 0.0 is not positive"),
    ({"l0_warmup": 1.5}, r"l0_warmup: 1.5 is not in \[0, 1\]"),
    ({"taylor_order": 3}, "taylor_order"),
    ({"update_every": 0}, "update_every"),
    ({"distil_temperature": 0.0}, "distil_temperature"),
]


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
    assert (budget.multiple_of["channels"], budget.multiple_of["heads"]) == (32, 1)
    assert (budget.min_keep["heads"], budget.min_keep["channels"], budget.min_keep["layers"]) == (2, 1, 0)


def test_hf_argument_parser_reads_them() -> None:
    parser = HfArgumentParser(SparseTrainingArguments)
    (args,) = parser.parse_dict({"scoring": "taylor", "density": {"heads": 0.5}})
    assert args.kinds == ("heads",)
