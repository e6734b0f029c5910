"""The plain twin of generation: greedy decoding by whole forward passes, a row at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.cache import empty_state
from lm.model.inputs import Inputs
from lm.model.media import Media
from lm.model.transformer import Transformer

WIDTH = 80  # what comes after a row has no effect


def greedy(
    model: Transformer,
    prompts: list[list[int]],
    count: int,
    stops: tuple[int, ...] = (),
    vocab_size: int = 0,
    media: list[Media | None] | None = None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the tokens and the log-probabilities of each continuation, up to and with a stop id or `count` tokens."""
    tokens, logps = [], []
    for prompt, seen in zip(prompts, media or [None] * len(prompts), strict=True):
        row, of_row = list(prompt), []
        while len(row) < len(prompt) + count and (len(row) == len(prompt) or row[-1] not in stops):
            padded, within = np.zeros((1, WIDTH), np.int32), np.arange(WIDTH) < len(row)
            padded[0, : len(row)] = row
            logits_V = _last(model, padded, within[None].astype(np.int32), len(row) - 1, seen)
            row.append(int(np.argmax(logits_V[: vocab_size or None])))
            of_row.append(float(jax.nn.log_softmax(logits_V)[row[-1]]))
        tokens.append(row[len(prompt) :])
        logps.append(of_row)
    return tokens, logps


@jax.jit
def _last(model: Transformer, tokens_1T: jax.Array, segments_1T: jax.Array, last: jax.Array, media: Media | None) -> jax.Array:
    positions_1T = jnp.arange(WIDTH, dtype=jnp.int32)[None] * segments_1T
    return model(Inputs(tokens_1T, segments_1T, positions_1T, media=media))[0, last]


def greedy_with_cache(model: Transformer, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Return the tokens if keys keep the rotation with which they were read, as with dynamic NTK."""
    found = []
    for prompt in prompts:
        logits, state = model(np.asarray([prompt], np.int32), empty_state(model.config, 1, len(prompt) + count), prefill=True)
        row = [int(jnp.argmax(logits[0, -1]))]
        while len(row) < count:
            place = np.full((1, 1), len(prompt) + len(row) - 1, np.int32)
            logits, state = _step(model, np.asarray([row[-1:]], np.int32), place, state)
            row.append(int(jnp.argmax(logits[0, -1])))
        found.append(row)
    return found


@jax.jit
def _step(model, token_11, place_11, state):
    return model(Inputs(token_11, jnp.ones_like(token_11), place_11), state)
