"""Hyperparameter search over options of pruning, beside those of the training."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformers.trainer_utils import HPSearchBackend

from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments

Space = Callable[[Any], Mapping[str, Any]]
"""Takes a trial, returns option -> value: the `hp_space` of `Trainer.hyperparameter_search`."""
_OPTIONS = frozenset(field.name for field in dataclasses.fields(SparseTrainingArguments))


class SearchSpace:
    """A search space of which Trainer gets its own options, and pruning the others.

    It is asked twice per trial: optuna answers the same both times.

    Args:
        space: The one of the user.
        before: What is pruned, where the space says nothing else.
        backend: Returns which library searches, once the search has begun.
    """

    def __init__(self, space: Space, before: SparseTrainingArguments, backend: Callable[[], Any]) -> None:
        self._space, self._before, self._backend = space, before, backend

    def training(self, trial: Any) -> dict[str, Any]:
        """Return the options of the training in a trial.

        Raises:
            ArgumentError: Another library than optuna searches options of pruning: what it is given are no values.
        """
        found = self._space(trial)
        own = sorted(_OPTIONS & found.keys())
        if own and not self._has_values:
            raise ArgumentError(
                "hp_space",
                f"only optuna searches options of pruning: {', '.join(own)}.",
                "Give backend='optuna', or leave them out.",
            )
        return {name: value for name, value in found.items() if name not in _OPTIONS}

    def pruning(self, trial: Any) -> SparseTrainingArguments:
        """Return what is pruned in a trial, and how.

        Raises:
            ArgumentError: A value that cannot be.
        """
        found = self._space(trial) if self._has_values else {}
        own = {name: value for name, value in found.items() if name in _OPTIONS}
        return dataclasses.replace(self._before, **own)

    @property
    def _has_values(self) -> bool:
        return bool(self._backend() == HPSearchBackend.OPTUNA)
