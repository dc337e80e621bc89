"""Every head learns from its teacher by the measure it is trained by, or is refused: no loss is always 0."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.distillation.divergences import divergence_for, label_loss, logit_loss
from tests.architectures.tiny import tiny_model

T = 2.0
BERT: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip
VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
IDS = torch.randint(5, 99, (2, 6), generator=torch.Generator().manual_seed(0))
PICTURES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
GRADES = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])


def pair(cls: Any, config: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return a student and a teacher of other weights."""
    torch.manual_seed(0)
    models = tuple(cls(config).double().eval() for _ in range(2))
    for model in models:
        perturb(model)
    return models  # type: ignore[return-value]


def distilled(student: PreTrainedModel, teacher: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """Return the distillation loss, and check that the student learns from it."""
    args = SparseTrainingArguments(scoring="magnitude", distil_alpha_teacher=1.0, distil_temperature=T)
    coordinator = ModelPatchingCoordinator(args, teacher=teacher)
    coordinator.patch_model(student)
    loss = coordinator.extra_losses(inputs, student(**inputs)).distillation
    assert loss is not None
    loss.backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in student.parameters())
    return loss.detach()


def answers(student: PreTrainedModel, teacher: PreTrainedModel, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [model(**inputs).logits.float() for model in (student, teacher)]


@pytest.mark.parametrize(
    ("cls", "config", "inputs"),
    [
        (BertForSequenceClassification, BertConfig(**BERT, num_labels=1), {"labels": torch.rand(2)}),
        (BertForSequenceClassification, BertConfig(**BERT, num_labels=3, problem_type="regression"),
         {"labels": GRADES}),
        (BertForSequenceClassification, BertConfig(**BERT, num_labels=1, problem_type="regression"), {}),
    ],
)  # fmt: skip
def test_values_are_compared_by_their_squared_difference(
    cls: Any, config: Any, inputs: dict[str, Any]
) -> None:
    student, teacher = pair(cls, config)
    inputs = {"input_ids": IDS, **{name: value.double() for name, value in inputs.items()}}
    mine, theirs = answers(student, teacher, inputs)
    torch.testing.assert_close(distilled(student, teacher, inputs), F.mse_loss(mine, theirs))


@pytest.mark.parametrize(
    ("cls", "config", "inputs"),
    [
        (BertForSequenceClassification, BertConfig(**BERT, num_labels=3), {"input_ids": IDS}),
        (ViTForImageClassification, ViTConfig(**VIT, num_labels=3, problem_type="multi_label_classification"),
         {"pixel_values": PICTURES.double()}),
    ],
)  # fmt: skip
def test_labels_that_are_there_or_not_are_compared_one_by_one(
    cls: Any, config: Any, inputs: dict[str, Any]
) -> None:
    student, teacher = pair(cls, config)
    inputs = {**inputs, "labels": GRADES.double()}
    mine, theirs = (z / T for z in answers(student, teacher, inputs))
    expected = F.binary_cross_entropy_with_logits(mine, theirs.sigmoid())
    entropy = F.binary_cross_entropy_with_logits(theirs, theirs.sigmoid())
    torch.testing.assert_close(distilled(student, teacher, inputs), T**2 * (expected - entropy))


HEADS: dict[str, tuple[Any, Any, dict[str, Tensor]]] = {
    "one class": (BertForSequenceClassification, BertConfig(**BERT, num_labels=3), {"labels": torch.tensor([0, 2])}),
    "span": (BertForQuestionAnswering, BertConfig(**BERT),
             {"start_positions": IDS[:, 0] % 6, "end_positions": IDS[:, 1] % 6}),
    "tokens": (BertForTokenClassification, BertConfig(**BERT, num_labels=3), {"labels": IDS % 3}),
    "choices": (BertForMultipleChoice, BertConfig(**BERT), {"labels": torch.tensor([0])}),
    "two heads": (BertForPreTraining, BertConfig(**BERT), {"labels": IDS, "next_sentence_label": torch.tensor([0, 1])}),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_one_of_many_is_compared_by_a_softmax(head: str) -> None:
    cls, config, labels = HEADS[head]
    student, teacher = pair(cls, config)
    inputs = {"input_ids": IDS[None] if head == "choices" else IDS, **labels}
    with torch.no_grad():
        mine, theirs = student(**inputs), teacher(**inputs)
    names = [name for name in mine if name.endswith("logits")]
    expected = torch.stack([logit_loss(mine[name], theirs[name], T) for name in names]).mean()
    torch.testing.assert_close(distilled(student, teacher, inputs), expected)


def test_a_row_without_a_label_does_not_count() -> None:
    student, teacher = pair(BertForSequenceClassification, BertConfig(**BERT, num_labels=3))
    inputs = {"input_ids": IDS, "labels": torch.tensor([1, -100])}
    mine, theirs = answers(student, teacher, inputs)
    torch.testing.assert_close(distilled(student, teacher, inputs), logit_loss(mine[:1], theirs[:1], T))


@pytest.mark.parametrize("model_type", ["llama", "t5", "bart", "gpt2", "llava", "whisper"])
def test_models_that_write_are_compared_by_a_softmax_over_the_vocabulary(model_type: str) -> None:
    student, teacher = tiny_model(model_type), tiny_model(model_type, seed=1)
    inputs = inputs_for(student)
    if "labels" not in inputs:
        inputs = {
            **inputs,
            "labels": inputs["decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"],
        }
    assert float(distilled(student, teacher, inputs)) > 1e-4


def test_padding_of_a_sound_does_not_count() -> None:
    config = Wav2Vec2Config(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16, 16), conv_kernel=(4, 2), conv_stride=(4, 2), num_feat_extract_layers=2, feat_extract_norm="layer",
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, do_stable_layer_norm=True,
    )  # fmt: skip
    student, teacher = pair(Wav2Vec2ForCTC, config)
    sound = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.ones(2, 64, dtype=torch.long)
    mask[1, 32:] = 0
    inputs = {
        "input_values": sound * mask,
        "attention_mask": mask,
        "labels": torch.tensor([[1, 2], [3, -100]]),
    }
    mine, theirs = answers(student, teacher, inputs)
    frames = torch.arange(mine.shape[1]) < torch.tensor([[mine.shape[1]], [mine.shape[1] // 2]])
    torch.testing.assert_close(
        distilled(student, teacher, inputs), logit_loss(mine[frames], theirs[frames], T)
    )


def test_pixels_are_compared_over_the_classes_not_over_a_row_of_the_picture() -> None:
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[1, 1], hidden_sizes=[16, 16], patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[2, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
    )  # fmt: skip
    student, teacher = pair(SegformerForSemanticSegmentation, config)
    inputs = {"pixel_values": PICTURES.double(), "labels": torch.randint(3, (2, 16, 16))}
    mine, theirs = (z.flatten(2).transpose(1, 2) for z in answers(student, teacher, inputs))
    torch.testing.assert_close(distilled(student, teacher, inputs), logit_loss(mine, theirs, T))


REFUSED: dict[str, tuple[Any, Any, dict[str, Tensor], str]] = {
    "tokens of one class": (BertForTokenClassification, BertConfig(**BERT, num_labels=1), {"input_ids": IDS},
                            "nothing says how"),
    "pixels": (ViTMAEForPreTraining, ViTMAEConfig(**VIT, decoder_hidden_size=32, decoder_num_hidden_layers=1,
               decoder_num_attention_heads=4, decoder_intermediate_size=48),
               {"pixel_values": PICTURES.double()}, r"nothing says how the logits \(2, 4, 192\) of ViTMAE"),
}  # fmt: skip


@pytest.mark.parametrize("head", REFUSED)
def test_what_has_no_measure_is_refused(head: str) -> None:
    cls, config, inputs, message = REFUSED[head]
    with pytest.raises(ArgumentError, match=message):
        distilled(*pair(cls, config), inputs)


def test_pairs_of_pictures_and_texts_are_refused() -> None:
    student, teacher = tiny_model("clip"), tiny_model("clip", seed=1)
    with pytest.raises(ArgumentError, match="CLIPModel has no logits to learn from"):
        distilled(student, teacher, inputs_for(student))


def test_models_of_ones_own_follow_the_labels() -> None:
    own = nn.Linear(2, 3)
    assert divergence_for(own, "logits", torch.zeros(2, 3), GRADES[:2]) is label_loss
    assert divergence_for(own, "logits", torch.zeros(2, 3), torch.tensor([0, 1])) is logit_loss
    assert (
        divergence_for(own, "logits", torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.long)) is logit_loss
    )
    with pytest.raises(ArgumentError, match="nothing says how"):
        divergence_for(own, "logits", torch.zeros(2, 4, 3), None)


def test_a_softmax_over_one_class_is_refused() -> None:
    student, teacher = pair(BertForSequenceClassification, BertConfig(**BERT, num_labels=1))
    student.config.problem_type = teacher.config.problem_type = "single_label_classification"
    with pytest.raises(ArgumentError, match="softmax over one class"):
        distilled(student, teacher, {"input_ids": IDS})


def test_logits_without_gradient_are_refused() -> None:
    student, teacher = pair(BertForSequenceClassification, BertConfig(**BERT, num_labels=3))
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(), teacher=teacher)
    coordinator.patch_model(student)
    with torch.no_grad():
        outputs = student(input_ids=IDS)
    with pytest.raises(ArgumentError, match="carry no gradient"):
        coordinator.extra_losses({"input_ids": IDS}, outputs)


def test_a_teacher_of_another_task_and_one_without_a_say_are_refused() -> None:
    student, _ = pair(
        BertForSequenceClassification, BertConfig(**BERT, num_labels=3, problem_type="regression")
    )
    other = BertForSequenceClassification(
        BertConfig(**BERT, num_labels=3, problem_type="single_label_classification")
    )
    with pytest.raises(
        ArgumentError, match="problem_type is single_label_classification, the student's regression"
    ):
        ModelPatchingCoordinator(SparseTrainingArguments(), teacher=other).patch_model(student)
    with pytest.raises(ArgumentError, match="would teach nothing"):
        ModelPatchingCoordinator(
            SparseTrainingArguments(distil_alpha_teacher=0.0), teacher=other
        ).patch_model(student)
