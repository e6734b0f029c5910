"""Vectors of passages and questions, by the model itself, for a search by meaning.

The vector is the last hidden state after a prompt that asks for the text in one word (lm.infer.prompts), scaled to unit
length. The mean of all hidden states, which is usual for encoders, finds far less with a small decoder (docs/decisions.md).
"""

import contextlib
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.infer.prompts import IN_ONE_WORD
from lm.personal.index import passages_of
from lm.personal.speaker import Speaker
from lm.personal.store import VECTORS, Gone, Store
from lm.progress import progress

ROWS = 8  # that are computed together
LONGEST = 256  # tokens; of a longer text the first ones count


def embed(speaker: Speaker, texts: Sequence[str]) -> np.ndarray:
    """Return float32 vectors [texts, D] of unit length."""
    tokenizer = speaker.tokenizer
    begin, end = (tokenizer.encode(part) for part in IN_ONE_WORD.split("{}"))
    rows = [[*begin, *tokenizer.encode(" ".join(text.split()))[:LONGEST], *end] for text in texts]
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))  # rows of like lengths share a call
    found = np.zeros((len(rows), speaker.config.embed_dim), np.float32)
    graph = nnx.split(speaker.model())[0]
    for first in range(0, len(order), ROWS):
        some = order[first : first + ROWS]
        width = max(32, 1 << (max(len(rows[n]) for n in some) - 1).bit_length())
        tokens_BT = np.zeros((1 if len(texts) == 1 else ROWS, width), np.int32)
        for row, n in enumerate(some):
            tokens_BT[row, : len(rows[n])] = rows[n]
        last_B = np.zeros(len(tokens_BT), np.int32)
        last_B[: len(some)] = [len(rows[n]) - 1 for n in some]
        found[some] = np.asarray(_last(graph, speaker.params, tokens_BT, last_B))[: len(some)]
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def vectors_of(speaker: Speaker, store: Store) -> np.ndarray:
    """Return the vectors of all passages, in the order of the store's items. Those that are missing are computed and stored."""
    width, found, missing = speaker.config.embed_dim, [], []
    for file, items in store.segments():
        kept = store.blob(f"{VECTORS}{file}")
        if kept is not None and kept[1]["model"] == speaker.fingerprint:
            found.append(np.frombuffer(kept[0], np.float16).astype(np.float32).reshape(-1, width))
        else:
            missing.append((len(found), file, items))
            found.append(np.zeros((0, width), np.float32))
    total = sum(len(passages_of(item)) for *_, items in missing for item in items)
    with progress("vectors", total, soon=False) as bar:
        for n, file, items in missing:
            texts = [passage.text for item in items for passage in passages_of(item)]
            made = [np.zeros((0, width), np.float32)]
            for begin in range(0, len(texts), 4 * ROWS):
                made.append(embed(speaker, texts[begin : begin + 4 * ROWS]))
                bar.update(len(made[-1]))
            rows = np.concatenate(made).astype(np.float16)
            found[n] = rows.astype(np.float32)
            about = {"model": speaker.fingerprint}
            with contextlib.suppress(Gone):  # another process has changed the store meanwhile
                store.put(f"{VECTORS}{file}", rows.tobytes(), [item.id for item in items], about)
    return np.concatenate([np.zeros((0, width), np.float32), *found])


@functools.partial(jax.jit, static_argnums=0)
def _last(graph, params, tokens_BT, last_B):
    """Return the hidden state at the last token of each row, float32 [B, D]. What stands after it has no influence."""
    x_BTD = nnx.merge(graph, params).hidden(tokens_BT).x_BTD
    return x_BTD[jnp.arange(len(last_B)), last_B].astype(jnp.float32)
