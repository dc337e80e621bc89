"""Distillation counts only what counts, and leaves the teacher alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.labels import shifts_labels
from sparse_trainer.run.rehearsal import rehearse
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.distillation.divergences import logit_loss
from sparse_trainer.training.distillation.teacher import (
    Distiller,
    hidden_loss,
)
from sparse_trainer.training.distillation.tokens import token_mask, valid_distributions
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import FAMILIES, batch, perturbed, tiny
from tests.fixtures.training import quiet_model, sparse_args, trainer


def test_logit_loss_is_kl_times_temperature_squared() -> None:
    student, teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.randn(4, 3)
    p, q = (torch.softmax(z / 3.0, -1) for z in (teacher, student))
    expected = (p * (p.log() - q.log())).sum(-1).mean() * 9
    torch.testing.assert_close(logit_loss(student, teacher, 3.0), expected)


def test_token_losses_are_normalised_by_valid_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([[1, 2, -100, -100, -100], [1, 1, 1, 1, -100]])
    counts = valid_distributions(student, {"labels": labels}, shifted=False)
    chosen = labels != -100
    expected = logit_loss(student[chosen], teacher[chosen], 2.0)
    torch.testing.assert_close(logit_loss(student, teacher, 2.0, counts), expected)
    longer = [torch.cat([z, torch.randn(2, 3, 7)], dim=1) for z in (student, teacher)]
    padded = torch.cat([labels, torch.full((2, 3), -100)], dim=1)
    counts = valid_distributions(longer[0], {"labels": padded}, shifted=False)
    torch.testing.assert_close(logit_loss(*longer, 2.0, counts), expected)


def test_causal_positions_are_judged_by_the_next_label() -> None:
    labels = torch.tensor([[-100, -100, 5, 6]])
    counts = valid_distributions(torch.zeros(1, 4, 9), {"labels": labels}, shifted=True)
    assert counts.tolist() == [[False, True, True, False]]


def test_hidden_loss_ignores_padding() -> None:
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    real = mask.bool()
    expected = (student[real] - teacher[real]).square().mean()
    torch.testing.assert_close(hidden_loss(student, teacher, mask), expected)


def test_tokens_of_choices_and_of_sounds_are_told_from_padding() -> None:
    choices = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]])
    found = token_mask((4, 3), {"attention_mask": choices})
    assert found is not None
    assert torch.equal(found, choices.flatten(0, 1).bool())
    sound = {"input_values": torch.zeros(1, 8), "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])}
    frames = token_mask((1, 4), sound)
    assert frames is not None
    assert frames.tolist() == [[True, True, False, False]]
    assert token_mask((2, 5), {"pixel_values": torch.zeros(2, 3, 4, 4)}) is None


def distil_args(**options: Any) -> SparseTrainingArguments:
    return SparseTrainingArguments(distil_teacher_name_or_path="self", **options)


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "deberta-v2"])
def test_own_copy_as_teacher_costs_nothing_while_gates_are_open(family: str) -> None:
    model = tiny(family)
    coordinator = ModelPatchingCoordinator(distil_args(distil_alpha_hidden=1.0))
    coordinator.patch_model(model)
    inputs = {**batch(model), "labels": torch.tensor([0, 1])}
    outputs = model(**inputs, output_hidden_states=True)
    extra = coordinator.extra_losses(inputs, outputs)
    assert extra.distillation is not None
    assert float(extra.distillation.detach()) == pytest.approx(0.0, abs=1e-6)
    next(iter(coordinator.gates.values())).keep_U.zero_()
    changed = coordinator.extra_losses(inputs, model(**inputs, output_hidden_states=True))
    assert changed.distillation is not None
    assert float(changed.distillation.detach()) > 1e-4


def test_teacher_is_frozen_and_in_evaluation_mode() -> None:
    teacher = tiny().train()
    distiller = Distiller(teacher, distil_args().distillation, student=tiny(), shifted=False)
    assert not distiller.teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_teacher_that_is_the_student_is_refused() -> None:
    model = tiny()
    with pytest.raises(ArgumentError, match="student itself"):
        ModelPatchingCoordinator(SparseTrainingArguments(), teacher=model).patch_model(model)


def test_teacher_with_other_labels_is_refused_with_both_shapes() -> None:
    model, other = tiny(), tiny()
    other.classifier = torch.nn.Linear(32, 5).double()
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(), teacher=other)
    coordinator.patch_model(model)
    inputs = batch(model)
    with pytest.raises(ArgumentError, match=r"\(2, 5\).*\(2, 3\)"):
        coordinator.extra_losses(inputs, model(**inputs))


def test_closed_layers_are_not_compared() -> None:
    model = tiny()
    args = distil_args(
        scoring="magnitude", units=["layers"], distil_alpha_hidden=1.0, distil_alpha_teacher=0.0
    )
    coordinator = ModelPatchingCoordinator(args)
    coordinator.patch_model(model)
    coordinator.gates["bert.encoder.layer.2.layer"].keep_U.zero_()
    inputs = batch(model)
    extra = coordinator.extra_losses(inputs, model(**inputs, output_hidden_states=True))
    assert extra.distillation is not None
    assert float(extra.distillation.detach()) == pytest.approx(0.0, abs=1e-6)
    coordinator.gates["bert.encoder.layer.2.layer"].keep_U.fill_(1)
    coordinator.gates["bert.encoder.layer.0.layer"].keep_U.zero_()
    extra = coordinator.extra_losses(inputs, model(**inputs, output_hidden_states=True))
    assert extra.distillation is not None
    assert float(extra.distillation.detach()) > 1e-4


def bart_config() -> BartConfig:
    sizes = {f"{part}_{name}": size for part in ("encoder", "decoder")
             for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    return BartConfig(vocab_size=99, d_model=32, max_position_embeddings=40, num_labels=3, **sizes)


def t5_config() -> T5Config:
    return T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                    decoder_start_token_id=0)  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "config", "labels"),
    [
        (BartForConditionalGeneration, bart_config(), torch.tensor([[7, 8, 9], [6, 5, -100]])),
        (T5ForConditionalGeneration, t5_config(), torch.tensor([[7, 8, 9], [6, 5, -100]])),
        (BartForSequenceClassification, bart_config(), torch.tensor([0, 2])),
    ],
    ids=["bart", "t5", "classifier"],
)
def test_teacher_of_an_encoder_decoder_reads_what_the_student_reads(
    cls: Any, config: Any, labels: torch.Tensor
) -> None:
    torch.manual_seed(0)
    model = perturbed(cls(config)).eval()
    coordinator = ModelPatchingCoordinator(distil_args())
    coordinator.patch_model(model)
    ids = torch.randint(5, 99, (2, 8), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 2
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    extra = coordinator.extra_losses(inputs, model(**inputs))
    assert extra.distillation is not None
    assert float(extra.distillation.detach()) == pytest.approx(0.0, abs=1e-6)


def test_hidden_states_of_encoder_decoders_are_refused() -> None:
    coordinator = ModelPatchingCoordinator(distil_args(distil_alpha_hidden=0.5))
    with pytest.raises(ArgumentError, match="distil_alpha_hidden: hidden states of encoder-decoders"):
        coordinator.patch_model(T5ForConditionalGeneration(t5_config()))


def test_models_without_logits_are_told_so() -> None:
    model = BertModel(tiny().config).eval()
    coordinator = ModelPatchingCoordinator(distil_args())
    coordinator.patch_model(model)
    inputs = batch(model)
    with pytest.raises(ArgumentError, match="BertModel has no logits"):
        coordinator.extra_losses(inputs, model(**inputs))


def test_outputs_without_hidden_states_are_told_what_to_ask_for() -> None:
    model = tiny()
    coordinator = ModelPatchingCoordinator(distil_args(distil_alpha_hidden=0.5))
    coordinator.patch_model(model)
    inputs = batch(model)
    with pytest.raises(ArgumentError, match=r"no hidden_states.*output_hidden_states"):
        coordinator.extra_losses(inputs, model(**inputs))


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=40))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_labels_are_shifted_where_the_loss_shifts_them() -> None:
    assert shifts_labels(tiny_model("llama"))
    assert shifts_labels(gpt2())
    assert shifts_labels(tiny_model("llava"))
    assert not shifts_labels(BartForConditionalGeneration(bart_config()))
    assert not shifts_labels(tiny())
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    assert isinstance(wrapped.get_base_model(), LlamaForCausalLM)
    assert shifts_labels(wrapped)


def refused(match: str, teacher: PreTrainedModel | None = None, **options: Any) -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**options), teacher=teacher)
    model = tiny()
    with pytest.raises(ArgumentError, match=match):
        coordinator.patch_model(model)
    assert not any("gate" in name for name, _ in model.named_modules())


def test_teachers_of_another_form_are_refused_before_any_work() -> None:
    where = "^distil_teacher_name_or_path: the teacher's"
    cls, config, sizes = FAMILIES["bert"]
    common: dict[str, Any] = {**sizes, "max_position_embeddings": 40}
    refused(rf"{where} num_labels is 5, the student's 3", cls(config(**common, vocab_size=99, num_labels=5)))
    refused(
        rf"{where} vocab_size is 50, the student's 99", cls(config(**common, vocab_size=50, num_labels=3))
    )
    wide, tall = tiny(hidden_size=48), tiny(num_hidden_layers=4)
    refused(rf"{where} hidden_size is 48, the student's 32", wide, distil_alpha_hidden=0.5)
    refused(rf"{where} num_hidden_layers is 4, .* 3.*'learned'", tall, distil_alpha_hidden=0.5)
    options: dict[str, Any] = {"distil_alpha_hidden": 0.5, "distil_layer_map": "learned"}
    ModelPatchingCoordinator(SparseTrainingArguments(**options), teacher=tall).patch_model(tiny())
    ModelPatchingCoordinator(SparseTrainingArguments(), teacher=wide).patch_model(tiny())


def test_a_teacher_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    where = "^distil_teacher_name_or_path: '.*' cannot be loaded by BertForSequenceClassification"
    refused(where, distil_teacher_name_or_path=str(tmp_path / "missing"))
    tiny().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    refused(where, distil_teacher_name_or_path=str(tmp_path))


def test_options_that_contradict_each_other_are_refused() -> None:
    refused("^teacher, distil_teacher_name_or_path: both", tiny(), distil_teacher_name_or_path="self")
    refused("^distil_alpha_hidden: there is no teacher", distil_alpha_hidden=0.5)
    refused("^distil_layer_map: 'learned'", distil_layer_map="learned", distil_teacher_name_or_path="self")


def test_teacher_computes_in_the_precision_of_the_student(tmp_path: Path) -> None:
    """Under bf16 a teacher in full precision would differ from its own copy."""
    args = sparse_args("movement-distilled", pruning_warmup_ratio=0.5)
    run = trainer(tmp_path, args, quiet_model().float(), bf16=True, max_steps=1, logging_steps=1)
    run.train()
    logged = [entry["distillation_loss"] for entry in run.state.log_history if "distillation_loss" in entry]
    assert logged == [0.0]


def test_a_rehearsal_needs_no_teacher_and_judges_the_one_it_gets() -> None:
    args = SparseTrainingArguments(distil_alpha_hidden=0.5, distil_teacher_name_or_path="dense")
    model = tiny()
    rehearse(model, args, None)
    with pytest.raises(ArgumentError, match="num_hidden_layers"):
        rehearse(model, args, tiny(num_hidden_layers=4))
    with pytest.raises(ArgumentError, match="no teacher"):
        rehearse(model, SparseTrainingArguments(distil_alpha_hidden=0.5), None)
