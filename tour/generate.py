"""Generation: read the prompts once (prefill), then draw token after token (decode), with the cache.

Axes: B rows, T prompt tokens, V vocabulary. Prompts of all lengths are padded on the right. The slot in the cache is
the position in the row, so a row's first drawn token overwrites what padding might have written there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tour.cache import Cache, empty_cache, rows_of_pages
from tour.mesh import make_mesh, spec
from tour.model import TINY, Config, Params, Tokens, declare, hidden, init, logits
from tour.text import batch_of_rows

PAGE = 16  # slots of a page


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0: always the likeliest (greedy)."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0


def draw(logits_BV: Array, keys_B: Array, temperature_B: Array, top_p_B: Array) -> Array:
    """Return a token for each row, int32 [B].

    Softmax of logits / temperature, of the smallest set of tokens whose probabilities reach top_p (Holtzman et al.
    2020). argmax of log p + g with g = −log(−log u), u uniform, draws from p (Gumbel 1954).
    """
    greedy_B = jnp.argmax(logits_BV, axis=-1)
    scaled_BV = logits_BV / jnp.where(temperature_B > 0, temperature_B, 1.0)[:, None]
    ranked_BV, ids_BV = jax.lax.top_k(scaled_BV, logits_BV.shape[-1])
    p_BV = jax.nn.softmax(ranked_BV, axis=-1)
    ranked_BV = jnp.where(jnp.cumsum(p_BV, axis=-1) - p_BV < top_p_B[:, None], ranked_BV, -jnp.inf)
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
    place_B = jnp.argmax(ranked_BV + noise_BV, axis=-1)
    drawn_B = jnp.take_along_axis(ids_BV, place_B[:, None], axis=-1)[:, 0]
    return jnp.where(temperature_B > 0, drawn_B, greedy_B).astype(jnp.int32)


def next_logits(params: Params, config: Config, ids: Tokens, cache: Cache) -> tuple[Array, Cache]:
    """Return the logits behind the last token of each row, float32 [B, V], and the cache with all these tokens."""
    x_BTD, new, _ = hidden(params, config, ids, cache)
    last_B = jnp.maximum(jnp.sum(ids.segments, axis=1) - 1, 0)
    is_last_BT1 = (jnp.arange(ids.tokens.shape[1]) == last_B[:, None])[..., None]
    x_B1D = jnp.sum(jnp.where(is_last_BT1, x_BTD, 0), axis=1, keepdims=True)
    return jax.sharding.reshard(logits(params, config, x_B1D)[:, 0], spec(None, None)), new


def padded(prompts: list[list[int]]) -> Tokens:
    """Return prompts as one array, padded on the right to a multiple of 16, so that few shapes are compiled."""
    batch = batch_of_rows([[prompt] for prompt in prompts], -(-max(map(len, prompts)) // 16) * 16)
    return Tokens(*(jnp.asarray(batch[name]) for name in ("tokens", "segment_ids", "positions")))


@functools.partial(jax.jit, static_argnames=("config", "sampling"))
def sample(params: Params, config: Config, ids: Tokens, sampling: Sampling, seed: Array) -> tuple[Array, Array]:
    """Return the tokens drawn behind each prompt, int32 [B, max_new_tokens], and their log-probabilities in nats.

    A row depends on (seed, its number) only. It repeats its stop token once it has drawn one.
    """
    B, T = ids.tokens.shape
    table_BN = rows_of_pages(B, T + sampling.max_new_tokens, PAGE)
    shape = (config.num_layers, table_BN.size, PAGE, config.num_kv_heads, config.head_dim)
    logits_BV, cache = next_logits(params, config, ids, empty_cache(shape, config.dtype, table_BN))
    key, stops = jax.random.key(seed), jnp.array(sampling.stop_ids, jnp.int32)
    temperature_B, top_p_B = jnp.full(B, sampling.temperature), jnp.full(B, sampling.top_p)

    def step(carry: tuple, n: Array) -> tuple[tuple, tuple[Array, Array]]:
        logits_BV, cache, last_B, positions_B, done_B = carry
        keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), n))(jnp.arange(B))
        drawn_B = jnp.where(done_B, last_B, draw(logits_BV, keys_B, temperature_B, top_p_B))
        logp_BV = jax.nn.log_softmax(logits_BV / (sampling.temperature or 1.0))
        logp_B = jnp.take_along_axis(logp_BV, drawn_B[:, None], axis=-1)[:, 0]
        done_B |= jnp.any(drawn_B[:, None] == stops, axis=-1)
        new = Tokens(drawn_B[:, None], jnp.ones((B, 1), jnp.int32), positions_B[:, None])
        logits_BV, cache = next_logits(params, config, new, cache)
        return (logits_BV, cache, drawn_B, positions_B + 1, done_B), (drawn_B, logp_B)

    lengths_B = jnp.sum(ids.segments, axis=1)
    first = (logits_BV, cache, jnp.zeros_like(lengths_B), lengths_B, lengths_B < 0)
    _, (tokens_NB, logps_NB) = jax.lax.scan(step, first, jnp.arange(sampling.max_new_tokens))
    return tokens_NB.T, logps_NB.T


def generate(params: Params, config: Config, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """Return the continuation of each prompt, up to its stop token, which is included."""
    drawn, _ = sample(params, config, padded(prompts), sampling, jnp.uint32(sampling.seed))
    return [upto_stop(row, sampling.stop_ids) for row in np.asarray(drawn).tolist()]


def upto_stop(row: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    """Return the tokens up to the first stop token, with it."""
    return row[: next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row))]


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    prompts, params = [list(b"A long prompt, then"), list(b"short")] * 4, init(declare(TINY), 0)
    for temperature in (0.0, 1.0):
        print(generate(params, TINY, prompts, Sampling(8, temperature, top_p=0.9)))
