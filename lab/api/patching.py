"""How moto is changed in place: every point is checked to exist, and to look as expected, before it is replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class PatchPointError(RuntimeError):
    """A point of moto that the lab replaces is not there or takes other parameters: this moto is another version."""


def replace(owner: Any, name: str, make: Callable[[Any], Any], *, parameters: str | None = None) -> None:
    """Replace ``owner.name`` by ``make(original)``.

    Args:
        owner: a module or a class of moto.
        name: attribute to replace; it must exist.
        make: receives the original and returns the replacement.
        parameters: names that the original must take, separated by blanks, in order; None leaves this unchecked.

    Raises:
        PatchPointError: when the point is missing or its parameters differ.
    """
    where = f"{getattr(owner, '__module__', '')}.{owner.__name__}".lstrip(".")
    original = inspect.getattr_static(owner, name, None)
    if original is None:
        raise PatchPointError(f"{where} has no {name}: the lab needs the moto version in requirements/")
    if parameters is not None:
        present = list(inspect.signature(original).parameters)
        if present[: len(parameters.split())] != parameters.split():
            raise PatchPointError(
                f"{where}.{name} takes ({', '.join(present)}), not ({parameters}): another moto version"
            )
    setattr(owner, name, make(original))
