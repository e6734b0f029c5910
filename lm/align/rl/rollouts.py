"""Rollouts: a policy answers prompts, with the live parameters and the one sampler, and calls tools if it has any.

A rollout is a conversation as token ids, of which it is known which ones the policy drew and with what log-probability. What
is trained on are those ids: no text is encoded again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.chat.template import end_of_turn
from lm.align.rl.tools import Answer, Tool, answer_ids, parse_turn, run_calls
from lm.infer.decode import Sampling
from lm.infer.sampler import draw
from lm.model.transformer import Transformer


class Rollout(NamedTuple):
    """A prompt and all that came after it.

    tokens: ids. mask: which of them the policy drew. logps: the sampler's log-probability of these, nats; 0 elsewhere.
    messages: the whole conversation. completion: the text of the policy's last turn. ended: its last turn came to its end and
    was not cut by a length. tool_calls, tool_errors: how many calls there were, and how many of them failed.
    """

    tokens: list[int]
    mask: list[bool]
    logps: list[float]
    messages: list[dict]
    completion: str
    ended: bool
    tool_calls: int
    tool_errors: int

    @property
    def length(self) -> int:
        """Tokens that the policy drew."""
        return sum(self.mask)


def roll_out(
    model: Transformer,
    tokenizer,
    tasks: Sequence[dict],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    width: int = 0,
    most_tokens: int = 0,
    tools: Sequence[Tool] = (),
    max_turns: int = 1,
    template: str | None = None,
    each: int = 1,
) -> list[Rollout]:
    """`each` rollouts of each task, which stand one after the other.

    Args:
      tasks: {"prompt": messages, "prompt_ids": ids that end where the policy begins, …}.
      max_new_tokens: of a turn. most_tokens: of a rollout, its prompt included; 0: no matter.
      tools: what a turn may call; each turn but the last of max_turns is followed by the answers to its calls.
      seed, width: as draw has them.
    """
    stops = stop_ids(tokenizer, template)
    rows = [_Row(list(task["prompt_ids"]), list(task["prompt"])) for task in tasks for _ in range(each)]
    going = list(range(len(rows)))
    for turn in range(max_turns):
        # As many rows as at first, so that nothing compiles anew; those that only fill up are one token long.
        prompts = [rows[i].tokens for i in going] + [[stops[0]]] * (len(rows) - len(going))
        alike = each if turn == 0 else 1
        drawn = draw(
            model,
            prompts[::alike],
            Sampling(max_new_tokens, temperature, top_p, top_k, tuple(stops), tokenizer.vocab_size, seed=seed + 7919 * turn),
            copies=alike,
            width=width,
        )
        calls = []
        for i, tokens, logps, ended in zip(going, drawn.tokens, drawn.logps, drawn.ended):
            calls.append(rows[i].said(tokenizer, tokens, logps, ended, bool(tools)))
        if not tools:
            break
        answered = run_calls(tools, calls)
        last = turn == max_turns - 1
        still = []
        for i, answers in zip(going, answered, strict=True):
            if answers and rows[i].ended and not last:
                rows[i].told(tokenizer, answers, template)
                if not most_tokens or len(rows[i].tokens) + max_new_tokens <= most_tokens:
                    still.append(i)
                else:
                    rows[i].ended = False
        going = still
        if not going:
            break
    return [row.rollout() for row in rows]


def stop_ids(tokenizer, template: str | None = None) -> tuple[int, ...]:
    """What ends a turn: the symbol that the template puts there, and whatever ends a document."""
    return tuple(dict.fromkeys((end_of_turn(tokenizer, template), *tokenizer.stop_ids)))


def arrays(rollouts: Sequence[Rollout], sequence_length: int, pad_id: int) -> dict[str, np.ndarray]:
    """Rows [N, T] for the trainer, padded on the right: tokens, targets, segment_ids, positions (int32), weights (float32, 1
    where the policy drew the target) and sampler_logps (float32). A rollout beyond T + 1 tokens loses its end."""
    N, T = len(rollouts), sequence_length
    tokens = np.full((N, T + 1), pad_id, np.int32)
    drawn, logps = np.zeros((N, T + 1), np.float32), np.zeros((N, T + 1), np.float32)
    segments = np.zeros((N, T + 1), np.int32)
    for i, rollout in enumerate(rollouts):
        n = min(len(rollout.tokens), T + 1)
        tokens[i, :n], drawn[i, :n] = rollout.tokens[:n], rollout.mask[:n]
        logps[i, :n], segments[i, :n] = rollout.logps[:n], 1
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (N, T)) * segments[:, :-1]
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments[:, :-1],
        "positions": positions,
        "weights": drawn[:, 1:],
        "sampler_logps": logps[:, 1:],
    }


class _Row:
    """A rollout while it grows."""

    def __init__(self, tokens: list[int], messages: list[dict]):
        self.tokens, self.messages = tokens, messages
        self.mask, self.logps = [False] * len(tokens), [0.0] * len(tokens)
        self.completion, self.ended, self.tool_calls, self.tool_errors = "", False, 0, 0

    def said(self, tokenizer, tokens: list[int], logps: list[float], ended: bool, may_call: bool):
        """Takes a turn of the policy. Returns the calls in it, each a message's `function` or an error's text."""
        self.tokens += tokens
        self.mask += [True] * len(tokens)
        self.logps += logps
        self.ended = ended
        turn = tokens[:-1] if ended else tokens
        if not may_call:
            self.completion = tokenizer.decode(turn)
            self.messages.append({"role": "assistant", "content": self.completion})
            return []
        parsed = parse_turn(tokenizer, turn)
        self.completion = parsed.content
        message = {"role": "assistant", "content": parsed.content}
        if parsed.tool_calls:
            message["tool_calls"] = parsed.tool_calls
        self.messages.append(message)
        calls = [*(call["function"] for call in parsed.tool_calls), *parsed.errors]
        self.tool_calls += len(calls)
        return calls if ended else []

    def told(self, tokenizer, answers: Sequence[Answer], template: str | None) -> None:
        """Takes what tools answered, and opens the policy's next turn."""
        self.tool_errors += sum(answer.failed for answer in answers)
        texts = [answer.text for answer in answers]
        ids = answer_ids(tokenizer, texts, template)
        self.tokens += ids
        self.mask += [False] * len(ids)
        self.logps += [0.0] * len(ids)
        self.messages += [{"role": "tool", "content": text} for text in texts]

    def rollout(self) -> Rollout:
        return Rollout(
            self.tokens, self.mask, self.logps, self.messages, self.completion, self.ended, self.tool_calls, self.tool_errors
        )
