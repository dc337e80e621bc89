"""How far a student's answer is from its teacher's, by the divergence that goes with the loss it is trained by."""

from collections.abc import Callable
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING

from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.labels import unwrapped

# Shape legend: B = batch, C = classes or vocabulary, H x W = pixels.

Divergence = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
"""Called with the student's logits, the teacher's, the temperature, and a mask over the distributions that count."""
_CLASSIFIES: Final = LOSS_MAPPING["ForSequenceClassification"]
_SEGMENTS: Final = LOSS_MAPPING["ForSemanticSegmentation"]
_OVER_LAST_AXIS: Final = tuple(
    LOSS_MAPPING[name]
    for name in ("ForCausalLM", "ForMaskedLM", "ForTokenClassification", "ForCTC", "ForQuestionAnswering")
    if name in LOSS_MAPPING  # transformers before 5.19 has no ForCTC
)


def logit_loss(student: Tensor, teacher: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """Return T^2 * KL(teacher || student), averaged over the distributions that count (Hinton et al., 1503.02531).

    Args:
        student: Logits [..., C].
        teacher: Logits of the same shape.
        counts: Mask over the leading dimensions, or None = all.

    >>> import torch
    >>> z = torch.tensor([[1.0, 2.0]])
    >>> float(logit_loss(z, z, temperature=2.0))
    0.0
    """
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    kl = F.kl_div(student_log, teacher_log, log_target=True, reduction="none").sum(-1)
    return _mean(kl, counts) * temperature**2


def label_loss(student: Tensor, teacher: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """Return T^2 * the mean KL over labels that are each there or not: binary cross-entropy less the teacher's own.

    >>> import torch
    >>> z = torch.tensor([[1.0, -2.0]])
    >>> float(label_loss(z, z, temperature=2.0))
    0.0
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    there = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return _mean((there + absent).mean(-1), counts) * temperature**2


def value_loss(student: Tensor, teacher: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """Return the mean squared error of values; they have no temperature."""
    return _mean((student.float() - teacher.float()).square().mean(-1), counts)


def pixel_loss(student: Tensor, teacher: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """Return `logit_loss` of logits [B, C, H, W]."""
    return logit_loss(student.movedim(1, -1), teacher.movedim(1, -1), temperature)


def divergence_for(model: nn.Module, name: str, logits: Tensor, labels: Any) -> Divergence:
    """Return the divergence of an answer, by the rule of transformers: `problem_type`, or what the first labels are.

    Args:
        model: The student.
        name: What its answer is called.
        logits: The answer.
        labels: Of the same batch, None without any.

    Raises:
        ArgumentError: nothing says how the answer is judged, or by a loss that no divergence goes with.
    """
    model = unwrapped(model)
    loss = LOSS_MAPPING.get(str(model.loss_type)) if isinstance(model, PreTrainedModel) else None
    if loss is _SEGMENTS and logits.dim() == 4:
        return pixel_loss
    is_text = logits.shape[-1] > 1 and logits.shape[-1] == _vocabulary(model)
    aligned = isinstance(labels, Tensor) and labels.shape == logits.shape[:-1]
    if logits.shape[-1] > 1 and (loss in _OVER_LAST_AXIS or is_text):
        return logit_loss
    if loss is _CLASSIFIES or (loss is None and logits.dim() == 2):
        return _by_problem_type(model, logits, labels)
    if loss is None and aligned and logits.shape[-1] > 1 and not labels.is_floating_point():
        return logit_loss
    raise ArgumentError(
        "distil_alpha_teacher",
        f"nothing says how the {name} {tuple(logits.shape)} of {type(model).__name__} are judged, so that a teacher "
        "could be compared by the same measure.",
        "Set it to 0 and learn hidden states (`distil_alpha_hidden`), or train without a teacher.",
    )


def _by_problem_type(model: nn.Module, logits: Tensor, labels: Any) -> Divergence:
    problem = model.config.problem_type if isinstance(model, PreTrainedModel) else None
    if problem is None and logits.shape[-1] == 1:
        problem = "regression"
    elif problem is None:
        graded = isinstance(labels, Tensor) and labels.is_floating_point()
        problem = "multi_label_classification" if graded else "single_label_classification"
    if problem == "single_label_classification" and logits.shape[-1] == 1:
        raise ArgumentError(
            "distil_alpha_teacher",
            "a softmax over one class is 1, whatever the teacher says.",
            "Set problem_type='regression' in the model's config, or train without a teacher.",
        )
    known = {"regression": value_loss, "multi_label_classification": label_loss}
    return known.get(str(problem), logit_loss)


def _vocabulary(model: nn.Module) -> int | None:
    if not isinstance(model, PreTrainedModel):
        return None
    # A config holds what its model has: one of images has no vocabulary.
    size: int | None = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    return size


def _mean(each: Tensor, counts: Tensor | None) -> Tensor:
    if counts is None:
        return each.mean()
    return (each * counts).sum() / counts.sum().clamp_min(1)
