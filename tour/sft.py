"""Supervised fine-tuning: the loss of pretraining, on the answers of conversations only (Ouyang et al. 2022)."""

from collections.abc import Sequence

import jax
import numpy as np

from tour.mesh import make_mesh
from tour.model import Config, declare, init
from tour.optimizers import Recipe
from tour.pretrain import Batch, first_state, make_step, next_token_loss, train

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"  # pieces of the tokenizer that no text encodes to


def prompt_of(messages: Sequence[dict[str, str]]) -> str:
    """Return a conversation as text, up to where the assistant speaks."""
    roles = {"user": USER, "assistant": ASSISTANT}
    turns = [f"{roles[message['role']]}{message['content']}{END}" for message in messages]
    return "".join(turns) + ASSISTANT


def rows(examples: Sequence[tuple[list[int], list[int]]], length: int) -> Batch:
    """Return a batch of examples (prompt, answer), one a row, padded on the right.

    Weights are 1 where the target is a token of the answer. The model learns to answer, not to ask.
    """
    tokens, weights = np.zeros((len(examples), length + 1), np.int32), np.zeros((len(examples), length), np.float32)
    used = np.zeros((len(examples), length), np.int32)
    for i, (prompt, answer) in enumerate(examples):
        whole = (prompt + answer)[: length + 1]
        tokens[i, : len(whole)] = whole
        used[i, : len(whole)] = 1
        weights[i, len(prompt) - 1 : len(whole) - 1] = 1  # the target of place t is token t + 1
    positions = np.arange(length, dtype=np.int32) * used
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    return batch | {"segment_ids": used, "positions": positions}


def batch_of(examples: Sequence[tuple[list[int], list[int]]], size: int, length: int, n: int) -> Batch:
    """Return batch n of an endless shuffled stream of examples."""
    order = np.random.default_rng(n).permutation(len(examples))
    return rows([examples[i] for i in order[:size]], length)


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    config, recipe = Config(vocab_size=128, num_layers=2, embed_dim=64, mlp_dim=128), Recipe(60, 0.01)
    numbers = [(list(f"{a}+{b}=".encode()), list(f"{a + b};".encode())) for a in range(10) for b in range(10)]
    state = first_state(declare(config), init(declare(config), 0), recipe)
    step = make_step(next_token_loss(config), declare(config), recipe)
    train(step, state, lambda n: batch_of(numbers, 32, 8, n), recipe.steps)
