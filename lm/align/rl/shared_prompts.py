"""Share the forward and backward pass of a prompt among the answers of its group in the RL update.

All answers of a group have the same prompt, so its keys and values are computed once, and their gradients sum over the group
("Prefix Grouper", Liu et al. 2025). Such a batch holds

    prompt_tokens, prompt_segments   int32 [P, W], padded on the left
    all other arrays                 [P, G, …]: the tokens after the prompt, with the keys of `arrays` in rollouts.py

Axes: P prompts, G answers per prompt, B = P·G rollouts, W prompt tokens, T tokens after the prompt, D model.
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
    """Return whether sharing prompts of up to W = `width` tokens among G answers of up to T = `after` tokens saves work.

    It saves (G − 1)·W tokens at about 24·D² FLOPs per layer. It costs G·T²/2 more attention scores, because answers also
    compute the masked ones: 4·D FLOPs each, 2·G·T²·D in total. A score costs about 2.4 times its FLOPs (measured at the
    break-even point on 2 CPU cores: W = 28, T = 128, D = 128). Models with experts (balanced over the tokens they see), latent
    attention, or rotary angles that depend on the row length do not share prompts.
    """
    plain = not any(kind.moe for kind in model.layer_kinds) and not model.mla.kv_rank and not model.rope.depends_on_length
    return plain and 5 * model.embed_dim * width * (group_size - 1) > group_size * after**2


def grouped_arrays(
    rollouts: Sequence[Rollout], prompts: Sequence[Sequence[int]], width: int, after: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Return the batch described above for rollouts ordered by prompt. T = `after`, W = `width`."""
    each = len(rollouts) // len(prompts)
    lengths = [len(prompt) for prompt in prompts for _ in range(each)]
    # A row begins with the prompt's last token: its target is the first token of the answer.
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
    """Reshape rows [B, …] to [P, G, …], G = `each`; NumPy or JAX arrays."""

    def split(x):
        shape = (x.shape[0] // each, each, *x.shape[1:])
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        return lax.reshape(x, shape, out_sharding=spec("batch", *[None] * x.ndim))

    return {name: x if name in PROMPT else split(x) for name, x in batch.items()}


def flat(batch: dict) -> dict:
    """Reshape answers [P, G, …] to rows [B, …]; return a batch without shared prompts unchanged."""
    if PROMPT[0] not in batch:
        return batch

    def joined(x):
        where = spec("batch", *[None] * (x.ndim - 2))
        return lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=where)

    return {name: x if name in PROMPT else joined(x) for name, x in batch.items()}


def hidden(model: Transformer, batch: dict) -> Hidden:
    """Return the hidden states x [B, T, D] of a flat batch; x at a token predicts its target."""
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
