"""Weights as integers of 8 or 4 bits with scales: a quarter or an eighth of the memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tour.mesh import make_mesh, spec
from tour.model import TINY, Config, Params, Weight, by_weight, declare, init
from tour.optimizers import matrix_shape

LARGEST = {8: 127, 4: 7}


class Integers(NamedTuple):
    """A weight w ≈ q · s. integers q: int8 [M, groups, inputs of a group, outputs], M matrices; scale s: bfloat16."""

    integers: jax.Array
    scale: jax.Array


def quantize(w: Weight, x: jax.Array, bits: int, group: int = 0) -> Integers:
    """Return the integers q = round(w / s), with s = max|w| / 127 (8 bits) or / 7 of the weights that share a scale.

    An output has a scale for each `group` inputs; 0: one for all. So |w − q·s| ≤ s/2. The scale is rounded to bfloat16
    before w is divided by it, so that this holds for what is stored.
    """
    matrices, inputs, outputs = matrix_shape(w)
    x = jnp.asarray(np.asarray(x, np.float32).reshape(matrices, -1, group or inputs, outputs))
    largest = jnp.max(jnp.abs(x), axis=2, keepdims=True) / LARGEST[bits]
    scale = jnp.maximum(largest, jnp.finfo(jnp.bfloat16).tiny).astype(jnp.bfloat16)
    integers = jnp.clip(jnp.round(x / scale.astype(jnp.float32)), -LARGEST[bits], LARGEST[bits])
    return Integers(integers.astype(jnp.int8), scale)


def quantize_model(params: Params, config: Config, bits: int, group: int = 0) -> Params:
    """Return the weights with the matrices of layers as Integers. Norms, embeddings and head stay."""
    return by_weight(lambda w, x: quantize(w, x, bits, group) if w.inputs else x, declare(config), params)


def dequantize_model(params: Params, config: Config) -> Params:
    """Return the weights q · s as floats, as products use them."""

    def floats(w: Weight, x: Any) -> jax.Array:
        if not isinstance(x, Integers):
            return x
        return jax.sharding.reshard((x.integers * x.scale.astype(jnp.float32)).reshape(w.shape), spec(*w.axes))

    return by_weight(floats, declare(config), params)


def megabytes(params: Params, bits: int = 8) -> float:
    """Return the size of weights, where Integers take this many bits: two of 4 bits share a byte."""
    sizes = [x.nbytes * bits / 8 if x.dtype == jnp.int8 else x.nbytes for x in jax.tree.leaves(params)]
    return sum(sizes) / 1e6


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    params = init(declare(TINY), seed=0)
    for bits, group in ((8, 0), (4, 32)):
        small = quantize_model(params, TINY, bits, group)
        gap = np.abs(dequantize_model(small, TINY)["layers"]["up"] - params["layers"]["up"]).max()
        print(f"int{bits}: {megabytes(small, bits):.2f} MB, largest error {gap:.5f}")
