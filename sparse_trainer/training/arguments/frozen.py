"""What a user can ask of gates on a model whose weights stay as they are."""

from collections.abc import Collection
from dataclasses import dataclass

from patchers.patching.scales import takes_scales
from patchers.units import KINDS, Kind
from sparse_trainer.criteria.training.base import ReadsGradients, StartsAt, TrainingCriterion
from sparse_trainer.criteria.training.one_shot import OneShot
from sparse_trainer.criteria.training.registry import read_scoring
from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import check_positive, option

_SCALES_DEFAULT = 1e-2


@dataclass(kw_only=True)
class FrozenArguments:
    """Options of frozen weights, and of scales that learn beside gates."""

    freeze_weights: bool = option(False, "Only gates learn (and scales); no weight is trained.")
    learn_scales: bool = option(
        False, "Each head and channel learns a scale beside its gate, which the cut folds into the weights."
    )
    start_scoring: str | None = option(
        None,
        "movement, l0: the criterion of one-shot pruning, such as fisher, in whose order scores start; it is taken on"
        " calibration_samples training rows.",
    )
    scale_learning_rate: float = option(_SCALES_DEFAULT, "Learning rate of the scales.")

    def check_frozen(self, criterion: TrainingCriterion, scoring: str, *, masks: bool, cheaper: bool) -> None:
        """Raise `ArgumentError` where nothing would learn, or something would need weights that do.

        Args:
            criterion, scoring: What scores units, and its name.
            masks: Whether weights are masked instead of units gated.
            cheaper: Whether cheaper layers are blended in.
        """
        check_positive("scale_learning_rate", self.scale_learning_rate)
        if self.scale_learning_rate != _SCALES_DEFAULT and not self.learn_scales:
            raise ArgumentError(
                "scale_learning_rate", "no scale is learned.", "Set `learn_scales=True`, or drop it."
            )
        asked = next((name for name in ("freeze_weights", "learn_scales") if getattr(self, name)), None)
        if asked is not None and masks:
            raise ArgumentError(
                asked, "goes with gates, and weight masks are asked for.", "Drop one of the two."
            )
        if not self.freeze_weights:
            return
        if cheaper:
            raise ArgumentError(
                "freeze_weights", "weights have to learn to do with cheaper layers.", "Drop `cheaper`."
            )
        if isinstance(criterion, ReadsGradients):
            raise ArgumentError(
                "freeze_weights",
                f"{scoring} reads gradients of weights or adapters, and there would be none.",
                "Score by l0 or movement.",
            )
        if not (criterion.learns or self.learn_scales):
            raise ArgumentError(
                "freeze_weights",
                f"nothing would learn: {scoring} learns no scores.",
                "Score by l0 or movement, set `learn_scales=True`, or prune in one shot (sparse-trainer prune).",
            )

    @property
    def start(self) -> OneShot | None:
        """Where learned scores start, if anywhere but where the criterion lets them.

        Raises:
            ArgumentError: no criterion of one-shot pruning.
        """
        if self.start_scoring is None:
            return None
        try:
            found = read_scoring(self.start_scoring)
        except ArgumentError as error:
            raise ArgumentError("start_scoring", f"{error.where}: {error.what}", error.remedy) from error
        if not isinstance(found, OneShot):
            raise ArgumentError(
                "start_scoring",
                f"{self.start_scoring} scores while a model trains.",
                "Name a criterion of one-shot pruning, e.g. fisher.",
            )
        return found

    def check_start(self, criterion: TrainingCriterion, scoring: str, kinds: Collection[Kind]) -> None:
        """Raise `ArgumentError` for a start that nothing can start at, or that says nothing of some units.

        Args:
            criterion, scoring: What scores units, and its name.
            kinds: Kinds of unit that are pruned.
        """
        start = self.start
        if start is None:
            return
        if not isinstance(criterion, StartsAt):
            raise ArgumentError(
                "start_scoring",
                f"the scores of {scoring} start where it lets them.",
                "Score by l0 or movement.",
            )
        unscored = next((kind for kind in kinds if kind not in start.kinds), None)
        if unscored is not None:
            raise ArgumentError(
                "start_scoring",
                f"{self.start_scoring} does not score {unscored}.",
                f"Take {str(unscored)!r} out of `units`, or name another criterion.",
            )

    def check_scaled(self, kinds: Collection[Kind]) -> None:
        """Raise `ArgumentError` where no unit has a weight that its scale could be folded into.

        Args:
            kinds: Kinds of unit that are pruned.
        """
        if self.learn_scales and not any(map(takes_scales, kinds)):
            able = " or ".join(kind for kind in KINDS if takes_scales(kind))
            raise ArgumentError(
                "learn_scales",
                f"no weight reads {' or '.join(kinds)}: their scales could not be folded.",
                f"Prune {able} too, or drop it.",
            )
