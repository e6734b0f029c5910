"""Supervised fine-tuning: the loss of pretraining, on the answers of conversations only (Ouyang et al. 2022)."""

import functools
from typing import Any

import jax

from tour.mesh import make_mesh
from tour.model import TINY, Batch, declare, init
from tour.optimizers import Recipe
from tour.pretrain import fit, next_token_loss
from tour.text import ASSISTANT, BOS_ID, END, USER, batch_of_rows, shuffled

Example = tuple[list[int], list[int]]  # prompt, answer


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the tokens of a conversation, up to where the assistant speaks. No text of a user can end its turn."""
    control, roles = tokenizer.piece_to_id, {"user": USER, "assistant": ASSISTANT}
    ids = [BOS_ID]
    for message in messages:
        ids += [control(roles[message["role"]]), *tokenizer.encode(message["content"]), control(END)]
    return [*ids, control(ASSISTANT)]


def rows(examples: list[Example], length: int) -> Batch:
    """Return a batch of examples, one a row, padded on the right.

    Only targets of the answer have weight 1: the model learns to answer, not to ask.
    """
    batch = batch_of_rows([[(prompt + answer)[: length + 1]] for prompt, answer in examples], length)
    for i, (prompt, _) in enumerate(examples):
        batch["weights"][i, : len(prompt) - 1] = 0  # the target of place t is token t + 1
    return batch


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    sums = [(list(f"{a}+{b}=".encode()), list(f"{a + b};".encode())) for a in range(10) for b in range(10)]
    loss, weights = functools.partial(next_token_loss, TINY), declare(TINY)
    fit(loss, weights, init(weights, 0), Recipe(60, 0.01), lambda n, _: rows(shuffled(sums, n, 32), 8))
