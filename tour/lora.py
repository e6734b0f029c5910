"""Low-rank adapters (Hu et al. 2021): the weights W stay, and A·B is added to them, of which only A and B learn."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tour.mesh import make_mesh, spec
from tour.model import TINY, Batch, Config, Params, Weight, declare, init
from tour.optimizers import Recipe, matrix_shape
from tour.pretrain import Loss, fit, next_token_loss
from tour.sft import rows


def declare_adapters(config: Config, rank: int, targets: tuple = ("query", "key", "value", "output")) -> Params:
    """Return the matrices A [L, inputs, rank] and B [L, rank, outputs] of each target. B begins at 0."""
    adapters = {}
    for name in targets:
        w = declare(config)["layers"][name]
        end, std = 1 + w.inputs, (3 * matrix_shape(w)[1]) ** -0.5
        a = Weight((*w.shape[:end], rank), (*w.axes[:end], "rank"), std)
        b = Weight((w.shape[0], rank, *w.shape[end:]), ("layers", "rank", *w.axes[end:]), 0.0)
        adapters[name] = {"a": a, "b": b}
    return adapters


def merged(params: Params, adapters: Params, config: Config, scale: float = 1.0) -> Params:
    """Return the model's weights with W + scale · A·B in place of each W that has an adapter."""
    layers = dict(params["layers"])
    for name, adapter in adapters.items():
        w = declare(config)["layers"][name]
        into, out_of = "ij"[: w.inputs], "xy"[: len(w.shape) - 1 - w.inputs]  # letters of inputs and outputs
        equation = f"l{into}r,lr{out_of}->l{into}{out_of}"
        product = jnp.einsum(equation, adapter["a"], adapter["b"], out_sharding=spec(*w.axes))
        layers[name] = layers[name] + scale * product
    return params | {"layers": layers}


def lora_loss(loss: Loss, config: Config, adapters: Params, batch: Batch, frozen: Any, scale: float = 1.0) -> tuple:
    """Return `loss` of the model with adapters; frozen: the model's weights, and what `loss` itself calls frozen.

    x·(W + A·B) = x·W + (x·A)·B. The first form is shorter; the second, which lm/model/linear.py computes, needs no
    sum as large as W, and works with a quantized W.
    """
    params, rest = frozen
    return loss(merged(params, adapters, config, scale), batch, rest)


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    params, weights = init(declare(TINY), 0), declare_adapters(TINY, rank=4)
    params["head"] *= 300  # this model has learnt nothing, and its head is too small to tell its layers anything
    batch = rows([(list(b"hello? "), list(b"Hello!"))] * 8, 16)
    loss = functools.partial(lora_loss, functools.partial(next_token_loss, TINY), TINY)
    fit(loss, weights, init(weights, 1), Recipe(40, 0.01), lambda n, _: batch, frozen=(params, None))
