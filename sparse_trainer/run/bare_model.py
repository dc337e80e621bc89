"""The model of a Trainer as it was handed over, without what accelerate leaves on it."""

from transformers import PreTrainedModel, Trainer


def bare_model(trainer: Trainer, model: PreTrainedModel) -> PreTrainedModel:
    """Take off the mixed-precision wrapper that accelerate leaves on the model: it would be timed and compared, too.

    Its mark goes as well: accelerate 1.15 gives a marked model no wrapper, so that the next Trainer, whatever its
    `bf16`, would train it without autocast.
    """
    bare: PreTrainedModel = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    vars(bare).pop("_is_accelerate_prepared", None)
    return bare
