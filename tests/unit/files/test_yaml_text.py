"""YAML that nobody here wrote: every fault is named with its line, and a short text stays short."""

from pathlib import Path

import pytest

from sparse_trainer.criteria.calibration.expressions import read_criterion
from sparse_trainer.errors import ArgumentError, RecipeError, SparseTrainerError
from sparse_trainer.files.yaml_text import parse_yaml, read_yaml
from sparse_trainer.run.recipes.load import load_recipe

BAD = {
    "date": "2001-99-99",
    "time": "2001-01-01 99:99:99",
    "digits": "9" * 5000,
    "hexadecimal": "0x" + "f" * 5000,
    "base 60": "190:20:30" + ":59" * 400,
    "beyond 64 bits": str(2**64),
    "bool": "!!bool maybe",
    "int": "!!int abc",
    "float": "!!float abc",
    "timestamp": "!!timestamp abc",
    "binary": "!!binary 'é'",
    "empty int": "!!int ''",
    "object": "!!python/object/apply:os.system [true]",
    "unknown tag": "!wanted 1",
    "deep list": "[" * 5000 + "]" * 5000,
    "deep mapping": "{a: " * 500 + "1" + "}" * 500,
    "NUL": '"a\\0b"',
    "lone surrogate": '"\\ud800"',
    "list as key": "{[1, 2]: 3}",
    "mapping as key": "{{a: 1}: 3}",
    "doubled key": "{channels: 0.5, channels: 0.6}",
    "doubled number": "{1: a, 0x1: b}",
    "alias of nothing": "*a",
    "alias inside itself": "&a [*a]",
    "merge of a number": "{<<: 1}",
    "open bracket": "[1, 2",
    "tab": "\t- 1",
    "two documents": "1\n--- 2",
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_fault_is_named_in_files_and_in_overrides(value: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"model: {{name_or_path: x}}\nprune: {{density: {value}}}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert str(file) in str(caught.value)
    with pytest.raises(RecipeError, match=r"override .prune\.density=") as caught:
        load_recipe("llama-wanda", [f"prune.density={value}"])
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("value", [v for name, v in BAD.items() if name not in ("tab", "two documents")])
def test_the_line_is_named(value: str) -> None:
    with pytest.raises(RecipeError, match=r"^here, line 3: "):
        parse_yaml(f"a: 1\nb: 2\nc: {value}", "here")


def test_an_alias_is_a_copy() -> None:
    value = parse_yaml("a: &x {y: [1]}\nb: *x\nc: {<<: *x, y: [3]}", "here")
    assert value == {"a": {"y": [1]}, "b": {"y": [1]}, "c": {"y": [3]}}
    assert isinstance(value, dict)
    assert value["a"] is not value["b"]


@pytest.mark.parametrize("repeats", ["[*{0}, *{0}]", "{{a: *{0}, b: *{0}}}", "{{<<: [*{0}, *{0}]}}"])
def test_aliases_do_not_multiply(repeats: str) -> None:
    text = "x0: &x0 {k: [v, v, v, v]}\n" + "".join(
        f"x{n + 1}: &x{n + 1} {repeats.format(f'x{n}')}\n" for n in range(25)
    )
    assert len(text) < 1000
    with pytest.raises(RecipeError, match=r"line .* aliases repeat more than"):
        parse_yaml(text, "here")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", b"a: \xc3", b"#" * 300_000, b"a: \x07"])
def test_bytes_that_are_no_recipe_are_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.yaml"):
        read_yaml(file)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(file) == {"a": 1}


def test_options_of_criteria_are_read_by_the_same_rules() -> None:
    for text in ("obs(rounds=!!int x)", "obs(rounds=*a)", "obs(rounds=1, rounds=2)", "obs(rounds=[)"):
        with pytest.raises(ArgumentError, match="obs"):
            read_criterion(text)


@pytest.mark.parametrize("key", ["prune." + "a." * 2000 + "b", "a" * 100_000, "prune." + "a" * 100_000])
def test_messages_stay_short(key: str) -> None:
    with pytest.raises(SparseTrainerError) as caught:
        load_recipe("llama-wanda", [f"{key}=1"])
    assert len(str(caught.value)) < 4000
