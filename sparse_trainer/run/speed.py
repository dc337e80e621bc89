"""The speed-up of a finished model, measured beside the dense one and written into its plan."""

import logging
from dataclasses import replace

from transformers import PreTrainedModel

from sparse_trainer.budget.latency.trial import TOLERANCE, time_pair
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.cut.record import attach_plan, plan_of
from sparse_trainer.plan.parts import Speed

logger = logging.getLogger(__name__)


def measure_speed(dense: PreTrainedModel, pruned: PreTrainedModel, target: TimeTarget) -> None:
    """Time a finished model and the dense one in turn; its plan says what came out, and the user what was missed.

    Nothing is timed where the table is that of another device.
    """
    plan = plan_of(pruned)
    if plan is None or plan.speed is None or target.is_foreign:
        return
    pair = time_pair(dense, pruned, target)
    speed: Speed = {
        **plan.speed,
        "speedup_measured": pair.speedup,
        "milliseconds": {"dense": 1e3 * pair.dense, "compact": 1e3 * pair.pruned},
        "noise": pair.noise,
    }
    attach_plan(pruned, replace(plan, speed=speed))
    if abs(pair.excess(target)) > TOLERANCE:
        logger.warning(
            "%s is missed by %.0f %%: measured %.4g ms, %.3g times faster than dense (uncertain by %.0f %%).",
            target.asked,
            100 * pair.excess(target),
            1e3 * pair.pruned,
            pair.speedup,
            100 * pair.noise,
        )
