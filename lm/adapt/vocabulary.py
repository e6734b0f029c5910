"""A model with a larger vocabulary: each new piece starts as the mean of the old pieces that it joins."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P

from lm.adapt.rebuild import arrays_of, rebuilt
from lm.config import ModelConfig


def with_pieces(
    config: ModelConfig, params: nnx.State, old_pieces: Sequence[Sequence[int]], first: int, rows: int
) -> tuple[ModelConfig, nnx.State]:
    """Return the model with `rows` rows in the embedding and in a head of its own.

    Row first + n is the mean of the rows old_pieces[n]. Rows that no piece has are zero.

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
