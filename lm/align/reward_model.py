"""Use a trained reward model as a reward function: the score at the last token of the conversation."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.chat.example_encoding import Encoder
from data.chat.messages import Conversation
from data.text.tokenizer import load_tokenizer
from lm.convert.source import open_source
from lm.errors import UserError
from lm.infer.load import load_model
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.parallel.context import slots
from lm.parallel.hosts import gathered
from lm.parallel.mesh import place_rows, row_ways
from lm.runs.workdir import read_config

ROWS = 64  # conversations scored at a time


def reward_model(path: str) -> Callable[..., list[float]]:
    """Return a reward function for the reward model at `path`: a workdir of method=reward, or a Hugging Face folder.

    The config is read now; the weights are read at the first call, onto the mesh that is set then. All processes must call
    the reward together.
    Raises: UserError if there is no reward model at `path`. The reward function raises UserError for a conversation that is
    too long.
    """
    config = open_source(path).config
    if config.score_head != "reward":
        raise UserError(
            f"rewards: {path} is no reward model (model.score_head={config.score_head!r}); train one with "
            "configs/align/reward.py"
        )
    encoder = Encoder(load_tokenizer(path), chat_template_of(path))

    @functools.cache
    def model() -> tuple[Callable, nnx.State]:
        mesh = jax.sharding.get_mesh()
        graph, params = nnx.split(load_model(path, mesh=None if mesh.empty else mesh))
        return jax.jit(lambda params, *arrays: reward_scores(nnx.merge(graph, params), *arrays)), params

    def reward(prompts, completions, **columns) -> list[float]:
        rows = []
        for prompt, completion in zip(prompts, completions):
            messages = [*prompt, {"role": "assistant", "content": completion}]
            rows.append(encoder.conversation(Conversation(messages)).learnt().ids)
        longest = max(map(len, rows), default=0)
        if config.positions == "learned" and longest > config.max_positions:
            raise UserError(f"{longest} tokens are more than the {config.max_positions} positions of the reward model {path}")
        scores, params = model()
        return _scored(functools.partial(scores, params), rows)

    reward.collective = True
    return reward


def chat_template_of(path: str) -> str | None:
    """Return the chat template that a run was trained with, or None for the tokenizer's own."""
    named = read_config(Path(path)).get("chat_template")
    if named and not Path(named).is_file():
        raise UserError(f"{path} was trained with chat_template={named}, which no longer exists; put it back")
    return Path(named).read_text(encoding="utf-8") if named else None


def _scored(scores: Callable, rows: Sequence[np.ndarray]) -> list[float]:
    """Scores of rows of ids, so many at a time, padded to a width that is a power of two."""
    ways = row_ways()
    count = -(-ROWS // ways) * ways
    width = max(16, 1 << (max(map(len, rows), default=1) - 1).bit_length())
    found: list[float] = []
    for begin in range(0, len(rows), count):
        some = rows[begin : begin + count]
        tokens, segments = np.zeros((count, width), np.int32), np.zeros((count, width), np.int32)
        for i, row in enumerate(some):
            tokens[i, : len(row)], segments[i, : len(row)] = row, 1
        positions = np.arange(width, dtype=np.int32) * segments
        result = scores(*place_rows(tokens, segments, positions))
        found += gathered(result)[: len(some)].tolist()
    return found


def reward_scores(model: Transformer, tokens_BT, segment_ids_BT, positions_BT) -> jax.Array:
    """Return the score at the last token of each row: float32 [B].

    Each row holds one sequence, padded on the right with segment 0. The score of an empty row is undefined.
    """
    hidden = model.hidden(Inputs(tokens_BT, segment_ids_BT, positions_BT))
    return at_last_token(model.scores(hidden.x_BTD), segment_ids_BT)


def at_last_token(x_BT, segment_ids_BT) -> jax.Array:
    """Return x [B] at the last token of each row whose segment is not 0."""
    place_T = slots(x_BT.shape[1])
    last_B1 = jnp.max(jnp.where(segment_ids_BT > 0, place_T, 0), axis=1, keepdims=True)
    return jnp.sum(jnp.where(place_T == last_B1, x_BT, 0.0), axis=1)
