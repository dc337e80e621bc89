"""Drawing how wide the layers of a plan are; figures of matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_trainer.plan.document import GroupPlan


def panels(count: int, height: float = 2.4) -> tuple[Any, Sequence[Any]]:
    """Return a figure with panels one below the other, each of so many inches."""
    # Slow to import, and few runs draw.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + height * count), layout="constrained")
    return figure, list(figure.subplots(max(count, 1), 1, squeeze=False)[:, 0])


def widths_figure(kinds: Mapping[str, Sequence[GroupPlan]]) -> Any:
    """Return a figure of how many units every layer keeps, one panel per kind of unit.

    Args:
        kinds: The groups of each kind, in the order of the layers.
    """
    figure, axes = panels(len(kinds))
    for axis, (kind, groups) in zip(axes, kinds.items(), strict=False):
        places = range(len(groups))
        axis.bar(places, [g["size"] for g in groups], color="lightgrey", label="before")
        axis.bar(places, [len(g["keep"]) for g in groups], color="tab:blue", label="kept")
        axis.set_xticks(places, [str(g["layer"]) for g in groups], fontsize=7)
        axis.set_title(kind, loc="left", fontsize=10)
        axis.set_ylabel("units", fontsize=8)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=7, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    figure.supxlabel("layer", fontsize=8)
    return figure
