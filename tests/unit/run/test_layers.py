"""Layers side by side: what `prune` would take, and a study that agrees with autograd."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from patchers.patching.patch import is_patched
from sparse_trainer.errors import ArgumentError, BudgetError, DataError, UnsupportedModelError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.run import layer_pictures, layers
from tests.architectures.tiny import tiny_model
from tests.fixtures.oneshot_models import model_of, padded, sequences

LENGTHS = (12, 9, 15)


def losses(model: PreTrainedModel, rows: list[dict[str, torch.Tensor]]) -> list[tuple[Any, int]]:
    """Return the loss of each row, summed over its labels, made in the plain way."""
    found = []
    for row in rows:
        output = model(**{"labels": row["input_ids"], **row})
        counted = row.get("labels", row["input_ids"][:, 1:]) != -100
        found.append((output.loss * counted.sum(), len(row["input_ids"])))
    return found


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return model_of("llama")


def test_each_criterion_takes_what_prune_takes(llama: PreTrainedModel) -> None:
    rows, before = sequences(llama, LENGTHS), {n: p.clone() for n, p in llama.state_dict().items()}
    found = layers.compare_layers(llama, rows, density=0.5)
    assert list(found.scores) == list(layers.depth_criteria())
    assert {"block_influence", "angular", "relative_norm", "avss", "fisher", "magnitude", "last"} <= set(
        found.scores
    )
    for name, taken in found.taken.items():
        _, plan = prune(llama, rows, criterion=name, density={"layers": 0.5}, check=False)
        kept = [group["keep"] for group in plan.by_kind()["layers"]]
        assert taken == tuple(not keep for keep in kept), name
        assert any(taken), name
        assert found.goes(name) == ", ".join(str(n) for n, keep in enumerate(kept) if not keep)
    assert not is_patched(llama)
    assert all(torch.equal(before[name], value) for name, value in llama.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_study_is_what_autograd_says_of_each_sequence(name: str) -> None:
    model = model_of(name)
    rows = sequences(model, LENGTHS)
    study = layers.compare_layers(model, rows, criteria=["last"]).study
    linears = list(layers.ffn_linears(model).values())
    l1, l2 = torch.zeros(len(linears)), torch.zeros(len(linears))
    for loss, _ in losses(model, rows):
        model.zero_grad()
        loss.backward()
        for number, paths in enumerate(linears):
            gradients = [model.get_submodule(path).weight.grad for path in paths]
            l1[number] += sum(g.abs().sum() for g in gradients) / len(rows)
            l2[number] += sum(g.norm() for g in gradients) / len(rows)
    torch.testing.assert_close(torch.tensor(study["gradient_l1"]), l1, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.tensor(study["gradient_l2"]), l2, rtol=1e-4, atol=0)
    norms = [sum(model.get_submodule(path).weight.norm().item() for path in paths) for paths in linears]
    assert study["weight_frobenius"] == pytest.approx(norms)
    # What the embedding returns comes first; Llama applies its last norm to what the last layer returns.
    states = [model(**row, output_hidden_states=True).hidden_states[1:] for row in rows]
    for number in range(len(linears) - 1):
        variances = [state[number].mean(1).var(1).item() for state in states]
        assert study["activation_variance"][number] == pytest.approx(sum(variances) / len(rows))


def test_a_study_does_not_depend_on_batches_or_padding(llama: PreTrainedModel) -> None:
    rows = sequences(llama, LENGTHS)
    alone, together = (
        layers.compare_layers(llama, batches, criteria=["block_influence"])
        for batches in (rows, [padded(rows)])
    )
    for column, numbers in alone.study.items():
        assert together.study[column] == pytest.approx(numbers), column
    assert together.scores["block_influence"] == pytest.approx(alone.scores["block_influence"])


def test_sparsity_counts_what_is_nearly_zero() -> None:
    model = model_of("llama")
    last = model.model.layers[-1]
    last.register_forward_hook(lambda module, args, output: output * 0.0)
    study = layers.compare_layers(model, sequences(model, LENGTHS), criteria=["last"]).study
    assert study["activation_sparsity"][-1] == 1.0
    assert study["activation_sparsity"][0] < 0.01
    assert study["activation_variance"][-1] == 0.0


def test_without_labels_an_encoder_has_no_gradients_unless_they_are_asked_for() -> None:
    model = model_of("bert")
    rows = [{"input_ids": row["input_ids"]} for row in sequences(model, LENGTHS)]
    found = layers.compare_layers(model, rows)
    assert "fisher" not in found.scores
    assert "block_influence" in found.scores
    assert list(found.study) == ["activation_variance", "weight_frobenius", "activation_sparsity"]
    asked = layers.compare_layers(model, rows, criteria=["fisher"])
    assert min(asked.scores["fisher"]) > 0


def test_experts_in_one_tensor_have_no_linears_to_study() -> None:
    model = tiny_model("mixtral")
    rows = [{"input_ids": row["input_ids"]} for row in sequences(model, LENGTHS)]
    study = layers.compare_layers(model, rows, criteria=["block_influence"]).study
    assert set(study["gradient_l1"]) == {None}
    assert set(study["weight_frobenius"]) == {None}
    assert all(variance > 0 for variance in study["activation_variance"])


def test_an_encoder_and_a_decoder_stand_below_each_other() -> None:
    model = tiny_model("t5")
    model.config.decoder_start_token_id = 0
    rows = [{**row, "labels": row["input_ids"]} for row in sequences(model, LENGTHS)]
    found = layers.compare_layers(model, rows, criteria=["block_influence"], density=0.5)
    assert list(dict.fromkeys(found.stacks)) == ["encoder.block", "decoder.block"]
    goes = found.goes("block_influence")
    assert goes is not None
    assert goes.startswith("encoder.block: ")


def test_where_no_run_may_go_the_others_still_say_theirs(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=24, num_hidden_layers=5, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    found = layers.compare_layers(
        model, sequences(model, LENGTHS), criteria=["angular", "block_influence"], density=0.34, protect=[2]
    )
    assert found.taken["angular"] is None
    assert found.goes("angular") is None
    assert found.goes("block_influence") is not None
    layer_pictures.write_layers(found, tmp_path, draw=False)
    with (tmp_path / "layers.csv").open() as file:
        assert {row["angular takes"] for row in csv.DictReader(file)} == {""}


def test_tables_and_pictures_hold_every_layer(llama: PreTrainedModel, tmp_path: Path) -> None:
    found = layers.compare_layers(
        llama, sequences(llama, LENGTHS), criteria=["avss(of=output)", "last"], density=0.5
    )
    files = layer_pictures.write_layers(found, tmp_path)
    assert sorted(path.name for path in files.values()) == [
        "layers.csv",
        "layers.png",
        "study.csv",
        "study.png",
    ]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in files.values() if path.suffix == ".png")
    with files["table"].open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["avss(of=output)"]) for row in rows] == list(found.scores["avss(of=output)"])
    assert tuple(row["last takes"] == "1" for row in rows) == found.taken["last"]
    with files["study table"].open() as file:
        assert [float(row["gradient_l2"]) for row in csv.DictReader(file)] == list(found.study["gradient_l2"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criteria": ["blok_influence"]}, ArgumentError, "criteria: unknown value .*'block_influence'"),
        ({"criteria": ["wanda"]}, ArgumentError, "criteria: wanda does not score layers"),
        ({"criteria": []}, ArgumentError, "criteria: there is none"),
        ({"density": 0.0}, ArgumentError, "density"),
        ({"density": 0.01}, BudgetError, "density"),
        ({"protect": ["40"]}, ArgumentError, "'40' matches no group"),
        ({"calibration": None}, DataError, "calibration: fisher needs one"),
        ({"calibration": None, "criteria": ["last"]}, DataError, "a study needs one"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_before_a_pass(
    options: dict[str, Any], error: type[Exception], message: str, llama: PreTrainedModel, monkeypatch: Any
) -> None:
    monkeypatch.setattr(layers, "collect", None)
    with pytest.raises(error, match=message):
        layers.compare_layers(llama, **{"calibration": sequences(llama, LENGTHS), **options})


def test_a_model_without_layers_that_could_go_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "collect", None)
    model = tiny_model("albert")  # one layer, which it runs several times
    with pytest.raises(UnsupportedModelError, match="has no layers that could go"):
        layers.compare_layers(model, [{"input_ids": torch.ones(1, 4, dtype=torch.long)}])


def test_bfloat16_says_what_float32_says() -> None:
    model = tiny_model("llama").float().eval()
    rows = sequences(model, LENGTHS)
    wide = layers.compare_layers(model, rows, criteria=["block_influence", "fisher"])
    narrow = layers.compare_layers(model.to(torch.bfloat16), rows, criteria=["block_influence", "fisher"])
    for column, numbers in wide.study.items():
        assert narrow.study[column] == pytest.approx(numbers, rel=0.1, abs=0.01), column
    assert narrow.scores["block_influence"] == pytest.approx(wide.scores["block_influence"], rel=0.1)


def test_weights_alone_need_no_text(llama: PreTrainedModel) -> None:
    found = layers.compare_layers(llama, criteria=["magnitude", "last"], study=False)
    assert list(found.scores) == ["magnitude", "last"]
    assert found.study == {}
