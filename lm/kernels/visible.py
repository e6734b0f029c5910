"""What an attention needs to know besides queries, keys and values: who sees whom, and how scores are computed.

Axes: B batch, T queries, S keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.parallel.arrays import AnyArray

# Finite, so that a row without visible keys (padding) gives a uniform average instead of NaN.
MASKED = -1e30


class Scoring(NamedTuple):
    """Constants of an attention.

    scale: multiplies q·k.
    window: if above 0, how many slots (or places) a query sees, its own included.
    softcap: if above 0, scores s become softcap·tanh(s / softcap) before masking (Gemma 2, 2024).
    across: how keys reach queries on other devices of a context axis, "ring" or "all_gather" (lm/kernels/ring.py).
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    across: str = "ring"


class Branches(NamedTuple):
    """Branches of a row: several continuations stored one after the other, with one shared prefix. All int32.

    ends_BS: the first slot whose query no longer sees the key. places_BT, key_places_BS: positions of queries and keys in their
    own text. A window counts these positions, because other branches may lie between.
    """

    ends_BS: jax.Array
    places_BT: jax.Array
    key_places_BS: jax.Array


class Visible(NamedTuple):
    """The attention mask in compact form: a mask [B, T, S] would be as large as the scores of a head.

    A query sees the keys of its own segment, at or before its own slot and within the window if there is one.
    segments_BT, key_segments_BS: int32. slots_T: int32, the slot of each query among the keys.
    """

    segments_BT: jax.Array
    key_segments_BS: jax.Array
    slots_T: AnyArray
    branches: Branches | None = None

    def mask(self, window: int = 0, queries: slice = slice(None), keys: slice = slice(0, None)) -> jax.Array:
        """Return a bool mask [B, T, S] for these queries and keys, True where the query sees the key."""
        key_segments_BS, slots_T1 = self.key_segments_BS[:, keys], self.slots_T[queries, None]
        slots_S = keys.start + jnp.arange(key_segments_BS.shape[1])
        seen_BTS = (slots_S <= slots_T1) & (self.segments_BT[:, queries, None] == key_segments_BS[:, None, :])
        distance = slots_T1 - slots_S
        if self.branches is not None:
            ends_BS, places_BT, key_places_BS = self.branches
            seen_BTS &= slots_T1 < ends_BS[:, None, keys]
            distance = places_BT[:, queries, None] - key_places_BS[:, None, keys]
        return seen_BTS & (distance < window) if window else seen_BTS
