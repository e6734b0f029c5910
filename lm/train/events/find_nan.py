"""Name the first tensor that is not finite in a training step: config.find_nan.

A skipped step leaves the parameters as they were, so the loss and its gradient can be computed again, as a list of operations
(a jaxpr) that is searched for the first one with a NaN in its result and none in its operands, and likewise for infinities. One
program computes all operations and a flag for each. If the operation is a scan, such as that over the layers, its iterations
are computed one by one, and the one that fails is searched in the same way. So the layers are always scanned here, whatever
config.model.scan_layers is; nothing is recomputed, and slices of the batch are searched one after another.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

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


Name: TypeAlias = int  # of a value
Atom: TypeAlias = Name | core.Literal  # what an operation reads


class Operation(NamedTuple):
    """An equation of a jaxpr whose calls are inlined. read, written: names of the operands and results in `values`."""

    equation: core.JaxprEqn
    scope: str
    read: list[Atom]
    written: list[Name]


class Found(NamedTuple):
    """Where the first value that is not finite was found."""

    operation: Operation
    iterations: list[str]  # the scans around it, such as "layer 3"


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

    parts = slices(batch, config.accumulate)
    for n in range(config.accumulate):
        part = jax.tree.map(functools.partial(_at, n=n), parts)
        arguments = params, rest, part, frozen, objective.weight(batch)
        traced = jax.make_jaxpr(jax.value_and_grad(loss))(*arguments)
        for kind in ("NaN", "infinity"):
            if found := search(traced, jax.tree.leaves(arguments), kind):
                lines = [f"find_nan: the first {kind} is {described(found, repeats)}"]
                if kind == "NaN" and (inf := search(traced, jax.tree.leaves(arguments), "infinity", ends=False)):
                    lines.append(f"find_nan: the first infinity is {described(inf, repeats)}")
                return lines
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


def search(
    jaxpr: core.ClosedJaxpr, values: Sequence[jax.Array], kind: str, reached: tuple[str, ...] = (), *, ends: bool = True
) -> Found | None:
    """Return the first operation with a `kind` in its result and none in its operands; None if there is none.

    A scan is searched inside. values: of the jaxpr's inputs. reached: names of the scans around it. ends: None also if the
    results of the jaxpr have none of the kind: an infinity in a mask ends nowhere.
    """
    operations, first, last, constants = inlined(jaxpr)
    inputs = dict(zip(first, values, strict=True)) | constants

    def computed(inputs: Mapping[Name, jax.Array], wanted: Sequence[Atom]) -> tuple[list[list[jax.Array]], list[jax.Array]]:
        known = dict(inputs)
        flags = []
        for operation in operations:
            results = _evaluate(
                operation.equation, [known[name] if isinstance(name, int) else name.val for name in operation.read]
            )
            known |= dict(zip(operation.written, results, strict=True))
            flags.append([_flag(x, kind) for x in results])
        return flags, [known[name] if isinstance(name, int) else name.val for name in wanted]

    flags, _ = jax.jit(functools.partial(computed, wanted=[]))(inputs)
    bad = {name for name, x in inputs.items() if _has(x, kind)}
    flags = jax.device_get(flags)
    ending = {name for operation, some in zip(operations, flags) for name, flag in zip(operation.written, some) if flag}
    if ends and not ending & {name for name in last if isinstance(name, int)}:
        return None
    for operation, some in zip(operations, flags, strict=True):
        written = {name for name, flag in zip(operation.written, some, strict=True) if flag}
        bad |= written
        clean = not any(name in bad if isinstance(name, int) else bool(_flag(name.val, kind)) for name in operation.read)
        if written and clean:
            if operation.equation.primitive.name != "scan":
                return Found(operation, list(reached))
            operands = jax.jit(functools.partial(computed, wanted=operation.read))(inputs)[1]
            return _in_scan(operation, operands, kind, reached) or Found(operation, list(reached))
    return None


def _in_scan(operation: Operation, operands: list[jax.Array], kind: str, reached: tuple[str, ...]) -> Found | None:
    of = operation.equation.params
    body, length, constants, carried = of["jaxpr"], of["length"], of["num_consts"], of["num_carry"]
    fixed, carry, stacked = operands[:constants], operands[constants : constants + carried], operands[constants + carried :]
    apply = jax.jit(core.jaxpr_as_fun(body))
    for n in range(length):
        i = length - 1 - n if of["reverse"] else n
        arguments = [*fixed, *carry, *(_at(x, n=i) for x in stacked)]
        results = apply(*arguments)
        if any(_has(x, kind) for x in results):
            name = f"{'layers' if STACK in _place(operation.equation) else 'iteration'} {i} of {length}"
            return search(body, arguments, kind, (*reached, name, operation.scope), ends=False)
        carry = results[:carried]
    return None


def described(found: Found, repeats: list[int]) -> str:
    """Return a description of an operation: the part of the step, layer, scope, result and place in the source."""
    equation, scopes = found.operation.equation, [*found.iterations[1::2], found.operation.scope]
    part = "the gradient" if any("transpose" in scope for scope in scopes) else "the forward pass"
    names = [name for scope in scopes for name in scope.replace("(", "/").replace(")", "/").split("/")]
    noise = ("", "jvp", "transpose", "rematted_computation", "checkpoint")
    scope = "/".join(dict.fromkeys(name for name in names if name not in noise))
    shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in map(array_of, equation.outvars))
    layers = ", ".join(found.iterations[::2]).replace("layers ", "layer " if len(repeats) == 1 else "block ")
    where = ", ".join(filter(None, [f"in {part}", layers, scope]))
    return f"{where}: the result {shapes} of {equation.primitive.name} at {_place(equation)}"


def inlined(jaxpr: core.ClosedJaxpr) -> tuple[list[Operation], list[Name], list[Atom], dict[Name, jax.Array]]:
    """Return (operations, names of inputs and results, constants by name) of a jaxpr whose calls are inlined."""
    operations, constants, numbers = list[Operation](), dict[Name, jax.Array](), itertools.count()

    def walk(jaxpr: core.Jaxpr, consts: Sequence[jax.Array], read: Sequence[Atom], scope: str) -> list[Atom]:
        names: dict[core.Var, Atom] = {}

        def name_of(atom: core.Var | core.Literal) -> Atom:
            return atom if isinstance(atom, core.Literal) else names[atom]

        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            name = names[variable] = next(numbers)
            constants[name] = value
        names.update(zip(jaxpr.invars, read, strict=True))
        for equation in jaxpr.eqns:
            operands = [name_of(atom) for atom in equation.invars]
            inner = next((equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params), None)
            inside = f"{scope}/{equation.source_info.name_stack}"
            if equation.primitive.name in INLINE and inner is not None:
                closed = getattr(inner, "jaxpr", inner)
                written = walk(closed, getattr(inner, "consts", ()), operands, inside)
            else:
                results = [next(numbers) for _ in equation.outvars]
                operations.append(Operation(equation, inside, operands, results))
                written = [*results]
            names.update(zip(equation.outvars, written, strict=True))
        return [name_of(atom) for atom in jaxpr.outvars]

    inputs = [next(numbers) for _ in jaxpr.jaxpr.invars]
    results = walk(jaxpr.jaxpr, jaxpr.consts, inputs, "")
    return operations, inputs, results, constants


def _evaluate(equation: core.JaxprEqn, operands: list[jax.Array]) -> list[jax.Array]:
    """Compute one equation; results that nobody reads are computed too."""
    given = equation.primitive.get_bind_params(equation.params)
    results = equation.primitive.bind(*operands, **(given if isinstance(given, dict) else given[1]))
    return list(results) if equation.primitive.multiple_results else [results]


def _flag(x: jax.Array, kind: str) -> jax.Array:
    x = jnp.asarray(x) if not isinstance(x, jax.Array) else x
    return jnp.any(KINDS[kind](x)) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.bool_(False)


def _has(x: jax.Array, kind: str) -> bool:
    return bool(jax.jit(_flag, static_argnums=1)(x, kind))


def _at(x: jax.Array, n: int) -> jax.Array:
    return jax.jit(lambda x, n: lax.dynamic_index_in_dim(x, n, keepdims=False))(x, n)


def _place(equation: core.JaxprEqn) -> str:
    return source_info_util.summarize(equation.source_info)
