"""Drawing how wide the layers of a plan are; figures of matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_trainer.files.figures import BEFORE, GONE, KEPT, look, numbered, panels
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.parts import GroupPlan


def title_of(plan: Plan, method: str | None = None) -> str:
    """Return what pictures of a plan are called: model, method, density.

    Args:
        method: What is said instead of the plan's own.
    """
    reached = "" if plan.density_reached is None else f", density {plan.density_reached:.2f}"
    return f"{plan.model or plan.architecture}, {method or plan.method}{reached}"


@look()
def widths_figure(kinds: Mapping[str, Sequence[GroupPlan]], title: str = "") -> Any:
    """Return a figure of how many units every layer keeps, one panel per kind of unit.

    Layers and branches are there or gone: they are a strip.

    Args:
        kinds: The groups of each kind, in the order of the layers.
        title: What stands above; `title_of` a plan.
    """
    figure, axes = panels([0.8 if is_strip(groups) else 1.9 for groups in kinds.values()], title)
    for axis, (kind, groups) in zip(axes, kinds.items(), strict=False):
        kept, size = [len(g["keep"]) for g in groups], [g["size"] for g in groups]
        places = range(len(groups))
        if is_strip(groups):
            draw_strip(axis, groups)
        else:
            axis.bar(places, size, color=BEFORE, label="before", width=0.9)
            axis.bar(places, kept, color=KEPT, label="kept", width=0.9)
            axis.yaxis.get_major_locator().set_params(integer=True)
            axis.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0)
        axis.set_title(share_kept(kind, sum(kept), sum(size)))
        number_layers(axis.xaxis, groups)
        axis.margins(x=0.01)
    if kinds:
        axes[-1].set_xlabel("layer")
    return figure


def share_kept(kind: str, kept: int, size: int) -> str:
    """Return the title of a panel.

    >>> share_kept("channels", 9216, 36864)
    'channels: 9,216 of 36,864 kept (25 %)'
    """
    return f"{kind}: {kept:,} of {size:,} kept ({100 * kept / max(size, 1):.0f} %)"


def number_layers(axis: Any, groups: Sequence[GroupPlan]) -> None:
    """Put the numbers of the layers at an axis with a place for each group, as many as there is room for."""
    numbered(axis, [str(group["layer"]) for group in groups])


def draw_strip(axis: Any, groups: Sequence[GroupPlan]) -> None:
    """Draw groups of one unit each: blue stays, red is gone."""
    colours = [KEPT if group["keep"] else GONE for group in groups]
    axis.bar(range(len(groups)), [1] * len(groups), color=colours, width=0.9)
    axis.set_yticks([])
    axis.set_ylim(0, 1)


def is_strip(groups: Sequence[GroupPlan]) -> bool:
    """Tell whether there is one unit in each group: layers and branches."""
    return all(group["size"] == 1 for group in groups)
