"""Which values of a test's parameter `make test` leaves to `make test-slow`."""

from collections.abc import Iterable

import pytest


def all_but(quick: Iterable, values: Iterable) -> list:
    """Return the values for `pytest.mark.parametrize`, marked as slow unless they are in `quick`."""
    values, quick = list(values), list(quick)
    assert all(value in values for value in quick), f"not among the values: {quick}"
    return [value if value in quick else pytest.param(*_arguments(value), marks=pytest.mark.slow) for value in values]


def _arguments(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)
