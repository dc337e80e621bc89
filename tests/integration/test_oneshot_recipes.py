"""Every one-shot recipe, and `sparse-trainer prune`, on a tiny Llama and local text, without a network."""

import csv
import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchers.units import LAYERS
from sparse_trainer.cli import show
from sparse_trainer.cli.app import make_app
from sparse_trainer.cli.commands import COMMANDS
from sparse_trainer.errors import BudgetError, CheckpointError, DataError, SparseTrainerError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.one_shot.prune import prune_by
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.run.options import CalibrationOptions, PruneSection, SourceOptions
from sparse_trainer.run.outcome import ALWAYS, FILES
from sparse_trainer.run.pictures import ZERO_FILES
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.prune_folder import prune_folder
from sparse_trainer.run.recipes.load import is_one_shot, load_recipe
from sparse_trainer.run.recipes.reading import read_sections
from sparse_trainer.run.recipes.shipped import shipped
from tests.fixtures.recipe_files import write_text, write_tiny_llama

ALL = sorted(name for name, path in shipped().items() if is_one_shot(read_sections(path)))
PRUNINGS = {name: load_recipe(name, ["model.name_or_path=MODEL"]).prunings for name in ALL}
OF_WEIGHTS = [name for name in ALL if PRUNINGS[name][-1].elements is not None]
OF_UNITS = [name for name in ALL if name not in OF_WEIGHTS]
DEPTH = [
    name for name in OF_UNITS if LAYERS in PRUNINGS[name][0].budget.kinds and PRUNINGS[name][0].search is None
]
QUICKSTART = "quickstart-llm"
ELSEWHERE = (
    QUICKSTART,
    "llava-afr",
    "llava-afr-towers",
    "llama-staged-lora",
    "sst2-local-one-shot",
    "embeddings-one-shot",
)
"""Recipes with images run in tests/unit/data/test_image_text.py, those with recovery in test_recovery.py, those of
encoders in test_encoders_in_one_shot.py."""
ONE_SHOT = [name for name in OF_UNITS if name not in (*DEPTH, *ELSEWHERE)]
PICTURES = ("kept.png", "widths.png", "widths.csv", "scores.png", "scores.csv")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oneshot")
    write_tiny_llama(folder / "model")
    write_text(folder / "text.txt", 40)
    return folder


def small(name: str, files: Path, out: Path, *overrides: str) -> Any:
    """Load a recipe with the tiny model, local text and little of it."""
    return load_recipe(
        name,
        [
            f"model.name_or_path={files / 'model'}",
            "model.device=cpu",
            f"calibration.file={files / 'text.txt'}",
            "calibration.samples=6",
            "calibration.length=24",
            *([] if name == QUICKSTART else [f"evaluation.files.wikitext2={files / 'text.txt'}"]),
            "evaluation.max_tokens=120",
            f"export.output_dir={out}",
            "export.latency_rounds=1",
            "export.latency_sequence_length=8",
            "export.verify_samples=2",
            *overrides,
        ],
    )


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_one_shot_recipe_leaves_a_model_that_loads(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing takes longer than all else here, and is the same for every recipe; other tests draw.
    monkeypatch.setattr(
        "sparse_trainer.run.pictures.save_picture", lambda figure, path: path.write_bytes(b"drawn")
    )
    said: list[str] = []
    recipe = small(name, files, tmp_path / "out", "export.verify=false")
    result = run(recipe, said.append)

    plan = Plan.load(tmp_path / "out")
    # One unit of the tiny model is up to a twelfth of what can be pruned.
    assert plan.density_reached == pytest.approx(0.8, abs=0.1)
    assert plan.params["compact"] < plan.params["dense"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert loaded.num_parameters() == result.comparison.models["pruned"].parameters
    for file in (*FILES.values(), *PICTURES, "README.md", PLAN_FILE, "tokenizer.json"):
        assert (tmp_path / "out" / file).stat().st_size > 0, file
    dense, pruned = (m.metrics["wikitext2 perplexity"] for m in result.comparison.models.values())
    assert dense > 1
    assert pruned > 1
    assert pruned != dense
    assert said[:2] == ["reading wikitext2", "loading the model"]
    assert load_recipe(tmp_path / "out" / "recipe.yaml").sections == recipe.sections
    assert "wikitext2 perplexity" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in DEPTH if name not in ELSEWHERE])
def test_a_recipe_of_depth_leaves_fewer_layers_that_load(name: str, files: Path, tmp_path: Path) -> None:
    key = "prune" if "prune" in load_recipe(name).sections else "stages.0"
    more = [f"{key}.density={{layers: 0.67}}"]
    shares = load_recipe(name).sharing is not None
    more += ["sharing.layers=[0, 1]"] if shares else []
    result = run(small(name, files, tmp_path / "out", "export.verify=false", *more), lambda line: None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=shares)
    assert loaded.config.num_hidden_layers == 2
    assert loaded.num_parameters() == result.comparison.models["pruned"].parameters
    assert result.comparison.models["pruned"].metrics["wikitext2 perplexity"] > 1


def test_the_quickstart_of_language_models_brings_its_own_text(files: Path, tmp_path: Path) -> None:
    short = ("evaluation.length=24", "stages.0.density={layers: 0.67}", "stages.1.min_keep=1")
    recipe = small(QUICKSTART, files, tmp_path / "out", "calibration.file=null", *short)
    result = run(recipe, lambda line: None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert loaded.config.num_hidden_layers == 2
    assert result.comparison.models["pruned"].metrics["python-docs perplexity"] > 1
    assert (
        "| calibrated on | 6 x 24 tokens of python-docs, seed 42 |"
        in (tmp_path / "out/README.md").read_text()
    )


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_a_recipe_of_weights_leaves_zeros_that_load(name: str, files: Path, tmp_path: Path) -> None:
    result = run(small(name, files, tmp_path / "out", "export.verify=false"), lambda line: None)
    out, plan = tmp_path / "out", Plan.load(tmp_path / "out")
    assert plan.density_reached == pytest.approx(0.5, abs=0.02)
    assert plan.params["compact"] == plan.params["dense"]
    weights = load_pruned(out).state_dict()
    assert plan.zeros == {
        entry: (int((weights[entry] == 0).sum()), weights[entry].numel()) for entry in plan.zeros
    }
    assert result.files == {what: out / name for what, name in (ALWAYS | ZERO_FILES).items()}
    assert all(file.stat().st_size > 0 for what, file in result.files.items() if what != "shapes")
    assert not (out / "widths.csv").exists()
    zero, size = plan.zeros_in_all
    assert json.loads((out / "report.json").read_text())["zeros"] == {"weights": size, "zeros": zero}
    assert f"{zero:,} zeros among the {size:,} weights" in (out / "README.md").read_text()
    assert "neither smaller nor faster" in (out / "README.md").read_text()
    assert any("by itself neither smaller" in str(line) for line in show.run_lines(result))


def test_masks_on_the_command_line_reload_in_a_new_process_with_the_same_zeros(
    files: Path, tmp_path: Path
) -> None:
    first = run(small("llama-wanda-2-4", files, tmp_path / "run"), lambda line: None)
    assert first.reloaded is not None
    assert first.reloaded.same_predictions == first.reloaded.samples
    text = ("--calibration", files / "text.txt", "--samples", "6", "--length", "24")
    asked = ("--criterion", "wanda", "--units", "weights", "--pattern", "2:4", "--no-pictures")
    command("prune", files / "model", tmp_path / "out", *asked, *text, "--seed", "42")
    plan = Plan.load(tmp_path / "out")
    assert first.plan is not None
    assert plan.zeros == first.plan.zeros
    code = (
        "import json, sys, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(json.dumps({n: int((p == 0).sum()) for n, p in model.named_parameters()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    counted = json.loads(done.stdout)
    assert {entry: counted[entry] for entry in plan.zeros} == {n: z for n, (z, _) in plan.zeros.items()}


def test_a_one_shot_run_reloads_elsewhere_and_runs_again(files: Path, tmp_path: Path) -> None:
    first = run(small("llama-wanda", files, tmp_path / "out"), lambda line: None)
    assert first.reloaded is not None
    # One prediction per token.
    assert first.reloaded.same_predictions == first.reloaded.samples > 2
    assert first.reloaded.parameters == first.plan.params["compact"]
    shown = [part for part in show.run_lines(first) if isinstance(part, str)]
    assert any(line.startswith("scores table: ") for line in shown)
    opened = [Path(line.rpartition(": ")[2]) for line in shown[-2:]]
    assert [path.relative_to(first.folder).name for path in opened] == ["widths.png", "report.html"]
    scope: dict[str, Any] = {}
    exec("\n".join(first.load_lines), scope)
    assert scope["model"].num_parameters() == first.plan.params["compact"]
    unverified = small("llama-wanda", files, tmp_path / "out", "export.verify=false")
    with pytest.raises(CheckpointError, match="holds a result already"):
        run(unverified, lambda line: None)
    again = run(unverified, lambda line: None, overwrite=True)
    assert again.plan == first.plan
    assert json.dumps(again.to_json())


def test_mistakes_are_found_before_a_model_is_loaded(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_trainer.run.options.load_model", _no_loading)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not ours to replace"):
        run(small("llama-wanda", files, tmp_path), print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


STAGES = """
model: {name_or_path: m}
calibration: {}
stages:
- {criterion: block_influence, density: {layers: 0.67}, protect: [first], reconstruct: least_squares}
- {criterion: wifv, density: {channels: 0.7}, scope: uniform, reconstruct: least_squares}
evaluation: {tasks: [wikitext2]}
"""


SHARING = """
model: {name_or_path: m}
calibration: {}
prune: {criterion: block_influence, density: {layers: 0.67}, protect: [first]}
sharing: {size: 2}
evaluation: {tasks: [wikitext2]}
"""


MERGING = """
model: {name_or_path: m}
calibration: {}
prune: {criterion: magnitude, density: {channels: 0.7}}
kv_merge: {kv_heads: 1}
evaluation: {tasks: [wikitext2]}
"""


def test_a_section_merges_kv_heads_after_the_cut(files: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MERGING)
    said: list[str] = []
    result = run(small(str(tmp_path / "r.yaml"), files, tmp_path / "out", "export.verify=false"), said.append)
    assert "KV heads merged into 1 (all layers)" in said
    assert result.plan is not None
    assert result.plan.method.endswith("then KV heads merged into 1 (all layers)")
    assert load_pruned(tmp_path / "out").config.num_key_value_heads == 1
    with pytest.raises(SparseTrainerError, match=r"kv_heads.*does not divide"):
        run(small(str(tmp_path / "r.yaml"), files, tmp_path / "no", "kv_merge.kv_heads=99"), said.append)


def test_a_section_takes_tokens_out_before_the_cut(files: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("what color is it? it is blue.")
    corpus = f"vocabulary.corpus=['{tmp_path / 'corpus.txt'}']"
    recipe = small("llama-wanda", files, tmp_path / "run" / "pruned", corpus, "export.verify=false")
    result = run(recipe, lambda line: None)
    loaded = load_pruned(result.folder)
    assert result.plan is not None
    assert result.plan.vocabulary is not None
    assert loaded.config.vocab_size == len(result.plan.vocabulary["keep"]) < result.plan.vocabulary["size"]
    assert result.plan.method.startswith("vocabulary, then wanda")


def test_the_layers_that_are_left_share_their_linears(files: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(SHARING)
    said: list[str] = []
    result = run(small(str(tmp_path / "r.yaml"), files, tmp_path / "out"), said.append)
    assert "sharing in groups of 2 (all layers; start: first)" in said
    assert result.reloaded is not None
    loaded: Any = load_pruned(tmp_path / "out")
    assert len(loaded.model.layers) == 2
    assert loaded.model.layers[0].mlp.up_proj.weight is loaded.model.layers[1].mlp.up_proj.weight
    assert (
        loaded.num_parameters() == result.reloaded.parameters == Plan.load(tmp_path / "out").params["compact"]
    )


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("sharing.layers=[1, 3]", r"sharing\.layers.*not runs of 2"),
        ("sharing.layers=[3, 4]", "has no layer 4"),
        ("sharing.size=1", r"sharing\.size"),
        ("sharing.start=last", "last"),
    ],
)
def test_groups_that_cannot_be_are_told_before_anything_is_pruned(
    override: str, error: str, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(SHARING)
    said: list[str] = []
    with pytest.raises(SparseTrainerError, match=error):
        run(small(str(tmp_path / "r.yaml"), files, tmp_path / "out", override), said.append)
    assert not any("pruning" in line for line in said)


def test_stages_are_what_two_calls_of_prune_do(files: Path, tmp_path: Path) -> None:
    (tmp_path / "staged.yaml").write_text(STAGES)
    said: list[str] = []
    recipe = small(str(tmp_path / "staged.yaml"), files, tmp_path / "out", "stages.1.density={channels: 0.6}")
    run(recipe, said.append)

    first, second = recipe.prunings
    assert second.density == {"channels": 0.6}
    assert [line for line in said if line.startswith("stage ")] == ["stage 1 of 2", "stage 2 of 2"]
    tokenizer = AutoTokenizer.from_pretrained(files / "model")
    model, batches = recipe.model.load(), recipe.calibration.batches(tokenizer)
    by_hand, plan = prune_by(second, prune_by(first, model, batches)[0], batches)
    saved = load_pruned(tmp_path / "out")
    assert Plan.load(tmp_path / "out").groups == plan.groups
    assert plan.method == "block_influence, repaired by least_squares, then wifv, repaired by least_squares"
    assert saved.config.num_hidden_layers == 2
    for name, weight in by_hand.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], weight)
    # Loaded again, it is the same recipe.
    assert load_recipe(tmp_path / "out" / "recipe.yaml").prunings == recipe.prunings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune.density=0.5"], "stages: there is a section prune, too"),
        (["stages=[]"], "stages: .* is no list of prunings"),
        (["stages.1=null"], r"stages\.1: says nothing"),
        (["stages.1.density=2"], r"override .*: stages\.1\.density: 2 is not in \(0, 1\]"),
        (["stages.1.densty=2"], r"stages\.1\.densty: unknown key\. Did you mean 'density'"),
        (["stages.2.density=0.5"], "override .*: '2' is no entry of a list of 2"),
        (["calibration=null"], r"calibration: block_influence needs one"),
    ],
)
def test_bad_stages_are_refused_when_they_are_read(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "staged.yaml").write_text(STAGES)
    with pytest.raises(SparseTrainerError, match=message):
        load_recipe(tmp_path / "staged.yaml", overrides)


def test_a_later_stage_that_does_not_fit_the_model_is_refused_before_the_first_works(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_trainer.run.one_shot.prune_model", _no_loading)
    (tmp_path / "staged.yaml").write_text(STAGES)
    recipe = small(str(tmp_path / "staged.yaml"), files, tmp_path / "out", "stages.1.protect=[nothing*]")
    with pytest.raises(SparseTrainerError, match=r"'nothing\*' matches no group"):
        run(recipe, print)
    assert not (tmp_path / "out").exists()


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _no_loading(*_: Any, **__: Any) -> None:
    raise AssertionError("the model was loaded")


def command(*arguments: object) -> dict[str, Any]:
    """Run the command line in this process; user errors are raised."""
    from typer.testing import CliRunner

    done = CliRunner().invoke(make_app(COMMANDS), [str(argument) for argument in (*arguments, "--json")])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def text(files: Path, *, samples: int = 6, length: int = 24) -> tuple[object, ...]:
    """Return the options for calibration."""
    return (
        "--calibration-file",
        files / "text.txt",
        "--samples",
        samples,
        "--length",
        length,
        "--device",
        "cpu",
    )


def test_prune_writes_model_plan_tables_and_pictures(files: Path, tmp_path: Path) -> None:
    found = command(
        "prune", files / "model", tmp_path / "out", "--criterion", "wifv", "--density", 0.8,
        "--calibration", "wikitext2", *text(files), "--reconstruct", "least-squares", "--max-prune", 0.5,
    )  # fmt: skip
    plan = Plan.load(tmp_path / "out")
    assert found["params"] == plan.params
    assert found["method"] == "wifv, repaired by least_squares"
    assert found["density_asked"] == 0.8
    assert sorted(Path(path).name for path in found["files"].values()) == sorted(("report.html", *PICTURES))
    assert all(Path(path).stat().st_size for path in found["files"].values())
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("it is")["input_ids"][0] == 1
    assert load_pruned(tmp_path / "out").num_parameters() == plan.params["compact"]
    assert not list(tmp_path.glob(".*"))


def test_block_by_block_keeps_the_same_units(files: Path, tmp_path: Path) -> None:
    for name, more in (("whole", ()), ("blocks", ("--by-block",))):
        command(
            "prune", files / "model", tmp_path / name, "--criterion", "obs", "--density", "channels=0.7",
            "--calibration", "wikitext2", *text(files), "--reconstruct", "least-squares", "--no-pictures", *more,
        )  # fmt: skip
    assert Plan.load(tmp_path / "whole").groups == Plan.load(tmp_path / "blocks").groups


def test_chat_templates_are_the_tokenizers(files: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the tokenizer has none"):
        command(
            "prune", files / "model", tmp_path / "out", "--criterion", "wanda", "--chat-template",
            "--calibration", "wikitext2", *text(files), "--no-pictures",
        )  # fmt: skip


def test_the_tables_say_what_the_plan_says(files: Path, tmp_path: Path) -> None:
    command(
        "prune", files / "model", tmp_path / "out", "--criterion", "wanda", "--density", "channels=0.7",
        "--density", "heads=0.5", "--scope", "uniform", *text(files),
    )  # fmt: skip
    plan = Plan.load(tmp_path / "out")
    with (tmp_path / "out" / "widths.csv").open() as file:
        widths = {row["group"]: row for row in csv.DictReader(file)}
    assert {name: int(row["kept"]) for name, row in widths.items()} == {
        name: len(group["keep"]) for name, group in plan.groups.items()
    }
    with (tmp_path / "out" / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    for name, group in plan.groups.items():
        rows = [row for row in scores if row["group"] == name]
        kept = [row for row in rows if row["kept"] == "1"]
        assert len(rows) == group["size"]
        assert [int(row["unit"]) for row in kept] == group["keep"]
        gone = [float(row["score"]) for row in rows if row["kept"] == "0"]
        assert min(float(row["score"]) for row in kept) >= max(gone)


def test_what_looks_at_weights_needs_no_text_and_no_tokenizer(files: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(files / "model")
    model.save_pretrained(tmp_path / "bare")
    found = command(
        "prune", tmp_path / "bare", tmp_path / "out", "--criterion", "magnitude(norm=1)", "--density", 0.7,
        "--multiple-of", "channels=4", "--protect", "first", "--units", "channels", "--no-pictures", "--dtype",
        "bfloat16",
    )  # fmt: skip
    assert found["files"] == {}
    plan = Plan.load(tmp_path / "out")
    assert not {path.name for path in (tmp_path / "out").iterdir()} & set(PICTURES)
    kept = [len(group["keep"]) for group in plan.by_kind()["channels"]]
    assert kept[0] == 40
    assert sum(kept) == 40 + 56
    assert [count % 4 for count in kept] == [0, 0, 0]
    assert load_pruned(tmp_path / "out").dtype == torch.bfloat16


def test_plans_compose_and_it_is_said(files: Path, tmp_path: Path) -> None:
    options = PruneSection(criterion="random", units=("channels",), density=0.5)
    said: list[str] = []
    for model, out in ((files / "model", "once"), (tmp_path / "once", "twice")):
        source = SourceOptions(name_or_path=str(model), device="cpu")
        prune_folder(source, tmp_path / out, options, draw=False, tell=said.append)
    once, twice = Plan.load(tmp_path / "once"), Plan.load(tmp_path / "twice")
    assert once.params["dense"] == twice.params["dense"]
    assert sum(len(group["keep"]) for group in twice.by_kind()["channels"]) == 3 * 40 / 4
    assert [line for line in said if "pruned before" in line] == [
        "the model was pruned before: the new plan composes with its own"
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--criterion", "wnda"), SparseTrainerError, "criterion: unknown value 'wnda'.*Did you mean 'wanda'"),
        (("--criterion", "wifv"), DataError, "calibration: wifv needs one"),
        (("--criterion", "random", "--density", "much"), SparseTrainerError, "density: 'much' is no number"),
        (("--criterion", "random", "--density", "1.5"), SparseTrainerError, r"density: 1.5 is not in \(0, 1\]"),
        (("--criterion", "random", "--density", "0.5", "--density", "0.6"), SparseTrainerError, "KIND=NUMBER"),
        (("--criterion", "random", "--export", "nativ"), SparseTrainerError, "Did you mean 'native'"),
        (("--criterion", "random", "--dtype", "float3"), SparseTrainerError, "dtype: 'float3'"),
        (("--criterion", "random", "--device", "abacus"), SparseTrainerError, "device: 'abacus'"),
        (("--criterion", "random", "--reconstruct", "leastsquares"), SparseTrainerError, "'least_squares'"),
        (("--criterion", "wifv", "--calibration", "wikitex2"), DataError, "Did you mean 'wikitext2'"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_and_nothing_is_written(
    arguments: tuple[str, ...], error: type[SparseTrainerError], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        command("prune", files / "model", tmp_path / "out", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--samples", "100000"), DataError, r"tokens, and 100000 x 23 = 2300000 are needed"),
        (("--samples", "1", "--reconstruct", "least_squares"), DataError, "tokens"),
        (("--length", "65"), SparseTrainerError, "length: 65 tokens, and the model has positions for 64"),
        (("--density", "0.01"), BudgetError, "feasible|between|least"),
        (("--protect", "0-2"), BudgetError, "everything is protected"),
        (("--protect", "7"), SparseTrainerError, "'7' matches no group"),
        (("--min-keep", "channels=40", "--min-keep", "heads=2"), BudgetError, "min_keep"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    arguments: tuple[str, ...], error: type[SparseTrainerError], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        command("prune", files / "model", tmp_path / "out", *text(files), *arguments)
    assert list(tmp_path.iterdir()) == []


def test_empty_calibration_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty|0 tokens"):
        command("prune", files / "model", tmp_path / "out", "--calibration-file", tmp_path / "empty.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_a_folder_that_is_not_ours_is_refused_before_any_work(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_trainer.run.options.load_model", _no_loading)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not ours to replace"):
        command("prune", files / "model", tmp_path, "--criterion", "random", "--overwrite")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_result_is_replaced_only_when_asked(files: Path, tmp_path: Path) -> None:
    options = ("--criterion", "random", "--no-pictures")
    command("prune", files / "model", tmp_path / "out", *options)
    with pytest.raises(CheckpointError, match="holds a result already"):
        command("prune", files / "model", tmp_path / "out", *options)
    command("prune", files / "model", tmp_path / "out", *options, "--density", 0.5, "--overwrite")
    assert Plan.load(tmp_path / "out").density_asked == 0.5


def test_a_model_that_cannot_be_saved_is_rescued(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    monkeypatch.setattr("sparse_trainer.run.pictures.save_picture", _full)
    with pytest.raises(
        CheckpointError, match=r"out: cannot be written .*The pruned model is in .*spare"
    ) as caught:
        command("prune", files / "model", tmp_path / "out", "--criterion", "random")
    assert load_pruned(caught.value.remedy.split()[-1][:-1]).num_parameters() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["spare"]


@pytest.mark.parametrize(
    "place", ["sparse_trainer.folders.save.write_text", "sparse_trainer.folders.own_files.write_text"]
)
def test_a_full_disk_leaves_nothing_half_written(
    place: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, _full)
    with pytest.raises(
        CheckpointError, match=r"out: cannot be written \(.*No space left on device.*Make room"
    ):
        command("prune", files / "model", tmp_path / "out", "--criterion", "random")
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_matplotlib_are_refused_before_any_work(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_trainer.run.pictures.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SparseTrainerError, match=r"matplotlib is not installed.*--no-pictures"):
        command("prune", files / "model", tmp_path / "out", "--criterion", "random")
    command("prune", files / "model", tmp_path / "out", "--criterion", "random", "--no-pictures")


def test_a_pruned_language_model_is_measured_on_text_that_it_was_not_calibrated_on(
    files: Path, tmp_path: Path
) -> None:
    write_text(tmp_path / "long.txt", 400)
    calibration = CalibrationOptions(source=str(tmp_path / "long.txt"), samples=4, length=24)
    source, said = SourceOptions(name_or_path=str(files / "model"), device="cpu"), []
    options = PruneSection(criterion="magnitude", density={"channels": 0.5})
    prune_folder(source, tmp_path / "out", options, calibration, draw=False, tell=said.append)
    assert any("before" in line and "perplexity" in line for line in said)
    card = (tmp_path / "out/README.md").read_text()
    assert "model-index" in card
    assert "| perplexity |" in card
    prune_folder(source, tmp_path / "not", options, calibration, draw=False, measure=False, tell=said.append)
    assert "perplexity" not in (tmp_path / "not/README.md").read_text()
