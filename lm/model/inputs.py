"""What the decoder reads in one call.

Axes: B batch, T time, D model.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.config.towers import Media
from lm.kernels.visible import Branches
from lm.model.media import Vectors
from lm.parallel.context import slots


class Inputs(NamedTuple):
    """Tokens, and what is to be known of them. Only the tokens must be given.

    tokens_BT: int. segments_BT: int; tokens see only earlier tokens of their own segment, 0 is padding; default 1.
    positions_BT: int, default 0, 1, …; must be given with a memory.
    branches: for rows that hold several continuations.
    noise_BTD: added to the embeddings.
    media: images and sound that take the places of some of these tokens. vectors: those of media that are encoded already.
    """

    tokens_BT: jax.Array
    segments_BT: jax.Array | None = None
    positions_BT: jax.Array | None = None
    branches: Branches | None = None
    noise_BTD: jax.Array | None = None
    media: Media | None = None
    vectors: Vectors | None = None

    def filled(self) -> "Inputs":
        """Return the inputs with default segments and positions, as arrays."""
        tokens_BT, segments_BT, positions_BT = jnp.asarray(self.tokens_BT), self.segments_BT, self.positions_BT
        segments_BT = jnp.ones_like(tokens_BT) if segments_BT is None else jnp.asarray(segments_BT)
        if positions_BT is None:
            positions_BT = jnp.zeros_like(tokens_BT) + slots(tokens_BT.shape[1]).astype(tokens_BT.dtype)
        return self._replace(tokens_BT=tokens_BT, segments_BT=segments_BT, positions_BT=jnp.asarray(positions_BT))


def inputs_of(batch: dict[str, jax.Array], **others: Any) -> Inputs:
    """Return the inputs of a batch of training: its tokens, segments and positions. others: further fields."""
    return Inputs(batch["tokens"], batch["segment_ids"], batch["positions"], **others)
