"""Whether the program that is traced computes rows alone: batch-invariant, so the bits of a row do not depend on other rows."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_WEIGHTS: contextvars.ContextVar[str | None] = contextvars.ContextVar("weights", default=None)


@contextlib.contextmanager
def rows_alone(weights: str = "") -> Iterator[None]:
    """While a model is traced in this context, the bits of a row do not depend on the number of rows, on one device.

    weights: "" in an engine, whose matrices are packed. Where a model is trained, the dtype to which matrices are rounded: what
      it computes in float32 are then the values of the engine with such weights (lm/kernels/cpu/alone.py).
    """
    token = _WEIGHTS.set(weights)
    try:
        yield
    finally:
        _WEIGHTS.reset(token)


def rows_are_alone() -> bool:
    """Return whether the program that is traced computes rows alone."""
    return _WEIGHTS.get() is not None and jax.sharding.get_abstract_mesh().size <= 1


def rounded_weights() -> str:
    """Return the dtype to which matrices are rounded in training with the values of an engine; "" elsewhere."""
    return (_WEIGHTS.get() or "") if rows_are_alone() else ""
