"""How the Trainers of a run train: no step too many where they resume, and with a whole model at the end."""

import copy
from typing import Any

from transformers import Trainer

from patchers.patching.shards import copy_whole
from sparse_trainer.run.bare_model import bare_model
from sparse_trainer.training.checkpoint import is_over
from sparse_trainer.training.sharding import is_fsdp


def dense_trainer(base: type[Trainer]) -> type[Trainer]:
    """Return a Trainer that takes no step too many where it resumes."""

    class DenseTrainer(base):  # type: ignore[misc, valid-type]
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            """Return the batches of the next step: none where all steps are taken."""
            over = is_over(self.state, self.callback_handler.callbacks)
            return ([], None) if over else super().get_batch_samples(*args, **kwargs)

    return DenseTrainer


def trained_whole(trainer: Trainer, checkpoint: str | None) -> Any:
    """Train, and return the model as it lies whole in every process: where FSDP shares it out, in a copy."""
    model: Any = trainer.model
    whole = copy.deepcopy(model) if is_fsdp(trainer.accelerator) else None
    trainer.train(resume_from_checkpoint=checkpoint)
    if whole is None:
        return bare_model(trainer, model)
    shared: Any = trainer.model
    copy_whole(shared, whole)
    return whole
