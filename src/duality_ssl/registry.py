"""Registries of what options name: who may have which name."""

from collections.abc import Collection
from typing import TypeVar

T = TypeVar("T")


def register(known: dict[str, T], name: str, value: T, reserved: Collection[str] = ()) -> None:
    """Give a class or function a name.

    Args:
        known: What has a name already; the new one is added to it.
        name: The name.
        value: The class or function. The same one may come again, as it does when a notebook's cell
            is run twice.
        reserved: Names that are taken, too.

    Raises:
        ValueError: If the name is taken.
    """
    if name in reserved or _place(known.get(name, value)) != _place(value):
        raise ValueError(
            f"Expected a new name, but {name!r} is taken: give the decorator another one."
        )
    known[name] = value


def _place(value: object) -> tuple[object, object]:
    """Where a class or function is defined; anything else is the same as itself alone."""
    return getattr(value, "__module__", None), getattr(value, "__qualname__", value)
