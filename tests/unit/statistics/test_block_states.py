"""What blocks do to hidden states, and what every linear reads: against what hooks stored, in many families."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.layers import is_linear
from patchers.units import Structure
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.statistics.block_states import BlockStateMeans, BlockStates
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments
from tests.architectures.tiny import tiny_model

# Shape legend: B = sequences, T = tokens, N = all tokens, H = hidden features, I = features of a linear's input.

ROWS = 2
FAMILIES = (
    "llama",
    "gpt2",
    "bert",
    "t5",
    "bart",
    "mixtral",
    "qwen3_moe",
    "switch_transformers",
    "bamba",
    "lfm2",
    "deberta-v2",
    "vit",
    "swin",
)
"""Tensors and tuples as outputs, stacked and listed experts, blocks of several sorts, encoders beside decoders."""
EVERY = Moments(every_linear=True, covariance=True)


def model_of(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model in float64 with eager attention, or in float32 with the kernels that are the default."""
    model = tiny_model(name, dtype=dtype)
    if dtype == torch.float64:
        model.set_attn_implementation("eager")
    return model


def batch_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value for name, value in inputs_for(model, rows=ROWS).items() if name != "labels"}


def rows_of(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return a batch for every row, without the padding at its end."""
    rows = []
    for row in range(ROWS):
        part = {name: value[row : row + 1] for name, value in batch.items()}
        mask_BT = part.get("attention_mask")
        if mask_BT is not None:
            real = int(mask_BT.sum())
            part |= {n: v[:, :real] for n, v in part.items() if n in ("input_ids", "attention_mask")}
        rows.append(part)
    return rows


def first(value: Any) -> Tensor:
    found: Tensor = value if isinstance(value, Tensor) else value[0]
    return found.detach().clone()


def stored(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what every module reads and says, [N, features], in float64."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def keep(path: str, args: Any, kwargs: Any, output: Any) -> None:
        inputs = (*args, *kwargs.values())
        states = first(inputs[0]), first(output)
        seen[path].append((states[0].double().flatten(0, -2), states[1].double().flatten(0, -2)))

    blocks = tuple(
        path for path, module in model.named_modules() if path and path.rpartition(".")[2].isdigit()
    )
    handles = [
        module.register_forward_hook(lambda _, a, k, y, p=path: keep(p, a, k, y), with_kwargs=True)
        for path, module in model.named_modules()
        if path in blocks or is_linear(module)
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return {
        path: (torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
        for path, pairs in seen.items()
    }


def same(found: BlockStateMeans, expected: dict[str, Tensor], tolerance: dict[str, Any]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name).double(), value, msg=name, **tolerance)


CASES = [(name, dtype) for name in FAMILIES for dtype in (torch.float64, torch.float32)]
IN_FLOAT32 = ("bamba", "switch_transformers")
"""Families whose scans or routers compute in float32, whatever the model's type."""


def tolerance_of(name: str, dtype: torch.dtype) -> dict[str, Any]:
    if dtype == torch.float32 or name in IN_FLOAT32:
        return {"rtol": 1e-4, "atol": 1e-5}
    return {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_blocks_are_compared_token_by_token_whatever_the_batches_and_the_padding(
    name: str, dtype: torch.dtype
) -> None:
    model = model_of(name, dtype)
    structure = discover(model, ("layers",))
    batch = batch_of(model)
    states = stored(model, rows_of(batch))
    tolerance = tolerance_of(name, dtype)
    for batches in ([batch], rows_of(batch)):
        found = collect(model, structure, batches, [BlockStates(small=0.3)]).of(BlockStates(small=0.3))
        assert set(found) == {group.block for group in structure.groups}
        for path, means in found.items():
            x_NH, y_NH = states[path]
            change_NH = y_NH - x_NH
            cosine_N = nn.functional.cosine_similarity(x_NH, y_NH)
            rms_N1 = change_NH.square().mean(-1, keepdim=True).sqrt()
            same(
                means,
                {
                    "tokens": torch.tensor(float(len(x_NH))).double(),
                    "cosine": cosine_N.mean(),
                    "angle": cosine_N.arccos().mean() / torch.pi,
                    "input_norm": x_NH.norm(dim=-1).mean(),
                    "output_norm": y_NH.norm(dim=-1).mean(),
                    "change_norm": change_NH.norm(dim=-1).mean(),
                    "relative_change": (change_NH.norm(dim=-1) / x_NH.norm(dim=-1)).mean(),
                    "change_H": change_NH.mean(0),
                },
                tolerance,
            )
            sparsity = (change_NH.abs() < 0.3 * rms_N1).double().mean()
            assert abs(float(means.sparsity - sparsity)) <= (2e-3 if dtype == torch.float32 else 1e-12)
            assert 0.1 < float(sparsity) < 0.5


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_linear_of_the_blocks_has_moments(name: str, dtype: torch.dtype) -> None:
    model = model_of(name, dtype)
    structure = Structure(groups=(), stacks=discover(model).stacks)
    batch = batch_of(model)
    states = stored(model, rows_of(batch))
    stacks = tuple(f"{stack.path}." for stack in structure.stacks)
    linears = {p for p, m in model.named_modules() if is_linear(m) and p.startswith(stacks) and p in states}
    for batches in ([batch], rows_of(batch)):
        found = collect(model, structure, batches, [EVERY]).of(EVERY)
        assert set(found) == linears
        for path, moments in found.items():
            x_NI = states[path][0]
            expected = {
                "tokens": torch.tensor(float(len(x_NI))).double(),
                "mean_I": x_NI.mean(0),
                "second_I": x_NI.square().mean(0),
                "second_II": x_NI.T @ x_NI / len(x_NI),
            }
            for what, value in expected.items():
                torch.testing.assert_close(
                    getattr(moments, what).double(), value, **tolerance_of(name, dtype)
                )


def test_moments_of_every_linear_answer_for_consumers_too() -> None:
    model = tiny_model("llama")
    structure = discover(model, ("heads", "channels"))
    batch = batch_of(model)
    found = collect(model, structure, [batch], [EVERY])
    narrow = collect(model, structure, [batch], [Moments()])
    assert found.missing(structure.groups, [Moments(), Moments(covariance=True)]) is None
    for path, moments in narrow.of(Moments()).items():
        assert torch.equal(found.of(Moments())[path].second_I, moments.second_I)


def test_a_closed_layer_and_an_identity_change_nothing() -> None:
    model = tiny_model("llama")
    block: Any = model.get_submodule("model.layers.1")
    block.self_attn.o_proj.weight.data.zero_()
    block.mlp.down_proj.weight.data.zero_()
    found = collect(model, discover(model, ("layers",)), [batch_of(model)], [BlockStates()])
    still, other = (found.of(BlockStates())[f"model.layers.{number}"] for number in (1, 2))
    assert float(still.angle) == float(still.change_norm) == 0.0
    torch.testing.assert_close(still.cosine, torch.ones_like(still.cosine), rtol=0.0, atol=1e-12)
    assert float(other.angle) > 0.0


def test_block_by_block_gives_the_same() -> None:
    model = tiny_model("gpt2")
    structure, batches = discover(model, ("layers",)), [batch_of(model)]
    expected = collect(model, structure, batches, [BlockStates()]).of(BlockStates())
    blocks = Blockwise(model, structure, batches, changing=False)
    for groups in blocks:
        for path, means in blocks.collect(groups, [BlockStates()]).of(BlockStates()).items():
            torch.testing.assert_close(means.cosine, expected[path].cosine)
            torch.testing.assert_close(means.change_H, expected[path].change_H)


def test_blocks_that_change_the_shape_are_refused() -> None:
    model = tiny_model("llama")
    structure = discover(model, ("layers",))
    block: Any = model.get_submodule("model.layers.2")
    whole = block.forward
    block.forward = lambda *args, **kwargs: whole(*args, **kwargs)[:, :3]
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.2.* returns"):
        collect(model, structure, [batch_of(model)], [BlockStates()])
