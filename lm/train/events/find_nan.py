"""Name the first tensor that is not finite in a training step: config.find_nan.

A skipped step leaves the parameters as they were, so the loss and its gradient can be computed again: an operation (an equation
of the jaxpr) at a time, with a look at each result. The first operation with a NaN in its result and none in its operands is
named, and likewise for infinities. Scans, such as that over the layers, are computed an iteration at a time, so the layers are
always scanned here, whatever config.model.scan_layers is; nothing is recomputed, and slices of the batch are searched one after
another.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax import lax
from jax.extend import core, source_info_util

from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.parallel.arrays import PyTree, array_of
from lm.runs.checkpoint import named, plain
from lm.train.loop import Event, Run
from lm.train.step import Batch, Objective, model_config_of, slices
from lm.train.update import TrainState

INLINE = ("jit", "pjit", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "closed_call", "core_call")
KINDS = {"NaN": jnp.isnan, "infinity": jnp.isinf}
STACK = "(repeated)"  # the function of lm/model/execution.py that scans the layers


class FindNan(Event):
    """Says which tensor of a failed step was not finite first."""

    def after(self, run: Run, step: int) -> None:
        if run.batch is None or np.isfinite([run.device_metrics["loss"], run.device_metrics["grad_norm"]]).all():
            return
        for text in explain(run.config, run.trainer.objective, run.state, run.batch, run.frozen):
            run.log.say(f"step {step}: {text}")


class Place(NamedTuple):
    """Where an operation is. scopes: the functions around it. iterations: of the scans around it, such as "layers 3 of 8"."""

    scopes: tuple[str, ...] = ()
    iterations: tuple[str, ...] = ()


Firsts = dict[str, tuple[core.JaxprEqn, Place]]  # by kind: the first operation with it in a result and not in its operands


def explain(
    config: ml_collections.ConfigDict, objective: Objective, state: TrainState, batch: Batch, frozen: PyTree = None
) -> list[str]:
    """Return lines that name what is not finite in the step that `state` has just skipped. Every process calls it."""
    bad = unclean(state.params) + [f"batch {name}" for name, x in batch.items() if _has(x, "NaN") or _has(x, "infinity")]
    if bad:
        return [f"find_nan: not finite before the step: {', '.join(bad[:8])}" + (", …" if len(bad) > 8 else "")]
    model = dataclasses.replace(model_config_of(config), scan_layers=True, remat="none", offload=False)
    graph, learns = skeleton(model)[0], trainable(model)
    params, rest = nnx.split_state(state.params, learns, ...)
    key = jax.random.fold_in(jax.random.key(config.seed), state.step - 1)
    repeats = [count for _, count in model.stacks]

    def loss(params: nnx.State, rest: nnx.State, batch: Batch, frozen: PyTree, weight: jax.Array) -> jax.Array:
        total, sums = objective.loss(nnx.merge(graph, nnx.merge_state(params, rest)), batch, frozen, train=True, key=key)
        return total / weight

    parts = slices(batch, max(1, config.accumulate))
    for n in range(max(1, config.accumulate)):
        part = jax.tree.map(functools.partial(_at, n=n), parts)
        arguments = params, rest, part, frozen, objective.weight(batch)
        traced, firsts = jax.make_jaxpr(jax.value_and_grad(loss))(*arguments), Firsts()
        results = evaluated(traced.jaxpr, traced.consts, jax.tree.leaves(arguments), Place(), firsts)
        reached = [kind for kind in KINDS if any(_has(x, kind) for x in results)]  # an infinity in a mask reaches no result
        if reached:
            kinds = [kind for kind in KINDS if kind in firsts and (kind in reached or "NaN" in reached)]
            return [f"find_nan: the first {kind} is {described(*firsts[kind], repeats)}" for kind in kinds]
    return ["find_nan: loss and gradient are finite when they are computed again without the optimizer"]


def unclean(params: nnx.State) -> list[str]:
    """Return the names of parameters that are not finite, with the layers for those of a stack."""
    found = []
    for name, x in named(plain(params)).items():
        if not jnp.issubdtype(x.dtype, jnp.inexact) or not (_has(x, "NaN") or _has(x, "infinity")):
            continue
        bad = jax.jit(lambda x: ~jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim))))(x) if "stacks" in name else []
        layers = [str(i) for i in np.flatnonzero(np.asarray(bad))]
        found.append(f"parameter {name}" + (f" of layer {', '.join(layers)}" if layers else ""))
    return found


def evaluated(
    jaxpr: core.Jaxpr, consts: Sequence[jax.Array], values: Sequence[jax.Array], place: Place, firsts: Firsts
) -> list[jax.Array]:
    """Return the results of a jaxpr for `values`, and note in `firsts` what is not finite. place: of the jaxpr."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))

    def read(atom: core.Var | core.Literal) -> jax.Array:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    last_use = {x: n for n, equation in enumerate(jaxpr.eqns) for x in equation.invars if isinstance(x, core.Var)}
    last_use |= {x: len(jaxpr.eqns) for x in jaxpr.outvars if isinstance(x, core.Var)}
    for n, equation in enumerate(jaxpr.eqns):
        operands, name, params = [read(atom) for atom in equation.invars], equation.primitive.name, equation.params
        inside = place._replace(scopes=(*place.scopes, str(equation.source_info.name_stack)))
        inner = next((params[key] for key in ("jaxpr", "call_jaxpr") if key in params), None)
        if name == "scan":
            results = _scanned(equation, operands, inside, firsts)
        elif name in INLINE and inner is not None:
            results = evaluated(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands, inside, firsts)
        else:
            results = _computed(equation, operands)
            for kind in KINDS.keys() - firsts.keys():
                if any(_has(x, kind) for x in results) and not any(_has(x, kind) for x in operands):
                    firsts[kind] = equation, inside
        known |= dict(zip(equation.outvars, results, strict=True))
        for x in (x for x in (*equation.invars, *equation.outvars) if isinstance(x, core.Var) and last_use.get(x, n) == n):
            known.pop(x, None)  # frees its memory
    return [read(atom) for atom in jaxpr.outvars]


def _computed(equation: core.JaxprEqn, operands: list[jax.Array]) -> list[jax.Array]:
    """Return the results of an operation other than a scan or a call."""
    bound = equation.primitive.get_bind_params(equation.params)
    compute = functools.partial(equation.primitive.bind, **(bound if isinstance(bound, dict) else bound[1]))

    def results(*operands: jax.Array) -> list[jax.Array]:
        return list(compute(*operands)) if equation.primitive.multiple_results else [compute(*operands)]

    # The map of pipeline stages leaves axes to the compiler, so it must be compiled.
    with equation.ctx.manager:  # its mesh, whose axes are not explicit for some operations
        return (jax.jit(results) if equation.primitive.name == "shard_map" else results)(*operands)


def _scanned(equation: core.JaxprEqn, operands: list[jax.Array], place: Place, firsts: Firsts) -> list[jax.Array]:
    """Return the results of a scan, computed an iteration at a time."""
    of = equation.params
    body, length, constants, carried = of["jaxpr"], of["length"], of["num_consts"], of["num_carry"]
    fixed, carry, stacked = operands[:constants], operands[constants : constants + carried], operands[constants + carried :]
    outputs: list[list[jax.Array]] = [[] for _ in equation.outvars[carried:]]
    for n in range(length):
        i = length - 1 - n if of["reverse"] else n
        name = f"{'layers' if STACK in _source(equation) else 'iteration'} {i} of {length}"
        inside = place._replace(iterations=(*place.iterations, name))
        results = evaluated(body.jaxpr, body.consts, [*fixed, *carry, *(_at(x, n=i) for x in stacked)], inside, firsts)
        carry = results[:carried]
        for output, result in zip(outputs, results[carried:], strict=True):
            output.append(result)
    return [*carry, *(jnp.stack(output[::-1] if of["reverse"] else output) for output in outputs)]


def described(equation: core.JaxprEqn, place: Place, repeats: list[int]) -> str:
    """Return a description of an operation: the part of the step, layer, scope, result and place in the source."""
    part = "the gradient" if any("transpose" in scope for scope in place.scopes) else "the forward pass"
    names = [name for scope in place.scopes for name in scope.replace("(", "/").replace(")", "/").split("/")]
    noise = ("", "jvp", "transpose", "rematted_computation", "checkpoint")
    scope = "/".join(dict.fromkeys(name for name in names if name not in noise))
    shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in map(array_of, equation.outvars))
    layers = ", ".join(place.iterations).replace("layers ", "layer " if len(repeats) == 1 else "block ")
    where = ", ".join(filter(None, [f"in {part}", layers, scope]))
    return f"{where}: the result {shapes} of {equation.primitive.name} at {_source(equation)}"


@functools.partial(jax.jit, static_argnums=1)
def _flag(x: jax.Array, kind: str) -> jax.Array:
    return jnp.any(KINDS[kind](summed(x)))


def summed(x: jax.Array) -> jax.Array:
    """Return the sum over the devices where each of them holds a part of it, as of some gradients before they are reduced."""
    spec = jax.typeof(x).sharding.spec
    return jax.sharding.reshard(x, spec.update(unreduced=frozenset())) if spec.unreduced else x


def _has(x: jax.Array, kind: str) -> bool:
    if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        return False
    with jax.sharding.use_abstract_mesh(jax.typeof(x).sharding.mesh):
        return bool(_flag(x, kind))


@jax.jit
def _at(x: jax.Array, n: int) -> jax.Array:
    return lax.dynamic_index_in_dim(x, n, keepdims=False)


def _source(equation: core.JaxprEqn) -> str:
    return source_info_util.summarize(equation.source_info)
