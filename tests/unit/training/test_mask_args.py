"""Options of masks: old names, presets, and errors that say what is meant."""

from typing import Any

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from patchers.patching.patch import masks_of, unpatch
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.mask_driver import MaskDriver
from tests.fixtures.compact_models import batch, tiny

CHANNELS = {"dense_pruning_method": "topK:1d_alt", "attention_output_with_dense": False}
TOP = {"dense_pruning_method": "topK", "attention_pruning_method": "topK"}
SIGMOID = {"dense_pruning_method": "sigmoid_threshold"}
L0 = {"dense_pruning_method": "l0", "regularization": "l0", "regularization_final_lambda": 1.0}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"dense_pruning_method": "topk2"}, "dense_pruning_method: unknown value 'topk2'.*Did you mean 'topK'.*magnitude"),
    ({"dense_pruning_method": "topK:2d"}, "dense_pruning_method: unknown value '2d'.*1d_alt"),
    ({"dense_pruning_method": "topK:joint"}, "joint is for attention matrices"),
    ({"attention_pruning_method": "topK:1d_alt"}, "1d_alt is for dense matrices.*whole heads"),
    ({"ampere_pruning_method": "4:8"}, "ampere_pruning_method: unknown value"),
    ({"preset": "hybird"}, "Did you mean 'hybrid'"),
    ({**TOP, "density": 0.3, "final_threshold": 0.3}, "final_threshold, density: say the same thing"),
    ({**TOP, "initial_warmup": 1, "pruning_warmup_ratio": 0.2}, "initial_warmup, pruning_warmup_ratio"),
    ({**TOP, "final_warmup": 2, "pruning_warmup_ratio": 0.2}, "warmup_ratio: .*no fraction of training is read"),
    ({**TOP, "score_learning_rate": 1.0}, "score_learning_rate: is that of gates.*mask_scores_learning_rate"),
    ({**TOP, "l0_learning_rate": 0.2}, "dense_pruning_method, l0_learning_rate: .* asks for masks"),
    ({**TOP, "magnitude_norm": 1}, "dense_pruning_method, magnitude_norm"),
    ({**TOP, "mask_scores_learning_rate": 1.0, "score_learning_rate": 1.0}, "score_learning_rate"),
    ({**TOP, "scoring": "taylor"}, "dense_pruning_method, scoring: .* asks for masks"),
    ({"preset": "struct", "units": ["heads"]}, "preset, units"),
    ({"final_threshold": 0.1}, "final_threshold: is an option of weight masks.*Set dense_pruning_method"),
    ({**TOP, "final_threshold": 0.0}, "topK keeps a fraction"),
    ({"dense_pruning_method": "sigmoied_threshold", "initial_threshold": 1.0}, "initial_threshold"),
    ({**TOP, "dense_block_rows": -1}, "dense_block_rows"),
    ({"dense_pruning_method": "l0"}, "regularization: the method l0 prunes by its penalty"),
    ({**TOP, "regularization": "l1"}, "regularization_final_lambda"),
    ({"dense_pruning_method": "magnitude", "regularization": "l1", "regularization_final_lambda": 1.0}, "no scores"),
    ({**TOP, "mask_init": "zeros"}, "mask_init"),
    (SIGMOID, "dense_pruning_method: all scores start at 0.5 or more, the final threshold is 0.1"),
    ({**SIGMOID, "final_threshold": 0.6, "mask_scale": 2.0}, "start at 0.881"),
    ({**TOP, "regularization_final_lambda": 1.0}, "regularization_final_lambda: .* regularization is disabled"),
    ({**TOP, "dense_lambda": 2.0}, "dense_lambda: weighs a penalty"),
    ({**TOP, "decoder_attention_lambda": 2.0}, "decoder_attention_lambda: weighs a penalty"),
    ({**TOP, "attention_pruning_method": "threshold", "final_threshold": 0.3},
     r"final_threshold: .*dense_pruning_method \(topK\).*attention_pruning_method \(threshold\)"),
    ({"attention_pruning_method": "topK", "dense_block_rows": 2}, "dense_block_rows: dense matrices are not masked"),
    ({"dense_pruning_method": "topK", "attention_block_cols": 2}, "attention_block_cols: attention matrices are not"),
    ({**CHANNELS, "dense_block_cols": 2}, "dense_block_cols: 1d_alt closes whole channels"),
    ({**TOP, "final_ampere_temperature": 5.0}, "final_ampere_temperature: is read by annealing alone"),
    ({**L0, "final_threshold": 0.2}, "final_threshold: no method that is asked for has a threshold"),
    ({**TOP, "linear_min_parameters": 1.0}, "linear_min_parameters"),
    ({**TOP, "linear_min_parameters": -0.1}, "linear_min_parameters"),
    ({**TOP, "initial_warmup": -1}, "initial_warmup: -1 is negative"),
    ({**TOP, "final_warmup": -2}, "final_warmup: -2 is negative"),
    ({**TOP, "initial_threshold": 0.2}, "initial_threshold, final_threshold: topK would keep 0.2 .* 0.5 in the end"),
    ({**TOP, "dense_block_rows": True}, "dense_block_rows: True is .*Give a whole number"),
    ({**TOP, "attention_block_cols": 8.0}, "attention_block_cols: 8.0 is .*Give a whole number"),
    ({**CHANNELS, "protect_plan": "p"}, "protect_kinds: heads: masks: topK:1d_alt, None prunes channels only"),
    ({"ampere_pruning_method": "topK", "protect_plan": "p"}, "prunes no such units only. Drop protect_plan"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SparseTrainingArguments(**options)


@pytest.mark.parametrize(
    "options",
    [
        {**SIGMOID, "final_threshold": 0.6},
        {**SIGMOID, "mask_init": "uniform", "mask_scale": 3.0},
        {**SIGMOID, "mask_scale": -5000.0},
        {**TOP, "attention_pruning_method": "threshold"},
        {"ampere_pruning_method": "topK", "regularization": "l1", "regularization_final_lambda": 1.0},
        {"ampere_pruning_method": "annealing", "final_ampere_temperature": 5.0},
        {**TOP, "pruning_warmup_ratio": 0.2, "cooldown_ratio": 0.2},
        {"preset": "hybrid", "regularization_final_lambda": 5.0, "attention_lambda": 2.0},
        {**TOP, "initial_warmup": 0, "final_warmup": 0, "linear_min_parameters": 0.0},
    ],
)
def test_what_can_be_meant_is_allowed(options: dict[str, Any]) -> None:
    assert SparseTrainingArguments(**options).uses_masks


def test_fields_set_later_are_checked_when_they_are_used() -> None:
    args = SparseTrainingArguments()
    args.dense_pruning_method = "topKK"
    with pytest.raises(ArgumentError, match="topKK"):
        ModelPatchingCoordinator(args)
    args = SparseTrainingArguments()
    vars(args)["dense_prunning_method"] = "topK"
    with pytest.raises(ArgumentError, match=r"dense_prunning_method: no such option.*'dense_pruning_method'"):
        ModelPatchingCoordinator(args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**TOP, "attention_block_rows": 5}, "attention_block_rows: 5 does not divide 32, the rows.*query.* 4 and 8"),
        ({**TOP, "dense_block_cols": 36}, "dense_block_cols: 36 does not divide 32.*Nearest: 32\\."),
        ({**CHANNELS, "dense_block_rows": 7}, "7 does not divide 48, the channels of .* 6 and 8"),
        ({"attention_pruning_method": "topK:joint", "ampere_pruning_method": "topK"}, "joint scores leave no place"),
        ({"dense_pruning_method": "disabled", "attention_pruning_method": "disabled"}, "mask nothing of this"),
        ({"dense_pruning_method": "topK:1d_alt", "exclude": ["*.channels"], "attention_output_with_dense": False},
         "mask nothing of this model.*exclude less"),
        ({**CHANNELS, "decoder_dense_lambda": 2.0, "regularization": "l1", "regularization_final_lambda": 1.0},
         "decoder_dense_lambda: .*behind an encoder.*Set dense_lambda"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ModelPatchingCoordinator(SparseTrainingArguments(**options)).patch_model(tiny())


def masking_of(**options: Any) -> MaskDriver:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**options))
    coordinator.patch_model(tiny())
    assert isinstance(coordinator.pruner, MaskDriver)
    return coordinator.pruner


def blocks_of(masking: MaskDriver, name: str) -> list[tuple[int, ...]]:
    mask = masking.masks[f"bert.encoder.layer.0.{name}"]
    return [tuple(values.shape) for values in mask()]


def test_presets_fill_in_what_was_left_alone() -> None:
    struct = masking_of(preset="struct")
    assert blocks_of(struct, "attention.self.key") == [(4, 1)]  # one score a head
    assert blocks_of(struct, "attention.output.dense") == [(1, 4)]
    assert set(struct.gates) == {f"bert.encoder.layer.{i}.channels" for i in range(3)}
    hybrid = SparseTrainingArguments(preset="hybrid", attention_block_rows=8, final_threshold=0.2)
    part = hybrid.part("attention")
    assert part is not None
    assert (part.rows, part.cols, part.initial, part.final) == (8, 32, 0.0, 0.2)
    assert part.method == "sigmoid_threshold"


def test_the_output_matrix_of_attention_follows_either_part() -> None:
    blocks = {
        "attention_block_rows": 8,
        "attention_block_cols": 16,
        "dense_block_rows": 4,
        "dense_block_cols": 2,
    }
    apart = masking_of(**TOP, **blocks, attention_output_with_dense=False)
    assert blocks_of(apart, "attention.self.value") == [(4, 2)]
    assert blocks_of(apart, "attention.output.dense") == [(2, 4)]
    assert blocks_of(masking_of(**TOP, **blocks), "attention.output.dense") == [(8, 16)]
    rows_and_columns = masking_of(**{**TOP, "dense_pruning_method": "topK:1d"}, **blocks)
    assert blocks_of(rows_and_columns, "output.dense") == [(8, 1), (1, 24)]


def test_rows_and_columns_of_the_output_matrix_of_attention_are_turned_too() -> None:
    options = {
        "attention_pruning_method": "topK:1d",
        "attention_output_with_dense": False,
        "attention_block_rows": 8,
    }
    masking = masking_of(**options)
    assert blocks_of(masking, "attention.self.query") == [(4, 1), (1, 32)]
    assert blocks_of(masking, "attention.output.dense") == [(32, 1), (1, 4)]
    # Heads that are wider together than the hidden size.
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                    num_attention_heads=4, num_key_value_heads=2, head_dim=12)
    )  # fmt: skip
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**options, final_threshold=0.25))
    coordinator.patch_model(model)
    coordinator.begin(2)
    coordinator.step(2)
    mask = masks_of(model)["model.layers.0.self_attn.o_proj"]
    assert [tuple(values.shape) for values in mask()] == [(32, 1), (1, 6)]
    assert [int(values.sum()) for values in mask()] == [16, 3]
    model(**batch(model)).logits.sum().backward()
    assert all(score.grad is not None for score in coordinator.score_parameters())


def test_shared_scores_count_once_and_decoders_have_lambdas_of_their_own() -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=4, num_heads=4, d_ff=32, num_layers=2, num_decoder_layers=2)
    )
    options = {"regularization": "l1", "regularization_final_lambda": 4.0, "mask_init": "uniform"}
    penalties = {}
    for share in (1.0, 0.0):
        args = SparseTrainingArguments(
            attention_pruning_method="topK:joint", attention_output_with_dense=False,
            decoder_attention_lambda=share, **options,
        )  # fmt: skip
        coordinator = ModelPatchingCoordinator(args)
        coordinator.patch_model(model)
        masking = coordinator.pruner
        assert isinstance(masking, MaskDriver)
        assert len(masking.sites) == 4 * 2  # q, k and v together, and the output, in four layers
        coordinator.begin(10)
        assert masking.penalty() is None  # lambda starts at 0
        coordinator.step(10)
        penalty = masking.penalty()
        assert penalty is not None
        penalties[share] = float(penalty.detach())
        unpatch(model)
    # All scores are 0: sigmoid 1/2, times lambda, over an encoder and a decoder that counts or not.
    assert penalties == {1.0: pytest.approx(2.0), 0.0: pytest.approx(1.0)}
