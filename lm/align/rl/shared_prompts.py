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
from jax.sharding import Mesh

from lm.config import ModelConfig
from lm.model.cache import empty_state, fork, repeat
from lm.model.inputs import Inputs
from lm.model.transformer import Hidden, Transformer
from lm.parallel.mesh import row_ways, spec
from lm.train.step import model_config_of

PROMPT = ("prompt_tokens", "prompt_segments")
SCORE = 6  # 4 to 8 in the measurements of docs/benchmarks.md


def answer_length(config, mesh: Mesh, group_size: int, width: int, shortest: int) -> int:
    """Return T of a run whose update shares prompts, or 0 if it computes whole rows.

    width, shortest: tokens of the longest and of the shortest prompt. Stages compute whole rows: prompts would be in a cache.
    """
    ways = row_ways(mesh) * config.accumulate * config.rl.minibatches
    shares = config.rl.share_prompts and not config.rl.require_equal  # the engine's values are computed for whole rows
    if not shares or mesh.shape["stage"] > 1 or config.batch_size // group_size % ways:
        return 0
    after = config.rollout.max_new_tokens if config.rollout.max_turns == 1 else config.sequence_length + 1 - shortest
    return after * pays(model_config_of(config), group_size, width, after)


def pays(model: ModelConfig, group_size: int, width: int, after: int) -> bool:
    """Return whether sharing prompts of up to W = `width` tokens among G answers of up to T = `after` tokens saves time.

    Per layer, it saves (G − 1)·W tokens at about 24·D² FLOPs. Attention computes G·T·(W + T) scores of answers to a cache and
    W²/2 of prompts, instead of G·(W + T)²/2 of whole rows, at 4·D FLOPs each. Scores to a cache take SCORE times as long: they
    include masked ones, and on a CPU they are float32. Models with experts (balanced over the tokens they see), latent
    attention, or rotary angles that depend on the row length do not share prompts.
    """
    D, G, W, T = model.embed_dim, group_size, width, after
    plain = not any(kind.moe for kind in model.layer_kinds) and not model.mla.kv_rank and not model.rope.depends_on_length
    return plain and 6 * D * (G - 1) * W > SCORE * G * T * (W + T) + W**2 / 2 - G * (W + T) ** 2 / 2


def grouped_arrays(batch: dict[str, np.ndarray], prompts: Sequence[Sequence[int]], width: int, after: int) -> dict:
    """Return the batch described above from whole rows [B, …] that are ordered by prompt. T = `after`, W = `width`."""
    P, G = len(prompts), len(batch["tokens"]) // len(prompts)
    lengths_B1 = np.repeat([len(prompt) for prompt in prompts], G)[:, None]
    # A row begins with the prompt's last token: its target is the first token of the answer.
    columns_BT = lengths_B1 - 1 + np.arange(after)
    rest = {
        name: np.take_along_axis(np.pad(x, ((0, 0), (0, after))), columns_BT, axis=1) if x.ndim == 2 else x
        for name, x in batch.items()
    }
    tokens, segments = np.zeros((P, width), np.int32), np.zeros((P, width), np.int32)
    for p, prompt in enumerate(prompts):
        tokens[p, width - len(prompt) :], segments[p, width - len(prompt) :] = prompt, 1
    return grouped(rest, G) | {"prompt_tokens": tokens, "prompt_segments": segments}


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
        return model.hidden(Inputs(*read))
    (P, W), (B, T) = batch["prompt_tokens"].shape, batch["tokens"].shape
    segments_PW = batch["prompt_segments"]
    positions_PW = jnp.maximum(0, jnp.cumsum(segments_PW, axis=1) - 1)
    prompts = model.hidden(
        Inputs(batch["prompt_tokens"], segments_PW, positions_PW), empty_state(model.config, P, W), prefill=True
    )
    first_B1D = repeat(prompts.x_BTD[:, -1:], B // P)
    if T == 1:
        return Hidden(first_B1D, None, None)
    rest = model.hidden(Inputs(*(x[:, 1:] for x in read)), fork(prompts.memory, model.config, B // P, T - 1))
    return Hidden(jnp.concatenate((first_B1D, rest.x_BTD), axis=1), None, None)
