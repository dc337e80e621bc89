"""The command line: what it prints where, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from sparse_trainer.cli.front import main
from sparse_trainer.run.recipes.shipped import shipped
from tests.fixtures.recipe_files import write_tiny_llama, write_tiny_model


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    """Return the JSON object that a command prints."""
    assert call(monkeypatch, *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cli") / "tiny")


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparse_trainer", "recipes", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(done.stdout)["recipes"]) == set(shipped())


def test_recipes_lists_every_shipped_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "recipes") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in shipped())


def test_env_says_what_a_report_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(monkeypatch, capsys, "env")
    named = (
        "sparse-trainer",
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "trl",
        "safetensors",
        "tokenizers",
    )
    assert {*named, "datasets", "huggingface-hub"} <= found["packages"].keys()
    assert found["packages"]["torch"] == torch.__version__
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert {"python", "system", "gpus"} <= found.keys()
    monkeypatch.setattr("sparse_trainer.cli.environment._PACKAGES", ("torch", "no-such-package"))
    assert answer(monkeypatch, capsys, "env")["packages"]["no-such-package"] is None
    assert call(monkeypatch, "env") == 0
    assert "not installed" in capsys.readouterr().out


def test_a_user_error_is_one_line_on_stderr_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "quikstart") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith(
        "error: recipe 'quikstart': neither a file nor a shipped recipe. Did you mean 'quickstart'? "
        f"The nearest of {len(shipped())}: quickstart, "
    )


def test_inspect_adds_up(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(monkeypatch, capsys, "inspect", str(model))
    bert = BertModel.from_pretrained(model)
    assert found["parameters"] == sum(p.numel() for p in bert.parameters())
    assert found["totals"]["heads"]["units"] == 2 * 4
    assert found["totals"]["channels"]["units"] == 2 * 32
    layer = bert.encoder.layer[0]
    consumed = (
        sum(p.numel() for p in layer.intermediate.dense.parameters()) + layer.output.dense.weight.numel()
    )
    channels = next(g for g in found["groups"] if g["name"] == "encoder.layer.0.channels")
    assert channels["parameters"] == consumed
    assert set(found["untouched"]) == {"pooler.dense"}
    assert all(found["untouched"].values())


def test_inspect_shows_hidden_features_when_asked(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(monkeypatch, capsys, "inspect", str(model), "--hidden")
    bert = BertModel.from_pretrained(model)
    width = bert.config.hidden_size
    inside = [p for n, p in bert.encoder.named_parameters() if "LayerNorm" not in n]
    with_width = sum(p.numel() for p in inside if p.dim() == 2 or "output" in n_of(bert, p))
    assert found["totals"]["hidden"] == {
        "groups": 1, "units": width, "parameters": with_width, "macs": sum(p.numel() for p in inside if p.dim() == 2),
    }  # fmt: skip


def n_of(model: BertModel, parameter: torch.nn.Parameter) -> str:
    return next(name for name, p in model.named_parameters() if p is parameter)


def test_inspect_reads_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    BertConfig(architectures=["BertForSequenceClassification"]).save_pretrained(tmp_path)
    found = answer(monkeypatch, capsys, "inspect", str(tmp_path))
    assert found["model"] == "BertForSequenceClassification"
    assert found["parameters"] == 109_483_778
    assert set(found["untouched"]) == {"bert.pooler.dense", "classifier"}


def test_inspect_of_nothing_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "inspect", str(tmp_path)) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_optimize_cuts_zeros_and_bench_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    dense = BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32
        )
    )
    with torch.no_grad():
        dense.bert.encoder.layer[0].output.dense.weight[:, :24] = 0
    dense.save_pretrained(tmp_path / "zeros")
    found = answer(monkeypatch, capsys, "optimize", str(tmp_path / "zeros"), str(tmp_path / "out"))
    # 24 channels less: 16 weights in, 1 bias, 16 weights out each.
    assert found["params"]["dense"] - found["params"]["compact"] == 24 * (16 + 1 + 16)

    options = ("--batch-size", "1", "--sequence-length", "8", "--rounds", "2", "--threads", "1")
    names = str(tmp_path / "out"), str(tmp_path / "zeros")
    timed = answer(monkeypatch, capsys, "bench", names[0], "--against", names[1], *options)
    assert {each["model"] for each in timed["latencies"]} == set(timed["weights"]) == set(names)
    picture = tmp_path / "bench.png"
    drawn = ("--picture", str(picture))
    assert call(monkeypatch, "bench", names[0], "--against", names[1], *options, *drawn) == 0
    shown = capsys.readouterr().out
    assert "speed-up" in shown
    assert "float32, 1 threads, medians of 2 rounds" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert call(monkeypatch, "bench", names[0], *drawn) == 2
    assert "is there already" in capsys.readouterr().err


def test_bench_times_runtimes_and_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(write_tiny_llama(tmp_path / "llama"))
    options = ("--batch", "1,2", "--sequence-length", "4,8", "--rounds", "2", "--runtimes", "eager")
    timed = answer(monkeypatch, capsys, "bench", name, *options, "--generate", "3")
    sizes = [(1, 4), (2, 4), (1, 8), (2, 8)]
    for found in (timed["latencies"], timed["generation"]):
        assert [(each["batch"], each["sequence_length"]) for each in found] == sizes
        assert {each["runtime"] for each in found} == {"eager"}
    assert timed["generation"][0]["decode"]["median"] > 0
    assert call(monkeypatch, "bench", name, *options, "--generate", "3") == 0
    assert "generation with a cache" in capsys.readouterr().out
    assert call(monkeypatch, "bench", name, "--batch", "1,two") == 2
    assert "'1,two' is no list of whole numbers" in capsys.readouterr().err
    # The model has 64 positions.
    assert call(monkeypatch, "bench", name, *options, "--generate", "60") == 2
    assert call(monkeypatch, "bench", name, *options, "--runtimes", "tvm") == 2
    assert "tvm" in capsys.readouterr().err


def test_optimize_refuses_what_has_nothing_to_cut(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "optimize", str(model), str(tmp_path / "out")) == 2
    assert "nothing to cut" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--device", "abacus", "device: 'abacus'"), ("--dtype", "float3", "dtype: unknown value 'float3'")],
)
def test_bench_refuses_places_it_does_not_know(
    option: str,
    value: str,
    message: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "bench", str(model), option, value) == 2
    assert message in capsys.readouterr().err
