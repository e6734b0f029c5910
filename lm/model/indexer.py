"""DeepSeek Sparse Attention: an indexer chooses the keys that each query of latent attention sees (DeepSeek-V3.2-Exp, 2025).

Axes: B batch, T time, S keys, D model, R size of the queries' latent, H heads of the indexer, K their size, N pages of a
sequence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.kernels.attention import Visible
from lm.kernels.cpu.pages import Pages, Places
from lm.kernels.matmul import gathered
from lm.kernels.ops import product
from lm.kernels.saved import saved
from lm.model.initializers import STD, normal, parameter
from lm.model.linear import Linear, hidden_std
from lm.model.norms import LayerNorm
from lm.model.positions import rotate
from lm.parallel.context import length_axis, whole_rows
from lm.parallel.mesh import reshard, spec

NORM_EPS = 1e-6  # of the keys' norm, in every published model


class Sought(NamedTuple):
    """What the indexer asks of keys: rotated queries [B, T, H, K], and float32 weights [B, T, H] of the heads with their scale.

    topk: how many keys a query sees.
    """

    q_BTHK: jax.Array
    weight_BTH: jax.Array
    topk: int


class Indexer(nnx.Module):
    """Queries q, head weights w and keys k of the scores I[t, s] = Σ_h w[t, h] · ReLU(q[t, h] · k[s]) (ibid., eq. 1).

    Each query attends to the `mla.index_topk` keys of largest I among those that it may see. Of equal ones the earlier is
    chosen. As in transformers, I has no gradient, so the weights of an indexer are not trained (lm/model/linear.py:trainable).
    The paper's loss for them, the divergence of softmax(I) from the attention's own weights, is not here; nor is its Hadamard
    rotation of q and k, which changes no product.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        mla, D = config.mla, config.embed_dim
        H, K, self.topk, self.interleaved = mla.index_heads, mla.index_head_dim, mla.index_topk, mla.index_interleaved
        # Every device has all heads, because their sum decides.
        axes = ("embed", "replicated", "head")
        self.query = Linear(config, rngs, "indexer.query", "btr,rhk->bthk", (mla.query_rank, H, K), axes)
        self.key = Linear(config, rngs, "indexer.key", "btd,dk->btk", (D, K), ("embed", "head"))
        self.query.precision = self.key.precision = "none"  # near ties decide, so training chooses as an engine does
        self.key_norm = LayerNorm(K, NORM_EPS)
        self.weight = parameter(normal(rngs, (D, H), hidden_std(config, STD, D)), ("embed", "replicated"), "head")
        self.scale = (H * K) ** -0.5

    def __call__(
        self, x_BTD: jax.Array, latent_BTR: jax.Array, rotary: tuple[jax.Array, jax.Array] | None
    ) -> tuple[Sought, jax.Array]:
        """Return what the T tokens seek, and their keys [B, T, 1, K]. The first dimensions of q and k are rotated.

        The weights are computed in float32, as in transformers, because near ties decide.
        """
        axis = length_axis(x_BTD)
        q_BTHK, key_BT1K = self.query(latent_BTR), self.key_norm(whole_rows(self.key(x_BTD, axis)))[:, :, None]
        if rotary is not None:
            q_BTHK, key_BT1K = (rotate(x, *rotary, self.interleaved) for x in (q_BTHK, key_BT1K))
        weight_BTH = self.scale * jnp.einsum(
            "btd,dh->bth",
            x_BTD.astype(jnp.float32),
            gathered(self.weight[...]),
            precision=lax.Precision.HIGHEST,
            out_sharding=spec("batch", axis, None),
        )
        q_BTHK, weight_BTH, key_BT1K = lax.stop_gradient((q_BTHK, whole_rows(weight_BTH), key_BT1K))
        return Sought(q_BTHK, weight_BTH, self.topk), key_BT1K


def narrowed(visible: Visible, sought: Sought, key_BSK: jax.Array) -> Visible:
    """Return what queries see of these keys: the chosen ones, or all where there are no more than that."""
    if key_BSK.shape[1] <= sought.topk:
        return visible
    chosen_BTS = largest(index_scores(sought, key_BSK), visible.mask(), sought.topk)
    return visible._replace(chosen_BTS=saved(chosen_BTS))  # so that the backward pass sees the same keys


def index_scores(sought: Sought, key_BSK: jax.Array) -> jax.Array:
    """Return I, float32 [B, T, S]: one head after the other, because those of all heads take H times the memory."""
    (B, T), S = sought.weight_BTH.shape[:2], key_BSK.shape[1]

    def add(total_BTS: jax.Array, head: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        q_BTK, weight_BT = head
        return total_BTS + weight_BT[..., None] * jax.nn.relu(product("btk,bsk->bts", q_BTK, key_BSK)), None

    heads = jnp.moveaxis(sought.q_BTHK.astype(key_BSK.dtype), 2, 0), jnp.moveaxis(sought.weight_BTH, 2, 0)
    return lax.scan(add, reshard(jnp.zeros((B, T, S), jnp.float32), "batch", "length", None), heads)[0]


def largest(scores_BTS: jax.Array, mask_BTS: jax.Array, count: int) -> jax.Array:
    """Return bool [B, T, S], the `count` largest scores of a row where the mask is True; of equal ones the earlier."""
    scores_BTS = jnp.where(mask_BTS, scores_BTS, -jnp.inf)
    least_BT1 = lax.top_k(scores_BTS, count)[0][..., -1:]
    above_BTS, equal_BTS = scores_BTS > least_BT1, scores_BTS == least_BT1
    room_BT1 = count - jnp.sum(above_BTS, axis=-1, keepdims=True)
    return mask_BTS & (above_BTS | (equal_BTS & (jnp.cumsum(equal_BTS, axis=-1) <= room_BT1)))


def chosen_slots(sought: Sought, index: Pages, places: Places) -> Places:
    """Return where the chosen keys of tokens are in a pool whose pages are of one token each, in the order of their places.

    sought: of B tokens, [B, 1, …]. index: the pool of the indexer's keys. The sequence of a token holds its chosen keys alone.
    """
    page, topk = index.values.shape[1], sought.topk
    tables_RN, key_SK = jnp.asarray(places.tables_RP), index.values.reshape(-1, index.values.shape[-1])

    def one(token: tuple[jax.Array, ...]) -> jax.Array:
        q_THK, weight_TH, row, place = token
        table_N = jnp.clip(tables_RN[row], 0, index.values.shape[0] - 1)
        slots_S = (table_N[:, None] * page + jnp.arange(page)).reshape(-1)
        scores_S = index_scores(Sought(q_THK[None], weight_TH[None], topk), key_SK[slots_S][None])[0, 0]
        chosen_S = largest(scores_S, jnp.arange(len(slots_S)) <= place, topk)
        return slots_S[jnp.nonzero(chosen_S, size=topk, fill_value=0)[0]]

    row_B, place_B = jnp.asarray(places.rows_T), jnp.asarray(places.places_T)
    tables_BS = lax.map(one, (sought.q_BTHK, sought.weight_BTH, row_B, place_B))
    return Places(tables_BS, jnp.where(row_B < 0, -1, jnp.arange(len(row_B))), jnp.minimum(place_B, topk - 1))
