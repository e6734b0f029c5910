"""States of a fixed size that remember earlier tokens, in chunks of tokens.

Rows are packed: a sequence can begin at any token of a row, and nothing passes from one sequence to the next.

Axes: B rows, T tokens, C tokens of a chunk, n chunks, G heads of keys, R heads of values for each of them, K and V sizes of
keys and values.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Flow(NamedTuple):
    """Where states begin and stay. Both bool [B, T].

    fresh_BT: the token is the first of its sequence. valid_BT: False for padding, which leaves the state as it is.
    """

    fresh_BT: jax.Array
    valid_BT: jax.Array


def without_padding(k_BTGK: jax.Array, decay_BTGR: jax.Array, flow: Flow) -> tuple[jax.Array, jax.Array]:
    """Return keys and decays with which padding leaves a state as it is."""
    valid_BT11 = flow.valid_BT[..., None, None]
    return jnp.where(valid_BT11, k_BTGK, 0.0), jnp.where(valid_BT11, decay_BTGR, 0.0)


def recurrence(
    q_BTGK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGRV: jax.Array,
    decay_BTGR: jax.Array,
    beta_BTGR: jax.Array | None,
    state_BGRKV: jax.Array | None,
    flow: Flow,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array | None]:
    """Compute lm.kernels.ops.recurrence in chunks of C tokens: products within a chunk, and a loop over chunks.

    Within a chunk γ_i = Σ_{j ≤ i} decay_j and D_ij = e^(γ_i − γ_j) for j ≤ i, or 0 for another sequence. Then
    u = (I + strictly lower(β·k·kᵀ ⊙ D))⁻¹·β·(v − e^γ·k·S), y = e^γ·q·S + (q·kᵀ ⊙ D)·u, and the next state is
    e^γ_C·S + Σ_i e^(γ_C − γ_i)·k_i·u_iᵀ (Yang et al. 2024, §3.3; without beta u = v, Dao and Gu 2024, §6).
    """
    (B, T, G, R, V), K = v_BTGRV.shape, k_BTGK.shape[-1]
    C = 1 << (min(chunk, T) - 1).bit_length()  # a power of two, for `_inverse`
    k_BTGK, decay_BTGR = without_padding(k_BTGK, decay_BTGR, flow)

    def chunks(x: jax.Array) -> jax.Array:
        """Return [n, B, G, R or 1, C, …] of [B, T, G, …], zeros after the last token."""
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -T % C), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(B, -1, C, *x.shape[2:]), (1, 2), (0, 4 if x.ndim > 3 else 3))

    q, k = (chunks(x[:, :, :, None]) for x in (q_BTGK, k_BTGK))
    v, decay = chunks(v_BTGRV), chunks(decay_BTGR[..., None])[..., 0]
    number = jnp.cumsum(chunks(flow.fresh_BT[:, :, None, None].astype(jnp.int32)), axis=-1)  # of the sequence in its chunk
    gamma = jnp.cumsum(decay, axis=-1)
    within = (number[..., None] == number[..., None, :]) & jnp.tril(jnp.ones((C, C), bool))
    D = jnp.exp(jnp.where(within, gamma[..., None] - gamma[..., None, :], -jnp.inf))
    from_state = jnp.where(number == 0, jnp.exp(gamma), 0.0)[..., None]
    to_state = jnp.where(number == number[..., -1:], jnp.exp(gamma[..., -1:] - gamma), 0.0)[..., None]
    inside = _product("ik,jk->ij", q, k) * D
    if beta_BTGR is None:
        u, w = v, None
    else:
        beta = chunks(beta_BTGR[..., None])
        lower = jnp.tril(beta * _product("ik,jk->ij", k, k) * D, -1)
        both = jnp.concatenate((beta * v, beta * k * from_state), axis=-1)
        both = _product("ij,jk->ik", _inverse(lower), both)
        u, w = both[..., :V], both[..., V:]

    def one(S: jax.Array, of_chunk: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        u, w, q, k, inside, kept = of_chunk
        u = u if w is None else u - _product("ik,kv->iv", w, S)
        y = _product("ik,kv->iv", q, S) + _product("ij,jv->iv", inside, u)
        return kept * S + _product("ik,iv->kv", k, u), y

    begin = jnp.zeros((B, G, R, K, V), jnp.float32) if state_BGRKV is None else state_BGRKV
    S, y = lax.scan(one, begin, (u, w, q * from_state, k * to_state, inside, from_state[..., -1:, :]))
    y_BTGRV = jnp.moveaxis(y, (0, 4), (1, 2)).reshape(B, -1, G, R, V)[:, :T].astype(v_BTGRV.dtype)
    return y_BTGRV, None if state_BGRKV is None else S


def _inverse(lower: jax.Array) -> jax.Array:
    """Return (I + lower)⁻¹ of strictly lower matrices [..., C, C], in products of blocks.

    From the inverses X of the diagonal's blocks of size s those of 2·s: the new part is −X₂₂·L₂₁·X₁₁. A CPU's triangular solve
    takes a hundred times as long.
    """
    *batch, C, _ = lower.shape
    X = jnp.ones((*batch, C, 1, 1), lower.dtype)
    for s in (1 << n for n in range(C.bit_length() - 1)):
        blocks = jnp.diagonal(lower.reshape(*batch, C // (2 * s), 2 * s, C // (2 * s), 2 * s), axis1=-4, axis2=-2)
        L21 = jnp.moveaxis(blocks, -1, -3)[..., s:, :s]
        X11, X22 = X[..., ::2, :, :], X[..., 1::2, :, :]
        X21 = -_product("ij,jk->ik", _product("ij,jk->ik", X22, L21), X11)
        upper = jnp.concatenate((X11, jnp.zeros_like(X11)), axis=-1)
        X = jnp.concatenate((upper, jnp.concatenate((X21, X22), axis=-1)), axis=-2)
    return X[..., 0, :, :]


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the float32 einsum over the last two axes; all others are those of a batch."""
    x, y, z = equation.replace("->", ",").split(",")
    return jnp.einsum(f"...{x},...{y}->...{z}", a, b, precision=lax.Precision.HIGHEST)
