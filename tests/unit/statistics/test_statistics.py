"""What a calibration pass collects, against brute force; and what it refuses.

The losses of transformers are taken in float32, also of float64 models: gradients agree to about seven digits.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from patchers.discovery.discover import discover
from patchers.layers import linear_at, weight_OI
from patchers.patching.gates import Gate
from patchers.patching.patch import patch, unpatch
from patchers.units import Group, Slice, Structure
from sparse_trainer.errors import DataError, NonFiniteError, UnsupportedModelError
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.calibration_pass import CalibrationPass
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.elements import Elements
from sparse_trainer.statistics.mask_gradients import MaskGradients
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistics
from sparse_trainer.statistics.sequence_means import SequenceMeans
from tests.architectures.tiny import tiny_config, tiny_model
from tests.fixtures.oneshot_models import MODELS, calibration, model_of, padded, sequences, widths

# Shape legend: N = tokens, I = features of a consumer's input, U = units, H = hidden features, O = outputs.

NEEDS = (
    Moments(covariance=True),
    SequenceMeans(),
    MaskGradients(),
    Elements(),
    Elements(form="vector"),
    Elements(form="signed_removal"),
    Elements(form="trimmed", trim=0.05),
    Elements(form="trimmed", trim=0.05, loss="output_norm"),
)
LENGTHS = (20, 13, 20, 7)


def inputs_of(model: PreTrainedModel, group: Group, batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """Return what a consumer reads, [N, I] per batch."""
    seen: list[Tensor] = []
    module = model.get_submodule(group.consumer)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, -2)))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return seen


def summed_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of one sequence, summed over its tokens."""
    if "labels" in batch:
        loss: Tensor = model(**batch).loss * (batch["labels"] != -100).sum()
        return loss
    ids_BT = batch["input_ids"]
    logits = model(**batch).logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, ids_BT[:, 1:].flatten(), reduction="sum")


def products(model: PreTrainedModel, loss: Tensor, path: str) -> tuple[Tensor, Tensor | None]:
    """Return w dL/dw of a linear as [O, I], and the same of its bias."""
    linear = linear_at(model, path)
    asked = [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
    gradients = torch.autograd.grad(loss, asked, retain_graph=True)
    p = (linear.weight * gradients[0]).detach()
    p_OI = p.T if weight_OI(linear).shape != p.shape or linear.weight is not weight_OI(linear) else p
    return p_OI, None if linear.bias is None else (linear.bias * gradients[1]).detach()


def per_unit(values: Tensor, s: Slice) -> Tensor:
    return torch.stack([values[..., entries].sum(-1) for entries in s.index_UW], dim=-1)


def flat(statistics: Statistics) -> Iterator[tuple[str, Tensor]]:
    """Yield every number of a pass, with a name."""
    for request, found in statistics.found.items():
        for key, values in found.items():
            fields = {"sums": values} if isinstance(values, Tensor) else vars(values)
            for name, value in fields.items():
                assert isinstance(value, Tensor)
                yield f"{key} {request} {name}", value


@pytest.mark.parametrize("name", MODELS)
def test_neither_padding_nor_the_split_into_batches_counts(name: str) -> None:
    model = model_of(name)
    single = sequences(model, LENGTHS)
    structure = widths(model)
    alone = collect(model, structure, single, NEEDS)
    together = collect(model, structure, [padded(single[:3]), padded(single[3:])], NEEDS)
    assert alone.tokens == together.tokens == sum(LENGTHS)
    assert alone.sequences == together.sequences == len(LENGTHS)
    pairs = list(zip(flat(alone), flat(together), strict=True))
    assert len(pairs) > 20
    for (what, expected), (_, found) in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=what)


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_of_all_real_tokens(name: str) -> None:
    model = model_of(name)
    single = sequences(model, LENGTHS)
    structure = widths(model)
    found = collect(model, structure, [padded(single)], (Moments(covariance=True), SequenceMeans()))
    for group in structure.groups:
        per_sequence = inputs_of(model, group, single)
        x_NI = torch.cat(per_sequence)
        moments = found.of(Moments(covariance=True))[group.consumer]
        torch.testing.assert_close(moments.mean_I, x_NI.mean(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(moments.second_I, x_NI.square().mean(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(moments.second_II, x_NI.T @ x_NI / len(x_NI), rtol=1e-9, atol=1e-12)
        means_I = torch.stack([x.abs().mean(0).square() for x in per_sequence]).sum(0)
        torch.testing.assert_close(found.of(SequenceMeans())[group.consumer], means_I, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_mask_gradients_are_those_of_gates_and_sums_of_weights_times_gradients(name: str) -> None:
    model = model_of(name)
    single = sequences(model, LENGTHS)
    structure = widths(model)
    found = collect(model, structure, [padded(single)], [MaskGradients()]).of(MaskGradients())
    rows: dict[str, list[Tensor]] = {g.name: [] for g in structure.groups}
    by_weight: dict[str, list[Tensor]] = {g.name: [] for g in structure.groups}
    for batch in single:
        loss = summed_loss(model, batch)
        for g in structure.groups:
            column_I = products(model, loss, g.consumer)[0].sum(0)
            by_weight[g.name].append(column_I[g.consumer_slice.index_UW].sum(-1))
        gates = patch(model, structure, lambda g: Gate(g.num_units, scored=True).double())
        summed_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        for name_, gate in gates.items():
            assert gate.score_U is not None
            assert gate.score_U.grad is not None
            rows[name_].append(gate.score_U.grad.clone())
        unpatch(model)
    for g in structure.groups:
        g_SU = torch.stack(rows[g.name])
        torch.testing.assert_close(torch.stack(by_weight[g.name]), g_SU, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[g.name].sum_U, g_SU.sum(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[g.name].absolute_U, g_SU.abs().sum(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[g.name].square_U, g_SU.square().sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_element_sums_against_brute_force(name: str) -> None:
    model = model_of(name)
    single = sequences(model, LENGTHS[:2])
    structure = widths(model)
    trimmed = Elements(form="trimmed", trim=0.1)
    forms = (Elements(), Elements(form="vector"), Elements(form="removal"), trimmed)
    found = collect(model, structure, [padded(single)], forms).found
    for g in structure.groups[-2:]:
        expected = {need: torch.zeros_like(found[need][g.name]) for need in forms}
        for batch in single:
            loss = summed_loss(model, batch)
            signed_HU: Tensor | float = 0.0
            for number, s in enumerate(g.slices):
                p_OI, bias_O = products(model, loss, s.path)
                axis = 1 if s.axis == "out" else 0
                for need in forms[:3]:
                    each = {
                        "absolute": abs,
                        "vector": lambda p: p,
                        "removal": lambda p: (p - p * p / 2).abs(),
                    }
                    value = each[need.form](p_OI).sum(axis)
                    if s.axis == "out" and bias_O is not None:
                        value = value + each[need.form](bias_O)
                    value_U = per_unit(value, s)
                    expected[need][number] += value_U.abs() if need.form == "vector" else value_U
                signed_HU = signed_HU + per_unit(p_OI.T if s.axis == "out" else p_OI, s)
            assert isinstance(signed_HU, Tensor)
            out = int(0.1 * len(signed_HU))
            kept_HU = signed_HU.sort(0).values[out : len(signed_HU) - out]
            assert 0 < len(kept_HU) < len(signed_HU)
            expected[trimmed][0] += kept_HU.mean(0).abs()
        for need in forms:
            torch.testing.assert_close(
                found[need][g.name], expected[need], rtol=1e-5, atol=1e-6, msg=str(need)
            )


def norms_of_outputs(model: PreTrainedModel, paths: list[str], batch: dict[str, Tensor]) -> Tensor:
    """Return the sum of the Frobenius norms of what these linears say to one sequence."""
    outputs: list[Tensor] = []
    modules = [model.get_submodule(path) for path in paths]
    handles = [m.register_forward_hook(lambda _, args, y: outputs.append(y[0])) for m in modules]
    model(**batch)
    for handle in handles:
        handle.remove()
    return torch.stack([torch.linalg.matrix_norm(y) for y in outputs]).sum()


def test_output_norms_against_brute_force() -> None:
    model = model_of("llama")
    structure = discover(model, ("channels",))
    single = sequences(model, LENGTHS[:2])
    need = Elements(form="vector", loss="output_norm")
    found = collect(model, structure, [padded(single)], [need]).of(need)
    paths = [s.path for g in structure.groups for s in g.slices]
    group = structure.groups[0]
    expected = torch.zeros_like(found[group.name])
    for batch in single:
        norms = norms_of_outputs(model, paths, batch)
        for number, s in enumerate(group.slices):
            p_OI, _ = products(model, norms, s.path)
            expected[number] += p_OI.sum(1 if s.axis == "out" else 0).abs()
    torch.testing.assert_close(found[group.name], expected, rtol=1e-8, atol=1e-12)


def test_a_module_called_twice_counts_as_one() -> None:
    model = tiny_model("llama")
    layers: Any = model.get_submodule("model.layers")
    layers[1].mlp = layers[0].mlp
    structure = discover(model, ("channels",))
    group = structure.groups[0]
    batch = sequences(model, [12])[0]
    requests = (MaskGradients(), Elements(form="vector"))
    found = collect(model, Structure(groups=(group,), stacks=structure.stacks), [batch], requests)
    p_OI, _ = products(model, summed_loss(model, batch), group.consumer)
    torch.testing.assert_close(found.of(MaskGradients())[group.name].sum_U, p_OI.sum(0), rtol=1e-5, atol=1e-7)
    consumer_U = found.of(requests[1])[group.name][-1]
    torch.testing.assert_close(consumer_U, p_OI.sum(0).abs(), rtol=1e-5, atol=1e-7)


def test_stacked_experts_have_mask_gradients_and_nothing_else() -> None:
    model = tiny_model("mixtral")
    structure = discover(model, ("channels",))
    batches = [padded(sequences(model, (9, 6)))]
    found = collect(model, structure, batches, [MaskGradients()]).of(MaskGradients())
    assert all(bool((sums.absolute_U > 0).any()) for sums in found.values())
    for need in (Moments(), Elements()):
        with pytest.raises(UnsupportedModelError, match="stacked experts"):
            collect(model, structure, batches, [need])


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("llama").train()
    frozen = model.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad_(False)
    asked = [p.requires_grad for p in model.parameters()]
    names = set(model.state_dict())
    collect(model, widths(model), calibration(model), NEEDS)
    assert model.training
    assert not frozen.requires_grad
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())
    assert set(model.state_dict()) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_sums_of_bfloat16_models_are_kept_in_full_precision() -> None:
    model = model_of("llama").to(torch.bfloat16)
    structure = widths(model)
    single = sequences(model, (60,) * 8)
    found = collect(model, structure, single, (Moments(covariance=True), MaskGradients(), Elements()))
    for g in structure.groups:
        x_NI = torch.cat(inputs_of(model, g, single)).double()
        torch.testing.assert_close(
            found.of(Moments(covariance=True))[g.consumer].mean_I, x_NI.mean(0), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            found.of(Moments(covariance=True))[g.consumer].second_II,
            x_NI.T @ x_NI / 480,
            rtol=1e-4,
            atol=1e-6,
        )
        assert found.of(MaskGradients())[g.name].square_U.dtype == torch.float64
        assert found.of(Elements())[g.name].dtype == torch.float64


def test_moments_of_large_means_keep_their_digits() -> None:
    model = model_of("llama").float()
    structure = widths(model)
    group = structure.groups[0]
    batches = Batches(model, sequences(model, (20,) * 8))
    run = CalibrationPass(model, structure)
    collector = Moments.collector([Moments()], run)
    handles = collector.attach()
    handles.append(
        model.get_submodule(group.consumer).register_forward_pre_hook(
            lambda _, args: (args[0] * 1e-3 + 100.0,), prepend=True
        )
    )
    with torch.no_grad():
        for run.batch in batches.read(labelled=False):
            model(**run.batch.inputs)
    for handle in handles:
        handle.remove()
    variance_I = collector.results()[Moments()][group.consumer].variance_I
    single = sequences(model, (20,) * 8)
    exact_I = torch.cat(inputs_of(model, group, single)).double().var(0, correction=0) * 1e-6
    assert float(exact_I.max()) < 1e-4
    torch.testing.assert_close(variance_I, exact_I, rtol=0.3, atol=1e-9)


def ids(*shape: int) -> Tensor:
    return torch.full(shape, 5)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "holds no batch"),
        ([["text"]], "is a list"),
        ([{"text": "abc"}], "'text' holds no tensor"),
        ([{"attention_mask": ids(1, 4)}], "no column 'input_ids'"),
        ([{"input_ids": ids(1, 400)}], "64 positions"),
    ],
)
def test_bad_calibration_sets_are_refused(batches: list[Any], message: str) -> None:
    model = model_of("llama")
    with pytest.raises(DataError, match=message):
        collect(model, widths(model), batches, [Moments()])


def test_token_ids_may_be_int32_for_a_loss_too() -> None:
    model = model_of("llama")
    (batch,) = sequences(model, (8,))
    short = {name: value.int() for name, value in batch.items()}
    found, expected = (collect(model, widths(model), [b], [MaskGradients()]) for b in (short, batch))
    for (what, one), (_, other) in zip(flat(found), flat(expected), strict=True):
        assert torch.equal(one, other), what


def test_positions_that_are_relative_have_no_end() -> None:
    config = T5Config(**tiny_config("t5").to_dict(), n_positions=16)  # as the folders of T5 have it
    model = T5ForConditionalGeneration(config).eval()
    batch = {"input_ids": ids(1, 40), "decoder_input_ids": ids(1, 3)}
    assert collect(model, widths(model), [batch], [Moments()]).tokens == 40


def test_a_loss_needs_labels_where_they_cannot_be_made() -> None:
    model = model_of("t5")
    with pytest.raises(DataError, match="no labels"):
        collect(model, widths(model), [{"input_ids": ids(1, 8)}], [MaskGradients()])
    model = model_of("bert")
    collect(model, widths(model), [{"input_ids": ids(1, 8)}], [Moments()])


def test_nan_names_the_group_and_the_batch() -> None:
    model = model_of("llama")
    single = sequences(model, (8, 8))
    single[0]["input_ids"][:] = 6
    single[1]["input_ids"][0, 0] = 7
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    for need in (Moments(), MaskGradients(), SequenceMeans(), Elements()):
        with pytest.raises(NonFiniteError, match=r"model\.layers\.\d.*batch 1"):
            collect(model, widths(model), single, [need])


def test_groups_that_no_batch_reaches_are_named() -> None:
    model = tiny_model("whisper")
    structure = widths(model)
    missed = tuple(g for g in structure.groups if "encoder_attn" in g.name)
    assert missed
    batches = [{"input_ids": ids(1, 8)}]
    for need in (Moments(), MaskGradients(), Elements()):
        with pytest.raises(DataError, match=r"encoder_attn\.heads: no calibration batch"):
            collect(model, Structure(groups=missed, stacks=structure.stacks), batches, [need])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_padding_of_encoder_and_decoder_does_not_count(name: str) -> None:
    model = tiny_model(name)
    model.config.decoder_start_token_id = 2
    structure = widths(model)
    generator = torch.Generator().manual_seed(0)
    single = []
    for length, target in ((14, 9), (11, 14), (8, 5)):
        tokens, labels = (torch.randint(3, 99, (1, n), generator=generator) for n in (length, target))
        single.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
    requests = (Moments(covariance=True), SequenceMeans(), MaskGradients(), Elements())
    alone = collect(model, structure, single, requests)
    together = collect(model, structure, [padded(single)], requests)
    pairs = list(zip(flat(alone), flat(together), strict=True))
    assert len(pairs) > 20
    for (what, expected), (_, found) in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=what)
