"""Checks of constructor arguments that the core, the models and the data modules share."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def check_sizes(*, minimum: int = 1, **sizes: Any) -> None:
    """Check that every size is a whole number of at least ``minimum``.

    Args:
        minimum: Smallest size that is accepted.
        sizes: Values by the names that the caller's user knows them by.

    Raises:
        ValueError: A size is no whole number or is too small; the message names it.
    """
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
            raise ValueError(f"{name} must be a whole number of at least {minimum}, not {value!r}")


def check_given(*, minimum: int = 1, **sizes: Any) -> None:
    """:func:`check_sizes` for those sizes that are not None."""
    check_sizes(minimum=minimum, **{name: value for name, value in sizes.items() if value is not None})
