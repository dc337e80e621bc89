"""What a user registers under a name, checked alike for criteria, tasks and exports."""

from collections.abc import Collection, Iterable

from sparse_trainer.errors import ArgumentError


def check_entry(
    where: str, owner: type, has: Collection[str], wanted: Iterable[str], protocol: str, taken: type | None
) -> None:
    """Raise `ArgumentError` for a class that lacks a member, or whose name another class has.

    Args:
        where: What is registered, for messages.
        has: Names of the members that there are.
        wanted: Names of the members that there must be.
        protocol: What lists them.
        taken: The class that has the name by now, if any. A plugin that is loaded again makes its class again.
    """
    lacking = [member for member in wanted if member not in has]
    if lacking:
        raise ArgumentError(
            where, f"{owner.__name__} has no {', '.join(lacking)}.", f"Add what {protocol} lists."
        )
    if taken is not None and _full_name(taken) != _full_name(owner):
        raise ArgumentError(where, f"is taken by {_full_name(taken)}.", "Take another name.")


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
