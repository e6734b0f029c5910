"""Run the policy and its reference with one compiled program, so that results differ only if parameters do.

XLA compiles a forward pass with a gradient differently from one without: in bfloat16 it skips other roundings. Then the same
parameters give different results (margins of 0.015 instead of 0). So both models run as iterations of one loop, whose body is
compiled once. The gradient is computed inside the policy's iteration, so only the measured values pass between iterations.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from lm.model.linear import trainable
from lm.model.transformer import Transformer
from lm.train.start import initial_params
from lm.train.step import model_config_of

Measure = Callable[[Transformer], tuple[Any, Any]]
Compare = Callable[[tuple[Any, Any], tuple[Any, Any]], tuple[jax.Array, Any]]


def starting_point(config, mesh: Mesh) -> nnx.State:
    """Return the reference of a run: its trainable parameters before the first step, on the current mesh."""
    return nnx.filter_state(initial_params(config, mesh), trainable(model_config_of(config)))


def compare_with_reference(measure: Measure, compare: Compare, model: Transformer, frozen: nnx.State) -> tuple[jax.Array, Any]:
    """Return compare(measure(model), measure(reference)), differentiable in the model's trainable parameters.

    measure(model) returns (arrays with a gradient, other arrays), and compare(policy, reference) (scalar, other arrays). The
    reference and the other arrays are constants. frozen: the trainable parameters of the reference.
    A step costs one forward and backward pass of the policy and one forward pass of the reference.
    """
    graph, params = nnx.split(model)
    learns, rest = nnx.split_state(params, trainable(model.config), ...)
    leaves, tree = jax.tree.flatten(learns)

    def measured(leaves: list[jax.Array]):
        return measure(nnx.merge(graph, nnx.merge_state(jax.tree.unflatten(tree, leaves), rest)))

    return _compared(measured, compare, leaves, jax.tree.leaves(frozen))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _compared(measured, compare, policy: list[jax.Array], reference: list[jax.Array]):
    def turn(n, before):
        return before[1], measured(_of_turn(n, policy, reference))

    one = _zeros(jax.eval_shape(measured, policy))
    of_reference, of_policy = lax.fori_loop(0, 2, turn, (one, one))
    return compare(of_policy, of_reference)


def _forward(measured, compare, policy, reference):
    """Return the value and its gradient, so that the residuals live only in the policy's iteration."""

    def turn(n, before):
        of_reference, result = before
        found, pullback, others = jax.vjp(measured, _of_turn(n, policy, reference), has_aux=True)

        def learnt():
            (total, sums), cotangents = jax.value_and_grad(lambda x: compare((x, others), of_reference), has_aux=True)(found)
            return (total, sums), pullback(cotangents)[0]

        return (found, others), lax.cond(n == 1, learnt, lambda: result)

    one = _zeros(jax.eval_shape(measured, policy))
    value = _zeros(jax.eval_shape(compare, one, one))
    gradient = _zeros(jax.eval_shape(lambda x: x, policy))
    return lax.fori_loop(0, 2, turn, (one, (value, gradient)))[1]


def _backward(measured, compare, gradient, cotangents):
    return [x * cotangents[0].astype(x.dtype) for x in gradient], None


_compared.defvjp(_forward, _backward)


def _of_turn(n, policy: list[jax.Array], reference: list[jax.Array]) -> list[jax.Array]:
    """Return the parameters of iteration n: 0 is the reference, 1 the policy."""
    return [jnp.where(n == 1, ours, theirs) for ours, theirs in zip(policy, reference, strict=True)]


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding and x.sharding.spec), shapes)
