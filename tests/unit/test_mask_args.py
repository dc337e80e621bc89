"""Options of masks: old names, presets, and errors that say what is meant."""

from typing import Any

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from patchers import unpatch
from sparse_trainer import ModelPatchingCoordinator, SparseTrainingArguments
from sparse_trainer.errors import ArgumentError
from sparse_trainer.masking import Masking
from tests.compact_models import tiny

CHANNELS = {"dense_pruning_method": "topK:1d_alt", "attention_output_with_dense": False}
TOP = {"dense_pruning_method": "topK", "attention_pruning_method": "topK"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"dense_pruning_method": "topk2"}, "dense_pruning_method: unknown value 'topk2'.*Did you mean 'topK'.*magnitude"),
    ({"dense_pruning_method": "topK:2d"}, "dense_pruning_method: unknown value '2d'.*1d_alt"),
    ({"dense_pruning_method": "topK:joint"}, "joint is for attention matrices"),
    ({"attention_pruning_method": "topK:1d_alt"}, "1d_alt is for dense matrices.*whole heads"),
    ({"ampere_pruning_method": "4:8"}, "ampere_pruning_method: unknown value"),
    ({"preset": "hybird"}, "Did you mean 'hybrid'"),
    ({**TOP, "density": 0.3, "final_threshold": 0.3}, "final_threshold, density: say the same thing"),
    ({**TOP, "initial_warmup": 1, "warmup_ratio": 0.2}, "initial_warmup, warmup_ratio"),
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
    ({**CHANNELS, "protect_plan": "p"}, "protect_kinds: heads: masks: topK:1d_alt, None prunes channels only"),
    ({"ampere_pruning_method": "topK", "protect_plan": "p"}, "prunes no such units only. Drop protect_plan"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SparseTrainingArguments(**options)


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
    ],
)  # fmt: skip
def test_blocks_that_do_not_fit_name_those_that_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ModelPatchingCoordinator(SparseTrainingArguments(**options)).patch_model(tiny())


def masking_of(**options: Any) -> Masking:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**options))
    coordinator.patch_model(tiny())
    assert isinstance(coordinator.pruner, Masking)
    return coordinator.pruner


def blocks_of(masking: Masking, name: str) -> list[tuple[int, ...]]:
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
        assert isinstance(masking, Masking)
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
