"""Generation: read the prompts once (prefill), then draw token after token (decode), with the cache.

Axes: B rows, T prompt tokens, V vocabulary. Prompts of all lengths are padded on the right. The slot in the cache is
the position in the row, so a row's first drawn token overwrites what padding might have written there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tour.mesh import make_mesh, spec
from tour.model import TINY, Batch, Cache, Config, Params, declare, hidden, init, logits
from tour.text import batch_of_rows


def draw(logits_BV: jax.Array, keys_B: jax.Array, temperature_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Return a token for each row, int32 [B].

    Softmax of logits / temperature, of the smallest set of tokens whose probabilities reach top_p (Holtzman et al.
    2020). The first token up to which the probabilities add up to more than u, uniform in [0, 1), is a draw from them.
    """
    greedy_B = jnp.argmax(logits_BV, axis=-1)
    scaled_BV = logits_BV / jnp.where(temperature_B > 0, temperature_B, 1.0)[:, None]
    ranked_BV = -jnp.sort(-scaled_BV, axis=-1)
    p_BV = jax.nn.softmax(ranked_BV, axis=-1)
    stays_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < top_p_B[:, None]
    least_B = jnp.min(jnp.where(stays_BV, ranked_BV, jnp.inf), axis=-1)
    p_BV = jax.nn.softmax(jnp.where(scaled_BV >= least_B[:, None], scaled_BV, -jnp.inf), axis=-1)
    sums_BV, u_B = jnp.cumsum(p_BV, axis=-1), jax.vmap(jax.random.uniform)(keys_B)
    drawn_B = jnp.sum(sums_BV <= (u_B * sums_BV[:, -1])[:, None], axis=-1)
    return jnp.where(temperature_B > 0, drawn_B, greedy_B).astype(jnp.int32)


def padded(prompts: list[list[int]]) -> Batch:
    """Return prompts as one batch, padded on the right to a multiple of 16, so that few shapes are compiled."""
    batch = batch_of_rows([[prompt] for prompt in prompts], -(-max(map(len, prompts)) // 16) * 16)
    return {name: batch[name] for name in ("tokens", "segment_ids", "positions")}


def last_tokens(rows: list[list[int]]) -> Batch:
    """Return the last token of each row as a batch [B, 1]. A row without tokens is padding."""
    columns = [(row[-1], 1, len(row) - 1) if row else (0, 0, 0) for row in rows]
    tokens, segments, positions = np.array(columns, np.int32).T[:, :, None]
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


def last_state(x_BTD: jax.Array, batch: Batch) -> jax.Array:
    """Return the state of the last token of each row, [B, 1, D]."""
    places_T = jnp.arange(x_BTD.shape[1])
    last_B1 = jnp.max(jnp.where(batch["segment_ids"] > 0, places_T, 0), axis=1, keepdims=True)
    return jnp.sum(jnp.where((places_T == last_B1)[..., None], x_BTD, 0), axis=1, keepdims=True)


def empty_cache(c: Config, slots_BS: jax.Array) -> Cache:
    """Return a cache of zeros."""
    shape, where = (c.num_layers, slots_BS.size, c.num_kv_heads, c.head_dim), spec(None, None, "heads", None)
    return Cache(jnp.zeros(shape, c.dtype, out_sharding=where), jnp.zeros(shape, c.dtype, out_sharding=where), slots_BS)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def step(params: Params, config: Config, cache: Cache, batch: Batch, how: dict) -> tuple[jax.Array, Cache]:
    """Return the next token of each row, int32 [B], and the cache with the batch: whole prompts, or last tokens.

    how: the arrays [B] of key, temperature, top_p and count, the number of tokens drawn before. A row's token depends
    on these and on the row only, so it is the same beside any other rows.
    """
    x_BTD, cache, _ = hidden(params, config, batch, cache)
    logits_B1V = logits(params, config, last_state(x_BTD, batch))
    logits_BV = jax.sharding.reshard(logits_B1V[:, 0], spec(None, None))
    keys_B = jax.vmap(jax.random.fold_in)(how["key"], how["count"])
    return draw(logits_BV, keys_B, how["temperature"], how["top_p"]), cache


def generate(
    params: Params,
    config: Config,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    seed: int = 0,
) -> list[list[int]]:
    """Return the continuation of each prompt, up to its stop token, which is included. temperature 0: the likeliest."""
    B, batch = len(prompts), padded(prompts)
    S = batch["tokens"].shape[1] + max_new_tokens
    cache = empty_cache(config, jnp.arange(B * S).reshape(B, S))  # each row has its own slots
    seeds = [np.random.SeedSequence([seed, row]).generate_state(1)[0] for row in range(B)]
    keys_B = jax.vmap(jax.random.key)(np.asarray(seeds))
    how = {"key": keys_B, "temperature": jnp.full(B, temperature), "top_p": jnp.full(B, top_p)}
    answers: list[list[int]] = [[] for _ in prompts]
    for n in range(max_new_tokens):
        drawn_B, cache = step(params, config, cache, batch, how | {"count": np.full(B, n)})
        for answer, token in zip(answers, drawn_B.tolist()):
            if not answer or answer[-1] not in stop_ids:  # a row that has ended draws on, for nobody
                answer.append(token)
        if all(answer[-1] in stop_ids for answer in answers):
            break
        batch = last_tokens([prompt + answer for prompt, answer in zip(prompts, answers)])
    return answers


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    prompts, params = [list(b"A long prompt, then"), list(b"short")] * 4, init(declare(TINY), 0)
    for temperature in (0.0, 1.0):
        print(generate(params, TINY, prompts, 8, temperature, top_p=0.9))
