"""Build the parameters of one model config from those of another: copy shared arrays, compute the others."""

from collections.abc import Callable, Iterator

import jax
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.model.transformer import STACKED, skeleton
from lm.parallel.mesh import shardings
from lm.runs.checkpoint import named, nested, plain, unplain


def rebuilt(config: ModelConfig, params: nnx.State, make: Callable[[nnx.State], dict[str, jax.Array]]) -> nnx.State:
    """Return the parameters of `config`: the arrays make(params), by dotted name, and all others from `params`.

    Arrays from `make` get the sharding that `config` declares, if a mesh is set.
    """
    where = None
    if not jax.sharding.get_abstract_mesh().empty:
        all_shardings = arrays_of(shardings(skeleton(config)[1], jax.sharding.get_mesh()))
        where = {name: all_shardings[name] for name in jax.eval_shape(make, params)}
    return combined(config, arrays_of(params) | jax.jit(make, out_shardings=where)(params))


def combined(config: ModelConfig, arrays: dict[str, jax.Array]) -> nnx.State:
    """Return the parameters of `config` from arrays by dotted name; extra arrays are ignored."""
    abstract = skeleton(config)[1]
    return unplain(abstract, nested({name: arrays[name] for name in arrays_of(abstract)}))


def arrays_of(params: nnx.State) -> dict[str, jax.Array]:
    """Return the arrays by dotted name, such as stacks.0.0.attention.query.weight."""
    return named(plain(params))


def modules(config: ModelConfig, params: nnx.State, kind: type[nnx.Module]) -> Iterator[tuple[str, nnx.Module]]:
    """Yield (dotted name, module) for each module of a type."""
    for path, module in nnx.iter_modules(nnx.merge(skeleton(config)[0], params)):
        if isinstance(module, kind):
            yield ".".join(map(str, path)), module


def each_layer(name: str, f: Callable, x):
    """Return f(x) for the module or array `name`. If it is stacked, apply f to each layer and stack the results."""
    if not name.startswith(STACKED):
        return f(x)
    if not isinstance(x, nnx.Module):
        return lax.map(f, x)
    graph, params = nnx.split(x)
    return lax.map(lambda params: f(nnx.merge(graph, params)), params)
