"""A prompt is read once for all of its answers when they are learnt from, as it is when they are drawn.

What stands before the answers is the same for a group of them, and so are its keys and values; their gradients add up over the
group ("Prefix Grouper", Liu et al. 2025). A batch of this kind holds

    prompt_tokens, prompt_segments   int32 [P, W], padded on the left
    all else                         [P, G, …]: of each answer the tokens after the prompt, as rollouts.py has a row's

Axes: P prompts, G answers to each, B = P·G rollouts, W tokens of a prompt, T tokens after it, D model.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from lm.align.rl.rollouts import Rollout, arrays
from lm.config import ModelConfig
from lm.model.cache import empty_state, fork, repeat
from lm.model.transformer import Hidden, Transformer
from lm.parallel.mesh import spec

PROMPT = ("prompt_tokens", "prompt_segments")


def pays(model: ModelConfig, group_size: int, width: int, after: int) -> bool:
    """Whether to read prompts of up to W = `width` tokens once for G answers of up to T = `after` saves work.

    It saves the (G − 1)·W tokens that need about 24·D² FLOPs a layer each, and has answers attend to what comes after as well:
    G·T²/2 scores more of 4·D each, that is 2·G·T²·D; but scores are slower than their FLOPs say, 2.4 times where both ways took
    as long (2 CPU cores, W = 28, T = 128, D = 128). Experts are balanced over the tokens that they see, latent attention
    would attend to its latents, and some angles depend on a row's length: those models read each row whole.
    """
    plain = not any(kind.moe for kind in model.layer_kinds) and not model.mla.kv_rank and not model.rope.depends_on_length
    return plain and 5 * model.embed_dim * width * (group_size - 1) > group_size * after**2


def grouped_arrays(
    rollouts: Sequence[Rollout], prompts: Sequence[Sequence[int]], width: int, after: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Arrays [P, G, T] of rollouts that stand one after the other for each prompt; see the top. T = `after`, W = `width`."""
    each = len(rollouts) // len(prompts)
    lengths = [len(prompt) for prompt in prompts for _ in range(each)]
    # From the prompt's last token on, which the first answer's token is the target of.
    rest = [
        r._replace(tokens=r.tokens[n - 1 :], mask=r.mask[n - 1 :], logps=r.logps[n - 1 :]) for r, n in zip(rollouts, lengths)
    ]
    batch = arrays(rest, after, pad_id)
    batch["positions"] = batch["positions"] + batch["segment_ids"] * (np.asarray(lengths, np.int32)[:, None] - 1)
    tokens, segments = np.full((len(prompts), width), pad_id, np.int32), np.zeros((len(prompts), width), np.int32)
    for p, prompt in enumerate(prompts):
        tokens[p, width - len(prompt) :], segments[p, width - len(prompt) :] = prompt, 1
    return grouped(batch, each) | {"prompt_tokens": tokens, "prompt_segments": segments}


def grouped(batch: dict, each: int) -> dict:
    """Rows [B, …] as [P, G, …], G = `each`; of NumPy or JAX arrays."""

    def split(x):
        shape = (x.shape[0] // each, each, *x.shape[1:])
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        return lax.reshape(x, shape, out_sharding=spec("batch", *[None] * x.ndim))

    return {name: x if name in PROMPT else split(x) for name, x in batch.items()}


def flat(batch: dict) -> dict:
    """The batch with answers as rows [B, …]; one whose prompts are not apart stays as it is."""
    if PROMPT[0] not in batch:
        return batch

    def joined(x):
        where = spec("batch", *[None] * (x.ndim - 2))
        return lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=where)

    return {name: x if name in PROMPT else joined(x) for name, x in batch.items()}


def hidden(model: Transformer, batch: dict) -> Hidden:
    """What the layers make of the tokens of a flat batch: x [B, T, D], at each token what its target is told by."""
    read = tuple(batch[name] for name in ("tokens", "segment_ids", "positions"))
    if PROMPT[0] not in batch:
        return model.hidden(*read)
    (P, W), (B, T) = batch["prompt_tokens"].shape, batch["tokens"].shape
    segments_PW = batch["prompt_segments"]
    positions_PW = jnp.maximum(0, jnp.cumsum(segments_PW, axis=1) - 1)
    prompts = model.hidden(batch["prompt_tokens"], segments_PW, positions_PW, empty_state(model.config, P, W), prefill=True)
    first_B1D = repeat(prompts.x_BTD[:, -1:], B // P)
    if T == 1:
        return Hidden(first_B1D, None, None)
    rest = model.hidden(*(x[:, 1:] for x in read), fork(prompts.state, model.config, B // P, T - 1))
    return Hidden(jnp.concatenate((first_B1D, rest.x_BTD), axis=1), None, None)
