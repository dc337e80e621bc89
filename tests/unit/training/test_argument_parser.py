"""`HfArgumentParser` reads the pruning arguments beside those of any Trainer, and old names are still understood."""

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.fields import checked
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.checkpoint import STATE_FILE, save_state
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.load import load_patched
from tests.architectures.tiny import tiny_model

FIELDS = {field.name for field in dataclasses.fields(SparseTrainingArguments)}
WORDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a number": (["--density", "0.75"], {"density": 0.75}),
    "hyphens": (["--update-every", "2"], {"update_every": 2}),
    "a mapping": (["--density", '{"heads": 0.5, "channels": 0.25}'], {"density": {"heads": 0.5, "channels": 0.25}}),
    "whole numbers per kind": (["--multiple_of", '{"channels": 8}'], {"multiple_of": {"channels": 8}}),
    "a whole number": (["--min_keep", "2", "--pruning_seed", "7"], {"min_keep": 2, "pruning_seed": 7}),
    "a list": (["--units", "heads", "--exclude", "*.0.*", "b"], {"units": ["heads"], "exclude": ["*.0.*", "b"]}),
    "a float": (["--score_learning_rate", "1e-3"], {"score_learning_rate": 1e-3}),
    "text or none": (["--standardize", "none"], {"standardize": "none"}),
    "a switch": (["--distil_in_order", "false"], {"distil_in_order": False}),
    "a switch off": (["--no_distil_in_order"], {"distil_in_order": False}),
    "a switch on": (["--gelu_patch"], {"gelu_patch": True}),
    "nn_pruning": (
        ["--dense_pruning_method", "topK:1d_alt", "--final_threshold", "0.2", "--initial_warmup", "1"],
        {"dense_pruning_method": "topK:1d_alt", "final_threshold": 0.2, "initial_warmup": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("beside", [None, TrainingArguments, Seq2SeqTrainingArguments])
def test_every_sort_of_value_is_read(beside: Any, words: str, tmp_path: Path) -> None:
    said, expected = WORDS[words]
    classes = (SparseTrainingArguments,) if beside is None else (beside, SparseTrainingArguments)
    first = [] if beside is None else ["--output_dir", str(tmp_path), "--seed", "3", "--warmup_steps", "2"]
    *others, sparse = HfArgumentParser(classes).parse_args_into_dataclasses([*first, *said])
    assert {name: getattr(sparse, name) for name in expected} == expected
    assert all(other.seed == 3 for other in others)
    untouched = SparseTrainingArguments()
    changed = {name for name in FIELDS - expected.keys() if getattr(sparse, name) != getattr(untouched, name)}
    assert changed == set()


def test_every_field_has_an_option_of_its_own_type() -> None:
    parser = HfArgumentParser(SparseTrainingArguments)
    for field in dataclasses.fields(SparseTrainingArguments):
        for word in ("2", "true", "some text", '{"heads": 2}'):
            try:
                value = vars(parser.parse_args([f"--{field.name}", word]))[field.name]
            except SystemExit:
                continue
            break
        else:
            pytest.fail(f"nothing can be said for {field.name}")
        assert value in (2, True, "2", [word], [2.0]), field.name
    assert "--density" in parser.format_help()


def test_the_help_of_a_script_has_a_part_of_its_own_for_pruning_what_matters_most_first() -> None:
    text = HfArgumentParser((SparseTrainingArguments, Seq2SeqTrainingArguments)).format_help()
    _, heading, ours = text.partition("\npruning:\n")
    assert heading
    assert "--output_dir" not in ours
    found = [option for option in re.findall(r"^  --(\w+)", ours, re.MULTILINE) if option in FIELDS]
    assert set(found) == FIELDS
    assert found[:2] == ["density", "scoring"]
    assert found.index("distil_temperature") < found.index("preset") < found.index("cheaper")


CONFIGS = [
    ("trl", ("SFTConfig", "DPOConfig", "GRPOConfig", "RLOOConfig", "RewardConfig", "KTOConfig")),
    ("sentence_transformers", ("SentenceTransformerTrainingArguments",)),
    ("sentence_transformers.cross_encoder", ("CrossEncoderTrainingArguments",)),
    ("sentence_transformers.sparse_encoder", ("SparseEncoderTrainingArguments",)),
]


@pytest.mark.parametrize(("library", "name"), [(lib, name) for lib, names in CONFIGS for name in names])
@pytest.mark.filterwarnings("ignore")
def test_no_name_is_taken_by_the_arguments_of_other_trainers(library: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    config = getattr(importlib.import_module(library), name)
    assert FIELDS & {field.name for field in dataclasses.fields(config)} == set()
    words = ["--output_dir", str(tmp_path), "--density", "0.5", "--bf16", "false"]
    *_, sparse = HfArgumentParser((config, SparseTrainingArguments)).parse_args_into_dataclasses(words)
    assert sparse.density == 0.5


@pytest.mark.filterwarnings("ignore")
def test_the_parser_of_trl_reads_them_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    file = tmp_path / "sft.yaml"
    file.write_text(
        yaml.safe_dump({"output_dir": str(tmp_path), "density": {"heads": 0.5}, "units": ["heads"]})
    )
    parser = trl.TrlParser((trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig, SparseTrainingArguments))
    words = ["--config", str(file), "--dataset_name", "x", "--bf16", "false", "--pruning_seed", "3"]
    script, training, _, sparse = parser.parse_args_and_config(words)
    assert (script.dataset_name, training.output_dir) == ("x", str(tmp_path))
    assert (sparse.density, sparse.units, sparse.pruning_seed) == ({"heads": 0.5}, ["heads"], 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--density", "half"], "argument --density: 'half' is neither a number nor one per kind, as JSON"),
        (["--density", '["heads"]'], "argument --density: .* is neither a number"),
        (["--density", "true"], "argument --density: 'true' is neither a number"),
        (["--update_every", "2.5"], "argument --update_every/--update-every: invalid int value: '2.5'"),
        (["--final_threshold", "x"], "argument --final_threshold.*: invalid float value: 'x'"),
        (["--bias_mask", "perhaps"], "argument --bias_mask.*"),
    ],
)
def test_a_bad_value_is_an_error_of_the_command_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        HfArgumentParser(SparseTrainingArguments).parse_args_into_dataclasses(words)
    error = capsys.readouterr().err
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("write", "parse"), [(json.dumps, "parse_json_file"), (yaml.safe_dump, "parse_yaml_file")]
)
def test_files_are_read(write: Any, parse: str, tmp_path: Path) -> None:
    values = {
        "output_dir": str(tmp_path),
        "seed": 3,
        "density": {"heads": 0.5},
        "pruning_seed": 4,
        "exclude": ["a"],
        "standardize": None,
    }
    file = tmp_path / "arguments"
    file.write_text(write(values))
    trainer, sparse = getattr(HfArgumentParser((TrainingArguments, SparseTrainingArguments)), parse)(
        str(file)
    )
    assert (trainer.seed, sparse.pruning_seed) == (3, 4)
    assert (sparse.density, sparse.exclude, sparse.kinds) == ({"heads": 0.5}, ["a"], ("heads",))


def test_old_names_are_understood_and_say_what_they_are_called_now(
    caplog: pytest.LogCaptureFixture,
) -> None:
    args = SparseTrainingArguments(seed=7, warmup_ratio=0.2)  # type: ignore[call-arg]
    assert (args.pruning_seed, args.pruning_warmup_ratio) == (7, 0.2)
    assert "seed is called pruning_seed now" in caplog.text
    assert "warmup_ratio is called pruning_warmup_ratio now" in caplog.text
    args.seed = 8  # type: ignore[attr-defined]
    args.check()
    assert (args.pruning_seed, args.seed) == (8, 8)  # type: ignore[attr-defined]
    assert dataclasses.replace(args, density=0.25).pruning_seed == 8
    with pytest.raises(ArgumentError, match="seed, pruning_seed: are one option"):
        SparseTrainingArguments(seed=7, pruning_seed=7)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="sed"):
        SparseTrainingArguments(sed=7)  # type: ignore[call-arg]


def test_recipes_with_old_names_are_read() -> None:
    assert checked(SparseTrainingArguments, {"seed": 7}, "r.yaml: pruning") == {"pruning_seed": 7}
    with pytest.raises(RecipeError, match="is text"):
        checked(SparseTrainingArguments, {"seed": "x"}, "r.yaml: pruning")


def test_checkpoints_with_old_names_are_read(tmp_path: Path) -> None:
    model = tiny_model("bert")
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="random", pruning_seed=9))
    coordinator.patch_model(model).save_pretrained(tmp_path)  # type: ignore[operator]
    save_state(tmp_path, coordinator)
    state = json.loads((tmp_path / STATE_FILE).read_text())
    state["sparse_args"]["seed"] = state["sparse_args"].pop("pruning_seed")
    state["sparse_args"]["warmup_ratio"] = state["sparse_args"].pop("pruning_warmup_ratio")
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    load_patched(tmp_path)
