"""Vectors of passages and questions, by the model itself, for a search by meaning.

The vector is the last hidden state after a prompt that asks for the text in one word ("PromptEOL", Jiang et al. 2023, "Scaling
sentence embeddings with large language models", section 3.2), scaled to unit length. The mean of all hidden states, which is
usual for encoders, finds far less with a small decoder (docs/decisions.md).
"""

import contextlib
import functools
import io
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.personal.index import passages_of
from lm.personal.speaker import Speaker
from lm.personal.store import VECTORS, Gone, Store
from lm.progress import progress

PROMPT = 'This sentence: "{}" means in one word: "'
ROWS = 8  # that are computed together
LONGEST = 256  # tokens; of a longer text the first ones count


def embed(speaker: Speaker, texts: Sequence[str]) -> np.ndarray:
    """Return float32 vectors [texts, D] of unit length."""
    tokenizer = speaker.tokenizer
    begin, end = (tokenizer.encode(part) for part in PROMPT.split("{}"))
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
    found, missing = [], []
    for file, items in store.segments():
        texts = [passage.text for item in items for passage in passages_of(item)]
        kept = store.blob(f"{VECTORS}{file}")
        known = kept is not None and kept[1]["model"] == speaker.fingerprint
        found.append(np.load(io.BytesIO(kept[0]), allow_pickle=False).astype(np.float32) if known else None)
        if not known:
            missing.append((len(found) - 1, file, items, texts))
    with progress("vectors", sum(len(texts) for *_, texts in missing), soon=False) as bar:
        for n, file, items, texts in missing:
            made = [embed(speaker, texts[k : k + 8 * ROWS]) for k in range(0, len(texts), 8 * ROWS)]
            found[n] = np.concatenate(made) if made else np.zeros((0, speaker.config.embed_dim), np.float32)
            out = io.BytesIO()
            np.save(out, found[n].astype(np.float16))
            with contextlib.suppress(Gone):  # another process has changed the store meanwhile
                store.put(f"{VECTORS}{file}", out.getvalue(), [item.id for item in items], {"model": speaker.fingerprint})
            bar.update(len(texts))
    return np.concatenate(found) if found else np.zeros((0, speaker.config.embed_dim), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _last(graph, params, tokens_BT, last_B):
    """Return the hidden state at the last token of each row, float32 [B, D]. What stands after it has no influence."""
    x_BTD = nnx.merge(graph, params).hidden(tokens_BT).x_BTD
    return x_BTD[jnp.arange(len(last_B)), last_B].astype(jnp.float32)
