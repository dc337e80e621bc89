"""Repair of a cut in depth: what stands in front of removed layers takes over what they did."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchers.discovery.discover import discover
from patchers.units import LAYERS
from sparse_trainer import prune
from sparse_trainer.errors import ArgumentError, DataError, UnsupportedModelError
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.one_shot.repairs.runs import heirs
from sparse_trainer.statistics.block_states import BlockStates, state_in
from sparse_trainer.statistics.collect import collect
from tests.fixtures.oneshot_models import calibration, model_of

# Shape legend: N = tokens, I = inputs of a linear, H = hidden features.


def text(seed: int, batches: int = 16) -> list[dict[str, Tensor]]:
    """Return random tokens, in batches of four sequences."""
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 90, (4, 32), generator=generator)} for _ in range(batches)]


def error(model: Any, pruned: Any) -> float:
    """Return the mean squared difference of logits on other text."""
    with torch.no_grad():
        return sum(float((model(**b).logits - pruned(**b).logits).square().mean()) for b in text(9, 4))


@pytest.mark.parametrize("bias", [None, True])
@pytest.mark.parametrize(("family", "linear"), [("llama", "mlp.down_proj"), ("gpt2", "mlp.c_proj")])
def test_the_linear_in_front_is_the_best_one_by_normal_equations(
    family: str, linear: str, bias: bool | None
) -> None:
    model, batches = model_of(family), text(0)
    stack = discover(model, ("layers",)).stacks[0].path
    front = model.get_submodule(f"{stack}.0")
    x_NI: list[Tensor] = []
    before: list[Tensor] = []
    behind: list[Tensor] = []

    def state(output: Any) -> Tensor:
        return output if isinstance(output, Tensor) else output[0]

    handles = [
        front.get_submodule(linear).register_forward_pre_hook(lambda _, a: x_NI.append(a[0].flatten(0, 1))),
        front.register_forward_hook(lambda _, a, o: before.append(state(o).flatten(0, 1))),
        model.get_submodule(f"{stack}.1").register_forward_hook(
            lambda _, a, o: behind.append(state(o).flatten(0, 1))
        ),
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    x, change = torch.cat(x_NI), torch.cat(behind) - torch.cat(before)
    moves = bias or getattr(front.get_submodule(linear), "bias", None) is not None
    weight = 1 / torch.cat(behind).square().mean(-1, keepdim=True)
    mean_x, mean_t = (x * weight).sum(0) / weight.sum(), (change * weight).sum(0) / weight.sum()
    centre_x, centre_t = (x - mean_x, change - mean_t) if moves else (x, change)
    second_II = (centre_x * weight).T @ centre_x / weight.sum()
    damped_II = second_II + 0.1 * second_II.diagonal().mean() * torch.eye(len(second_II), dtype=x.dtype)
    update_HI = torch.linalg.solve(damped_II, (centre_x * weight).T @ centre_t / weight.sum()).T

    pruned, plan = prune(
        model, batches, criterion="last", density={"layers": 0.7},
        reconstruct="least_squares", reconstruct_bias=bias,
    )  # fmt: skip
    assert [len(group["keep"]) for group in plan.by_kind()["layers"]] == [1, 0, 1]
    found: Any = pruned.get_submodule(f"{stack}.0.{linear}")
    old: Any = front.get_submodule(linear)
    difference = found.weight - old.weight
    torch.testing.assert_close(
        difference.T if family == "gpt2" else difference, update_HI, rtol=1e-5, atol=1e-7
    )
    if moves:
        shift = found.bias - (0.0 if old.bias is None else old.bias)
        torch.testing.assert_close(shift, mean_t - update_HI @ mean_x, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_brings_the_outputs_back(family: str, dtype: torch.dtype) -> None:
    model = model_of(family)
    whole = model_of(family).to(dtype)
    plain, _ = prune(whole, text(0), criterion="last", density={"layers": 0.7})
    repaired, plan = prune(
        whole, text(0), criterion="last", density={"layers": 0.7}, reconstruct="least_squares"
    )
    assert error(model, repaired) < 0.8 * error(model, plain)
    behind, _ = prune(
        whole,
        text(0),
        criterion="last",
        density={"layers": 0.7},
        reconstruct="least_squares",
        refit_behind=True,
    )
    assert error(model, behind) < error(model, repaired)
    assert plan.method == "last, repaired by least_squares"
    assert plan.params["compact"] == sum(p.numel() for p in plain.parameters())


def test_a_layer_that_does_a_linear_thing_is_replaced_exactly() -> None:
    model = model_of("gpt2")
    second: Any = model.get_submodule("transformer.h.1")
    with torch.no_grad():
        for part in (second.attn.c_proj, second.mlp.c_proj):
            part.weight.zero_()
        second.attn.c_proj.bias.copy_(torch.linspace(-1, 1, len(second.attn.c_proj.bias)))
    pruned, _ = prune(
        model, text(0), criterion="last", density={"layers": 0.7}, reconstruct="least_squares", damping=0.0
    )
    assert error(model, pruned) < 1e-12


def test_padding_and_the_split_into_batches_do_not_matter() -> None:
    model = model_of("llama")
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
    options: dict[str, Any] = {
        "criterion": "last", "density": {"layers": 0.7}, "reconstruct": "least_squares", "refit_behind": True
    }  # fmt: skip
    one, _ = prune(model, alone, **options)
    other, _ = prune(model, padded, **options)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)


def test_layers_behind_follow_the_whole_model() -> None:
    """Each refit is the least squares of the whole model's state there, from what the cut model reads."""
    model, batches = model_of("llama"), text(0)
    options: dict[str, Any] = {
        "criterion": "last", "density": {"layers": 0.7}, "reconstruct": "least_squares", "damping": 1e-3
    }  # fmt: skip
    front, _ = prune(model, batches, **options)
    behind, plan = prune(model, batches, refit_behind=True, **options)
    assert plan.method.endswith("repaired by least_squares (damping=0.001, refit_behind=True)")
    assert error(model, behind) < error(model, front)
    place, wanted = "model.layers.1", observe(model, "model.layers.2", batches)
    for linear, name in (("self_attn.o_proj", "between"), ("mlp.down_proj", "behind")):
        seen, old = observe(front, place, batches), front.get_parameter(f"{place}.{linear}.weight")
        x_NI, weight_N1 = seen[linear], 1 / wanted[name].square().mean(-1, keepdim=True)
        second_II = (x_NI * weight_N1).T @ x_NI / weight_N1.sum()
        second_II += 1e-3 * second_II.diagonal().mean() * torch.eye(len(second_II), dtype=x_NI.dtype)
        missing_NH = wanted[name] - seen[name]
        update_IH = torch.linalg.solve(second_II, (x_NI * weight_N1).T @ missing_NH / weight_N1.sum())
        found = behind.get_parameter(f"{place}.{linear}.weight")
        torch.testing.assert_close(found - old, update_IH.T, rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            old.copy_(found)


def observe(model: Any, path: str, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what the last linears of a block read, and its states before and behind its feed-forward part."""
    seen: dict[str, list[Tensor]] = {
        name: [] for name in ("self_attn.o_proj", "mlp.down_proj", "behind", "added")
    }
    block = model.get_submodule(path)

    def read(name: str) -> Any:
        return lambda _, args, output: seen[name].append(args[0].flatten(0, 1))

    def write(name: str) -> Any:
        return lambda _, args, output: seen[name].append(output.flatten(0, 1))

    down = block.get_submodule("mlp.down_proj")
    handles = [
        block.get_submodule("self_attn.o_proj").register_forward_hook(read("self_attn.o_proj")),
        down.register_forward_hook(read("mlp.down_proj")),
        down.register_forward_hook(write("added")),
        block.register_forward_hook(write("behind")),
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    found = {name: torch.cat(values) for name, values in seen.items()}
    return found | {"between": found["behind"] - found["added"]}


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_branch_that_stays_takes_over(family: str, kind: str) -> None:
    model, batches = model_of(family), text(0)
    options: dict[str, Any] = {"criterion": "fisher", "density": {kind: 0.4}}
    plain, _ = prune(model, batches, **options)
    repaired, plan = prune(model, batches, reconstruct="least_squares", **options)
    behind, _ = prune(model, batches, reconstruct="least_squares", refit_behind=True, **options)
    assert [len(group["keep"]) for group in plan.by_kind()[kind]].count(0) == 2
    assert error(model, behind) <= error(model, repaired) < error(model, plain)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in behind.parameters()]


@pytest.mark.parametrize("family", ["falcon", "phi", "whisper", "opt", "vit"])
def test_every_family_comes_closer_with_every_refit(family: str) -> None:
    """One writes into what a linear returned, some run attention beside the rest, one has attention that never runs."""
    model = model_of(family)
    batches = [
        {name: value for name, value in inputs_for(model, rows=8, seed=seed).items() if name != "labels"}
        for seed in range(12)
    ]
    left = []
    for options in (
        {},
        {"reconstruct": "least_squares"},
        {"reconstruct": "least_squares", "refit_behind": True},
    ):
        pruned: Any = prune(model, batches[1:], criterion="last", density={"layers": 0.7}, **options)[0]
        with torch.no_grad():
            left.append(
                float((state_in(model(**batches[0])) - state_in(pruned(**batches[0]))).square().mean())
            )
    assert left[2] < left[1] < left[0]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_both_stacks_of_an_encoder_decoder_are_repaired(family: str) -> None:
    model = model_of(family)
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "input_ids": torch.randint(3, 90, (16, 8), generator=generator),
            "decoder_input_ids": torch.randint(3, 90, (16, 6), generator=generator),
        }
        for _ in range(8)
    ]
    options: dict[str, Any] = {"criterion": "last", "density": {"layers": 0.7}, "damping": 1e-3}
    options |= {"reconstruct": "least_squares", "refit_behind": True}
    if family == "bart":
        with pytest.raises(UnsupportedModelError, match="a norm stands behind it"):
            prune(model, batches, **options)
        return
    repaired, _ = prune(model, batches, **options)
    plain, _ = prune(model, batches, criterion="last", density={"layers": 0.7})

    def apart(pruned: Any) -> float:
        with torch.no_grad():
            return float((model(**batches[0]).logits - pruned(**batches[0]).logits).square().mean())

    assert apart(repaired) < apart(plain)


def test_one_block_at_a_time_is_the_same() -> None:
    model, batches = model_of("llama"), text(0)
    options: dict[str, Any] = {
        "criterion": "block_influence", "density": {"layers": 0.7}, "reconstruct": "least_squares",
        "refit_behind": True, "protect": ["first"],
    }  # fmt: skip
    one, _ = prune(model, batches, **options)
    other, _ = prune(model, batches, by_block=True, device="cpu", **options)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_layers_and_widths_are_repaired_together() -> None:
    model = model_of("llama")
    options: dict[str, Any] = {
        "criterion": "fisher",
        "density": {"layers": 0.7, "channels": 0.7, "heads": 1.0},
        "protect": ("model.layers.0.layer",),
    }
    plain, _ = prune(model, text(0), **options)
    repaired, _ = prune(model, text(0), reconstruct="least_squares", **options)
    assert error(model, repaired) < error(model, plain)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in repaired.parameters()]


def test_runs_are_found_side_by_side() -> None:
    found = discover(model_of("llama"))
    groups = found.of((LAYERS,))
    keep = {g.name: torch.tensor([g.layer == 0]) for g in groups}
    (heir,) = heirs(found, keep, behind=True)
    assert heir.group.consumer == "model.layers.0.mlp.down_proj"
    assert heir.until.block == "model.layers.2"


@pytest.mark.parametrize(
    ("family", "options", "kind", "message"),
    [
        ("llama", {"reconstruct": "bias"}, ArgumentError, "'bias' repairs no removed layers"),
        ("llama", {"reconstruct": "scale"}, ArgumentError, "'scale' repairs no removed layers"),
        ("llama", {"sequential": True}, ArgumentError, "is for widths"),
        ("llama", {"reconstruct": None, "refit_behind": True}, ArgumentError, "nothing is refitted"),
        ("llama", {"reconstruct": "bias", "units": ["ffn"], "density": 0.5}, ArgumentError, "no removed ffn"),
        ("bert", {}, UnsupportedModelError, "a norm stands behind it"),
        ("olmo2", {"refit_behind": True}, UnsupportedModelError, "a norm stands behind it"),
        ("mixtral", {}, UnsupportedModelError, "end in no linear of their own"),
    ],
)
def test_what_nothing_can_take_over_is_refused(
    family: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = model_of(family)
    asked = {"criterion": "last", "density": {"layers": 0.7}, "reconstruct": "least_squares", **options}
    with pytest.raises(kind, match=message):
        prune(model, calibration(model), **asked)


def test_the_first_layer_has_nothing_in_front() -> None:
    model = model_of("llama")
    first: nn.Module = model.get_submodule("model.layers.0")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(1e-3)
    with pytest.raises(UnsupportedModelError, match=r"no layer is in front of it\. Set"):
        prune(
            model, text(0), criterion="block_influence", density={"layers": 0.7}, reconstruct="least_squares"
        )


def test_it_needs_the_calibration_set() -> None:
    model = model_of("llama")
    options: dict[str, Any] = {"density": {"layers": 0.7}, "reconstruct": "least_squares"}
    with pytest.raises(DataError, match="calibration"):
        prune(model, criterion="last", **options)
    statistics = collect(model, discover(model, ("layers",)), text(0), [BlockStates()])
    with pytest.raises(ArgumentError, match="the search for layers and their repair"):
        prune(model, criterion="block_influence", statistics=statistics, **options)
    short = [{"input_ids": text(0, 1)[0]["input_ids"][:1, :4]}]
    with pytest.raises(DataError, match="calibration tokens"):
        prune(model, short, criterion="last", **options)
