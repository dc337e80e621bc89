"""Overrides with comma lists, and the names of the runs that they make."""

import pytest
import yaml

from sparse_trainer.errors import RecipeError
from sparse_trainer.run.sweep.grid import MOST_NAME, combinations, split_values, value_name


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.25", ["0.25"]),
        ("", [""]),
        ("0.25, 0.5 ,0.75", ["0.25", "0.5", "0.75"]),
        ("[a, b]", ["[a, b]"]),
        ("[a, [b, c]],[d]", ["[a, [b, c]]", "[d]"]),
        ("{heads: 0.75, channels: 0.5},0.5", ["{heads: 0.75, channels: 0.5}", "0.5"]),
        ("obs(rounds=16, exact=true),wanda + 0.5 fisher", ["obs(rounds=16, exact=true)", "wanda + 0.5 fisher"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'it''s, so',c", ["'it''s, so'", "c"]),
        (r'"a\",b",c', [r'"a\",b"', "c"]),
        ('["a]", b],c', ['["a]", b]', "c"]),
        ("it's,so", ["it's", "so"]),
        ("5',6'", ["5'", "6'"]),
        ("a),b", ["a)", "b"]),
        ("null,", ["null", ""]),
    ],
)  # fmt: skip
def test_commas_part_values_unless_brackets_or_quotes_hold_them(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["[1, 2],[3],{a: 1, b: [2, 3]},'x, y',\"p,q\",5,null,1.0e-5,no"])
def test_values_are_those_of_a_yaml_list(text: str) -> None:
    assert [yaml.safe_load(value) for value in split_values(text)] == yaml.safe_load(f"[{text}]")


def test_the_last_option_varies_fastest_and_single_values_are_in_every_run() -> None:
    found = combinations(["training.seed=0,1", "training.max_steps=4", "pruning.density=0.25,0.5"])
    assert [each.name for each in found] == [
        "seed=0_density=0.25", "seed=0_density=0.5", "seed=1_density=0.25", "seed=1_density=0.5",
    ]  # fmt: skip
    assert found[1].overrides == ("training.seed=0", "training.max_steps=4", "pruning.density=0.5")
    assert found[1].values == {"training.seed": "0", "pruning.density": "0.5"}


def test_keys_that_end_alike_are_named_whole() -> None:
    found = combinations(
        ["training.learning_rate=1.0e-5,2.0e-5", "model.dense_training.learning_rate=3.0e-5,4.0e-5"]
    )
    assert found[0].name == "training.learning_rate=1.0e-5_model.dense_training.learning_rate=3.0e-5"


def test_names_are_names_of_folders_and_differ_where_values_do() -> None:
    values = [
        "/data/a b.jsonl",
        "/data/a-b.jsonl",
        "..",
        "../x",
        "[a]",
        "a",
        "é",
        "x" * 300,
        "x" * 301,
        "~",
    ]
    names = [value_name(value) for value in values]
    assert len(set(names)) == len(values)
    assert all(name and "/" not in name and not name.startswith("-") and len(name) < 60 for name in names)
    many = combinations(f"training.{chr(97 + i)}={'y' * 39}{i},{'z' * 39}{i}" for i in range(8))
    assert len({each.name for each in many}) == 2**8
    assert max(len(each.name) for each in many) <= MOST_NAME + 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pruning.density=0.5"], "no option has several values"),
        ([], "no option has several values"),
        (["pruning.density=0.5,"], "a value is missing beside a comma"),
        (["pruning.density=,0.5"], "a value is missing beside a comma"),
        (["pruning.density"], "is not KEY=VALUE"),
        (["=0.5,0.25"], "is not KEY=VALUE"),
        (["training.seed=0,1", "training.seed=2"], r"stands here a second time.*training\.seed=A,B"),
    ],
)
def test_what_is_no_grid_is_one_error(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        combinations(overrides)
