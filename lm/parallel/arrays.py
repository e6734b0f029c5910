"""Types of arrays for signatures, beside jax.Array and np.ndarray."""

from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jax.core import ShapedArray

if TYPE_CHECKING:
    from jax.extend import core

AnyArray: TypeAlias = jax.Array | np.ndarray  # on a device or in the memory of Python

# Nested tuples, lists, dicts, dataclasses and nnx.States, whose leaves are arrays. No type checker can say more.
PyTree: TypeAlias = Any


def array_of(value: "core.Var | core.Literal") -> ShapedArray:
    """Return shape and dtype of a value of a traced program, which must be an array."""
    assert isinstance(value.aval, ShapedArray)
    return value.aval
