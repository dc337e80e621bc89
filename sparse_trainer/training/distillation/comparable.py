"""Whether a student and a teacher can be compared, read off their configs before any work is done."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.labels import is_encoder_decoder, unwrapped
from sparse_trainer.training.options import DistillationOptions

_TEACHER = "distil_teacher_name_or_path"


def check_distillation(model: nn.Module, options: DistillationOptions, teacher: nn.Module | None) -> None:
    """Raise `ArgumentError` for options of distillation that cannot be followed.

    Args:
        teacher: One that was passed as a model.
    """
    name = options.teacher
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise ArgumentError("teacher", f"{teacher!r} is no model.", f"Give a name as {_TEACHER}.")
    if teacher is not None and name is not None:
        raise ArgumentError(
            f"teacher, {_TEACHER}", f"both a model and {name!r} are to be the teacher.", "Give one of them."
        )
    if (teacher is not None or name is not None) and not (
        options.alpha_logits > 0 or options.alpha_hidden > 0
    ):
        raise ArgumentError(
            "distil_alpha_teacher, distil_alpha_hidden",
            "both are 0, and the teacher would teach nothing.",
            "Raise one of them, or train without a teacher.",
        )
    if options.layer_map == "learned" and not options.alpha_hidden > 0:
        raise ArgumentError(
            "distil_layer_map",
            "'learned' maps hidden states, and distil_alpha_hidden is 0.",
            "Raise `distil_alpha_hidden`, or take 'fixed'.",
        )
    if not options.alpha_hidden > 0:
        return
    if teacher is None and name is None:
        raise ArgumentError(
            "distil_alpha_hidden",
            "there is no teacher to learn hidden states from.",
            f"Set `{_TEACHER}`, e.g. to 'self', or pass teacher=.",
        )
    if is_encoder_decoder(model):
        raise ArgumentError(
            "distil_alpha_hidden",
            "hidden states of encoder-decoders are not compared.",
            "Set it to 0: logits are compared.",
        )


def check_teacher(student: nn.Module, teacher: nn.Module, options: DistillationOptions) -> None:
    """Raise `ArgumentError` where the teacher's answers have another form than the student's."""
    student, teacher = unwrapped(student), unwrapped(teacher)
    if not isinstance(student, PreTrainedModel) or not isinstance(teacher, PreTrainedModel):
        return
    if "Classification" in type(student).__name__:
        _same("num_labels", student.config, teacher.config, "Take a teacher with the same labels.")
        _same("problem_type", student.config, teacher.config, "Take a teacher of the same task.")
    texts = _text_config(student), _text_config(teacher)
    _same("vocab_size", *texts, "Take a teacher with the same tokenizer.")
    if options.alpha_hidden > 0:
        _same("hidden_size", *texts, "Take a teacher of the same width, or set distil_alpha_hidden=0.")
        if options.tail_layers is not None:
            heights = [getattr(text, "num_hidden_layers", None) for text in texts]
            short = next((height for height in heights if height and height < options.tail_layers), None)
            if short is not None:
                raise ArgumentError(
                    _TEACHER,
                    f"tail_layers={options.tail_layers}, and one of the models has {short} layers.",
                    "Lower tail_layers.",
                )
        elif not options.learns_layer_map:
            _same(
                "num_hidden_layers",
                *texts,
                "Set `distil_layer_map='learned'`, which compares stacks of other heights, or `distil_alpha_hidden=0`.",
            )


def _text_config(model: PreTrainedModel) -> Any:
    config: Any = model.config
    return config.get_text_config(decoder=True) if config.is_encoder_decoder else config.get_text_config()


def _same(name: str, student: Any, teacher: Any, remedy: str) -> None:
    # A config holds what its model has: one of images has no vocabulary.
    own, other = getattr(student, name, None), getattr(teacher, name, None)
    if own is not None and other is not None and own != other:
        raise ArgumentError(_TEACHER, f"the teacher's {name} is {other}, the student's {own}.", remedy)
