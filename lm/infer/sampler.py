"""Sampling with a key/value cache: a compiled loop, and the same step one by one for streaming.

Axes: B prompts, P padded prompt slots, S cache slots, V vocabulary. Prompts are padded on the left, so that every
row's next token goes into the same slot; padding is segment 0 and no real token sees it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from data.tokenizer import Tokenizer
from lm.errors import UserError
from lm.model.transformer import DecodeState, Transformer, empty_state


class SamplingState(NamedTuple):
    """One moment of generation; a step makes the next one."""

    decode: DecodeState
    last_B: jax.Array  # int32, the token to feed next
    positions_B: jax.Array  # int32, its position in its own sequence
    done_B: jax.Array  # bool, an end token was drawn
    out_BN: jax.Array  # int32, tokens drawn so far
    n: jax.Array  # int32, how many


class Settings(NamedTuple):
    """temperature 0 is greedy; top_p in (0, 1], top_k 0 is off."""

    temperature: float
    top_p: float
    top_k: int


def generate(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str] | Sequence[Sequence[int]], *, max_new_tokens: int = 64,
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0, stream: Callable[[str], None] | None = None,
) -> list[str] | list[list[int]]:  # fmt: skip
    """Continues each prompt until the end-of-document token or `max_new_tokens`.

    A string prompt is preceded by the begin-of-document token; token ids are used as they are. A row's draws depend
    on (seed, its index), not on the other rows.

    Args:
      stream: called with each piece of text as it is drawn; for a single prompt.
    Returns: the completions alone, strings for strings and token ids for token ids, without the end token.
    """
    if isinstance(prompts, str):
        raise UserError("prompts must be a list, even of one string")
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise UserError("generate needs max_new_tokens ≥ 1, temperature ≥ 0, 0 < top_p ≤ 1 and top_k ≥ 0")
    if stream is not None and len(prompts) != 1:
        raise UserError("streaming takes one prompt")
    if not len(prompts):
        return []
    text = [isinstance(prompt, str) for prompt in prompts]
    ids = [
        [tokenizer.bos_id, *tokenizer.encode(prompt)] if is_text else [int(i) for i in prompt]
        for prompt, is_text in zip(prompts, text, strict=True)
    ]
    vocab = model.config.vocab_size
    if any(not row or min(row) < 0 or max(row) >= vocab for row in ids):
        raise UserError(f"a prompt of token ids must not be empty, and its ids must be in 0…{vocab - 1}")

    tokens_BP, segments_BP = _padded(ids)
    graph, params = nnx.split(model)
    settings = Settings(float(temperature), float(top_p), int(top_k))
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(ids)))
    # Slots are rounded up, so that a slightly longer request does not compile anew.
    slots = _round_up(tokens_BP.shape[1] + max_new_tokens)
    allowed_V = np.arange(vocab) < tokenizer.vocab_size
    arguments = (graph, settings, slots, max_new_tokens, tokenizer.eos_id, params, tokens_BP, segments_BP, keys_B, allowed_V)
    if stream is None:
        state = _run(*arguments)
    else:
        state = _start(*arguments)
        shown = ""
        while int(state.n) < max_new_tokens and not bool(state.done_B.all()):
            shown = _show(stream, tokenizer, state, shown)
            state = _next(graph, settings, tokenizer.eos_id, params, state, keys_B, allowed_V)
        _show(stream, tokenizer, state, shown, last=True)
    rows = [_until_end(row, tokenizer.eos_id) for row in np.asarray(state.out_BN)[:, : int(state.n)]]
    return [tokenizer.decode(row) if is_text else row for row, is_text in zip(rows, text, strict=True)]


def _padded(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    width = _round_up(max(map(len, ids)))
    tokens, segments = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), np.int32)
    for row, prompt in enumerate(ids):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    return tokens, segments


def _round_up(n: int, least: int = 16) -> int:
    return max(least, 1 << (n - 1).bit_length())


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(graph, settings, slots, limit, eos_id, params, tokens_BP, segments_BP, keys_B, allowed_V) -> SamplingState:
    """Reads the prompts into an empty cache and draws the first token."""
    model = nnx.merge(graph, params)
    B = tokens_BP.shape[0]
    lengths_B = segments_BP.sum(axis=1)
    positions_BP = jnp.maximum(0, jnp.cumsum(segments_BP, axis=1) - 1)
    x_BPD, decode = model.hidden(tokens_BP, segments_BP, positions_BP, empty_state(model.config, B, slots))
    logits_BV = model.logits(x_BPD[:, -1:])[:, 0]
    none_done, nothing = jnp.zeros(B, bool), jnp.full((B, limit), eos_id, jnp.int32)
    first = SamplingState(decode, jnp.zeros(B, jnp.int32), lengths_B - 1, none_done, nothing, jnp.int32(0))
    return _drawn(first, logits_BV, settings, eos_id, keys_B, allowed_V)


def _sample_step(graph, settings, eos_id, params, state: SamplingState, keys_B, allowed_V) -> SamplingState:
    """Feeds the last token and draws the next one: shared by the compiled loop and by streaming."""
    model = nnx.merge(graph, params)
    ones = jnp.ones_like(state.last_B)[:, None]
    logits, decode = model(state.last_B[:, None], ones, state.positions_B[:, None], state.decode)
    return _drawn(state._replace(decode=decode), logits[:, 0], settings, eos_id, keys_B, allowed_V)


_next = jax.jit(_sample_step, static_argnums=(0, 1, 2), donate_argnums=4)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run(graph, settings, slots, limit, eos_id, params, tokens_BP, segments_BP, keys_B, allowed_V) -> SamplingState:
    state = _start(graph, settings, slots, limit, eos_id, params, tokens_BP, segments_BP, keys_B, allowed_V)
    return lax.while_loop(
        lambda s: (s.n < limit) & ~s.done_B.all(),
        lambda s: _sample_step(graph, settings, eos_id, params, s, keys_B, allowed_V),
        state,
    )


def _drawn(state: SamplingState, logits_BV, settings, eos_id, keys_B, allowed_V) -> SamplingState:
    """The state after drawing token n from these logits; finished rows go on with end tokens."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.n)
    drawn_B = sample(keys, jnp.where(allowed_V, logits_BV, -jnp.inf), settings)
    drawn_B = jnp.where(state.done_B, eos_id, drawn_B).astype(jnp.int32)
    out = lax.dynamic_update_slice_in_dim(state.out_BN, drawn_B[:, None], state.n, axis=1)
    done = state.done_B | (drawn_B == eos_id)
    return SamplingState(state.decode, drawn_B, state.positions_B + 1, done, out, state.n + 1)


def sample(keys_B, logits_BV, settings: Settings) -> jax.Array:
    """One token a row, int32 [B].

    Temperature first, then top-k, then nucleus sampling: the smallest set of tokens whose probabilities reach top_p
    (Holtzman et al. 2020); the most likely one is always in it. Of equal logits, which bfloat16 makes common, the lower
    ids are kept, so that top_k=1 is greedy.
    """
    if settings.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = logits_BV / settings.temperature
    draw = jax.vmap(jax.random.categorical)
    if not settings.top_k and settings.top_p == 1:
        return draw(keys_B, logits_BV)
    V = logits_BV.shape[-1]
    ranked, ids = lax.top_k(logits_BV, min(settings.top_k or V, V))
    if settings.top_p < 1:
        p = jax.nn.softmax(ranked, axis=-1)
        ranked = jnp.where(jnp.cumsum(p, axis=-1) - p < settings.top_p, ranked, -jnp.inf)
    return jnp.take_along_axis(ids, draw(keys_B, ranked)[:, None], axis=-1)[:, 0]


def _until_end(row: np.ndarray, eos_id: int) -> list[int]:
    row = row.tolist()
    return row[: row.index(eos_id)] if eos_id in row else row


def _show(stream, tokenizer: Tokenizer, state: SamplingState, shown: str, last: bool = False) -> str:
    """Streams what is new; a character whose bytes are not all there yet waits."""
    row = _until_end(np.asarray(state.out_BN)[0, : int(state.n)], tokenizer.eos_id)
    text = tokenizer.decode(row)
    if not last:
        text = text.rstrip("\ufffd")
    if len(text) > len(shown) and text.startswith(shown):
        stream(text[len(shown) :])
        return text
    return shown
