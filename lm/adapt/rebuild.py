"""Build the parameters of one model config from those of another: copy shared arrays, compute or initialise the others.

So a model gets a score head, encoders, or a larger vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jax import lax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P

from lm.config import Audio, ModelConfig, Vision
from lm.model.transformer import STACKED, build, skeleton
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


def with_score_head(config: ModelConfig, params: nnx.State, kind: str, seed: int = 0) -> tuple[ModelConfig, nnx.State]:
    """Return the model with a fresh head of this kind (model.score_head), replacing its own; "none" removes the head."""
    new = dataclasses.replace(config, score_head=kind)
    if kind == "none":
        return new, combined(new, arrays_of(params))
    return new, rebuilt(new, params, lambda _: {"score": arrays_of(build(new, seed))["score"]})


def with_towers(
    config: ModelConfig, params: nnx.State, towers: dict[str, Vision | Audio], seed: int = 0
) -> tuple[ModelConfig, nnx.State]:
    """Return the model with new encoders and projectors of random weights; its logits for text stay bitwise the same.

    towers: sections of the config by name, "vision" and "audio".
    """
    new = dataclasses.replace(config, **towers)
    begin = tuple(f"{name}." for name in towers)

    def fresh(_):
        return {name: x for name, x in arrays_of(build(new, seed)).items() if name.startswith(begin)}

    return new, rebuilt(new, params, fresh)


def with_pieces(
    config: ModelConfig, params: nnx.State, old_pieces: Sequence[Sequence[int]], first: int, rows: int
) -> tuple[ModelConfig, nnx.State]:
    """Return the model with a larger vocabulary: `rows` rows in the embedding and in a head of its own.

    Row first + n is of a new piece: the mean of the rows old_pieces[n], of the old pieces that it joins. Rows without a piece
    are zero.

    Args: first: the first new id. It is below config.vocab_size if the model has rows that no piece has; these are used first.
    """
    new = dataclasses.replace(config, vocab_size=rows)
    most = max(map(len, old_pieces), default=1)
    parts_NP = np.zeros((len(old_pieces), most), np.int32)
    weights_NP = np.zeros((len(old_pieces), most), np.float32)
    for n, parts in enumerate(old_pieces):
        parts_NP[n, : len(parts)] = parts
        weights_NP[n, : len(parts)] = 1 / len(parts)

    def grown(params: nnx.State) -> dict[str, jax.Array]:
        found = {}
        for name in ("embedding",) if config.tie_embeddings else ("embedding", "head"):
            old_VD = arrays_of(params)[name]
            if not jax.sharding.get_abstract_mesh().empty:
                old_VD = jax.sharding.reshard(old_VD, P(None, None))
            means_ND = jnp.einsum("np,npd->nd", weights_NP, old_VD[parts_NP].astype(jnp.float32))
            old_VD = jnp.pad(old_VD, ((0, rows - len(old_VD)), (0, 0)))
            found[name] = old_VD.at[first : first + len(old_pieces)].set(means_ND.astype(old_VD.dtype))
        return found

    return new, rebuilt(new, params, grown)
