"""Widths repaired layer after layer, each linear to the states that the whole model has behind it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_trainer import prune
from sparse_trainer.errors import ArgumentError, DataError, UnsupportedModelError
from sparse_trainer.statistics.block_states import state_in
from tests.fixtures.oneshot_models import calibration, model_of

# Shape legend: N = tokens, K = kept inputs of a linear, H = hidden features.

HALF = {"heads": 0.5, "channels": 0.5}


def text(seed: int, batches: int = 16) -> list[dict[str, Tensor]]:
    """Return random tokens, in batches of four sequences."""
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 90, (4, 32), generator=generator)} for _ in range(batches)]


def error(model: Any, pruned: Any, batches: list[dict[str, Tensor]]) -> float:
    """Return the mean squared difference of logits."""
    with torch.no_grad():
        return sum(float((model(**b).logits - pruned(**b).logits).square().mean()) for b in batches)


def pruned_by(model: Any, batches: list[dict[str, Tensor]], **options: Any) -> Any:
    return prune(model, batches, **{"criterion": "wanda", "density": HALF, "scope": "uniform"} | options)[0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt", "phi", "bert"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_outputs_come_closer_than_by_least_squares_alone(family: str, dtype: torch.dtype) -> None:
    model, batches = model_of(family), text(0)
    whole = model_of(family).to(dtype)
    plain = pruned_by(whole, batches)
    repaired = pruned_by(whole, batches, reconstruct="least_squares")
    behind = pruned_by(whole, batches, reconstruct="least_squares", refit_behind=True)
    for unseen in (batches, text(9, 4)):
        left = [error(model, pruned, unseen) for pruned in (plain, repaired, behind)]
        assert left[2] < left[1] < left[0]
    assert [p.shape for p in plain.parameters()] == [p.shape for p in behind.parameters()]


@pytest.mark.parametrize("bias", [None, True])
def test_each_linear_is_the_best_one_by_normal_equations(bias: bool | None) -> None:
    """With units gone in the last layer alone, what its last linear reads is known without any repair."""
    model, batches = model_of("llama"), text(0)
    linear = "model.layers.2.mlp.down_proj"
    options: dict[str, Any] = {"include": "model.layers.2.*", "density": {"channels": 0.5}, "scope": "layer"}
    plain = pruned_by(model, batches, **options)
    found = pruned_by(
        model, batches, reconstruct="least_squares", refit_behind=True, damping=1e-3, reconstruct_bias=bias,
        **options,
    )  # fmt: skip
    attention = "model.layers.2.self_attn.o_proj.weight"
    torch.testing.assert_close(
        found.get_parameter(attention), model.get_parameter(attention), rtol=0, atol=1e-12
    )
    x_NK, state_NH = seen(plain, linear, batches)
    _, wanted_NH = seen(model, linear, batches)
    weight_N1 = 1 / wanted_NH.square().mean(-1, keepdim=True)
    missing_NH = wanted_NH - state_NH
    mean_x, mean_t = (((v * weight_N1).sum(0) / weight_N1.sum()) * bool(bias) for v in (x_NK, missing_NH))
    second_KK = ((x_NK - mean_x) * weight_N1).T @ (x_NK - mean_x) / weight_N1.sum()
    second_KK += 1e-3 * second_KK.diagonal().mean() * torch.eye(len(second_KK), dtype=x_NK.dtype)
    cross_KH = ((x_NK - mean_x) * weight_N1).T @ (missing_NH - mean_t) / weight_N1.sum()
    update_HK = torch.linalg.solve(second_KK, cross_KH).T
    now, old = found.get_submodule(linear), plain.get_submodule(linear)
    torch.testing.assert_close(now.weight - old.weight, update_HK, rtol=1e-5, atol=1e-7)
    if bias:
        torch.testing.assert_close(now.bias, mean_t - update_HK @ mean_x, rtol=1e-5, atol=1e-7)


def test_behind_a_norm_the_states_in_front_of_it_are_met() -> None:
    """With all but the readers' columns free and no damping, nothing that is left unsaid can be said by them."""
    model, batches = model_of("bert"), text(0)
    found = pruned_by(model, batches, reconstruct="least_squares", refit_behind=True, damping=0.0)
    last = sorted(n for n, _ in model.named_modules() if n.endswith("output.LayerNorm"))[-1]
    wanted_NH, state_NH = (in_front(m, last, batches) for m in (model, found))
    x_NI, _ = seen(found, last.replace("LayerNorm", "dense"), batches, parts=4)
    weighted = torch.cat([x_NI, torch.ones_like(x_NI[:, :1])], 1) / wanted_NH.square().mean(-1, keepdim=True)
    slope = weighted.T @ (wanted_NH - state_NH) / len(weighted)
    assert float(slope.abs().max()) < 1e-8


def in_front(model: Any, norm: str, batches: list[dict[str, Tensor]]) -> Tensor:
    """Return what a norm reads."""
    read: list[Tensor] = []
    handle = model.get_submodule(norm).register_forward_pre_hook(lambda _, a: read.append(a[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return torch.cat(read)


def seen(model: Any, linear: str, batches: list[dict[str, Tensor]], parts: int = 3) -> tuple[Tensor, Tensor]:
    """Return what a linear reads, and the states behind its block."""
    x_NI: list[Tensor] = []
    state_NH: list[Tensor] = []
    block = model.get_submodule(".".join(linear.split(".")[:parts]))
    handles = [
        model.get_submodule(linear).register_forward_hook(lambda _, a, o: x_NI.append(a[0].flatten(0, 1))),
        block.register_forward_hook(lambda _, a, o: state_NH.append(state_in(o).flatten(0, 1))),
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return torch.cat(x_NI), torch.cat(state_NH)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bert"])
def test_where_nothing_goes_nothing_changes(family: str) -> None:
    model = model_of(family)
    same = pruned_by(model, text(0), reconstruct="least_squares", refit_behind=True, density=1.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])


def test_padding_and_the_split_into_batches_do_not_matter() -> None:
    model = model_of("qwen2")
    rows = [batch["input_ids"][i : i + 1] for batch in text(0) for i in range(4)]
    lengths = [12 + 5 * (number % 4) for number in range(len(rows))]
    alone = [{"input_ids": row[:, :length]} for row, length in zip(rows, lengths, strict=True)]
    padded = []
    for start in range(0, len(rows), 8):
        ids = torch.zeros(8, 32, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line in range(8):
            length = lengths[start + line]
            ids[line, :length], mask[line, :length] = rows[start + line][0, :length], 1
        padded.append({"input_ids": ids, "attention_mask": mask})
    one, other = (
        pruned_by(model, batches, reconstruct="least_squares", refit_behind=True)
        for batches in (alone, padded)
    )
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)


def test_one_block_at_a_time_is_the_same() -> None:
    model, batches = model_of("llama"), text(0)
    one, other = (
        pruned_by(model, batches, reconstruct="least_squares", refit_behind=True, by_block=by_block)
        for by_block in (False, True)
    )
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_layers_and_widths_are_repaired_in_one_walk() -> None:
    model, batches = model_of("llama"), text(0)
    options: dict[str, Any] = {
        "criterion": "fisher",
        "density": {"layers": 0.7, "channels": 0.7, "heads": 1.0},
        "protect": ("model.layers.0.layer",),
        "scope": "global",
        "reconstruct": "least_squares",
    }
    repaired = pruned_by(model, batches, **options)
    behind = pruned_by(model, batches, refit_behind=True, **options)
    assert error(model, behind, text(9, 4)) < error(model, repaired, text(9, 4))


def test_it_goes_with_steps_and_a_search() -> None:
    model, batches = model_of("llama"), text(0, 4)
    for options in ({"steps": 2}, {"search": "dp", "levels": 2, "scope": "global"}):
        plain = pruned_by(model, batches, density={"channels": 0.5}, **options)
        options |= {"reconstruct": "least_squares", "refit_behind": True}
        repaired, plan = prune(model, batches, criterion="wanda", density={"channels": 0.5}, **options)
        assert "refit_behind=True" in plan.method
        assert error(model, repaired, batches) < error(model, plain, batches)


@pytest.mark.parametrize(
    ("family", "options", "kind", "message"),
    [
        ("llama", {"reconstruct": "bias"}, ArgumentError, "refitted to states of the whole model"),
        ("llama", {"reconstruct": "scale"}, ArgumentError, "refitted to states of the whole model"),
        ("llama", {"reconstruct": None}, ArgumentError, "refitted to states of the whole model"),
        ("llama", {"sequential": True}, ArgumentError, "one layer after the other anyway"),
        ("olmo2", {}, UnsupportedModelError, "a norm stands behind it"),
        ("t5", {}, UnsupportedModelError, "or several attentions"),
        ("mixtral", {"density": {"heads": 0.5}}, UnsupportedModelError, "no last linear"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    family: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = model_of(family)
    with pytest.raises(kind, match=message):
        pruned_by(
            model, calibration(model), **{"reconstruct": "least_squares", "refit_behind": True} | options
        )


def test_under_autocast_linears_are_coarser_than_states() -> None:
    model, batches = model_of("llama").float(), text(0)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        repaired = pruned_by(model, batches, reconstruct="least_squares")
        behind = pruned_by(model, batches, reconstruct="least_squares", refit_behind=True)
    assert error(model, behind, text(9, 4)) < error(model, repaired, text(9, 4))


def test_too_short_a_text_is_refused() -> None:
    short = [{"input_ids": text(0, 1)[0]["input_ids"][:1, :4]}]
    with pytest.raises(DataError, match="calibration tokens"):
        pruned_by(model_of("llama"), short, reconstruct="least_squares", refit_behind=True)
