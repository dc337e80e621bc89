"""What a plan records of a search for widths."""

from typing import TypedDict


class Searched(TypedDict):
    """How widths were searched for, and what was found on the way."""

    method: str
    """dp or evolve."""
    tokens: int
    """Calibration tokens that losses were measured on."""
    seconds: float
    expected: float
    """What the widths that were chosen lose, were losses of single groups to add up."""
    measured: float | None
    """What the model with these widths loses on the same tokens; None where only single groups were tried."""
    losses: dict[str, list[tuple[int, float]]]
    """Units that stay, and what the model loses by that alone, level by level, by group name."""


def are_searches(value: object) -> bool:
    """Tell whether JSON values can be a list of these."""
    if not isinstance(value, list | tuple):
        return False
    return all(
        isinstance(each, dict)
        and set(each) == set(Searched.__annotations__)
        and isinstance(each["method"], str)
        and all(_is_number(each[name]) for name in ("tokens", "seconds", "expected"))
        and (each["measured"] is None or _is_number(each["measured"]))
        and isinstance(each["losses"], dict)
        and all(map(_are_levels, each["losses"].values()))
        for each in value
    )


def _are_levels(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_number, pair)) for pair in value
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
