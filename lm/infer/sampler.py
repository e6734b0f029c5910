"""Sample with a key/value cache: lay out prompts for the compiled programs of lm/infer/decode.py and collect their results.

Axes: B rows, P padded prompt slots, V vocabulary.
"""

import codecs
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from data.chat.media.encoding import Towers
from data.chat.messages import is_list, make_message
from data.chat.template import Message
from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.infer import not_finite
from lm.infer.call import Call, Layout, prepared, rounded_slots
from lm.infer.decode import Sampling, SamplingState, changed
from lm.infer.prompts import Prompt, joined_media
from lm.infer.prompts import read as prompts_as_ids
from lm.model.media import Media
from lm.model.transformer import Transformer
from lm.parallel.hosts import gathered
from lm.parallel.mesh import place_rows, row_ways

UPDATE = 0.08  # seconds between two pieces of a streamed text
COARSE = 2  # steps of rounded_slots where a loop is interrupted: evaluations have prompts of all lengths


class Drawn(NamedTuple):
    """The sampled continuation of each prompt.

    tokens: including the stop id that ended a row. logps: log-probability of each token in nats, at the sampling temperature
    (1 if that is 0) and before top_k and top_p. ended: whether a stop id ended it, not the length.
    """

    tokens: list[list[int]]
    logps: list[list[float]]
    ended: list[bool]


def generate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[str | Sequence[int] | Sequence[Message]],
    *,
    stream: Callable[[str], None] | None = None,
    template: str | None = None,
    media: Media | None = None,
    towers: Towers | None = None,
    **settings: Any,
) -> list[str | list[int]]:
    """Return a completion of each prompt, up to an end token or `max_new_tokens`.

    A prompt is a string, token ids, or the messages of a conversation, which the assistant answers (lm/infer/prompts.py).
    A row's sample depends on (seed, its index), not on the other rows.

    Args:
      stream: called with each new piece of text; only for a single prompt.
      template: the Jinja chat template of messages; None: the tokenizer's own.
      media: images and sound that the prompts have tokens for, arrays with a row for each prompt. towers: of the model, for
        messages with images and sound (lm.convert.multimodal.processor.towers_of).
      settings: max_new_tokens=64, temperature=1.0, top_p=1.0, top_k=0, seed=0, cache_dtype=""; see lm.infer.decode.Sampling.
    Returns: completions without the prompt and the end token: token ids for token ids, strings for the others.
    """
    read = prompts_as_ids(tokenizer, prompts, template, towers)
    media = joined_media(read, model.config) if media is None else media
    known = tokenizer.vocab_size if tokenizer else 0
    sampling = Sampling(**{"max_new_tokens": 64} | settings, stop_ids=(), vocab_size=known)  # those of each prompt follow
    drawn: dict[int, list[int]] = {}
    if stream is None:
        for stops in dict.fromkeys(prompt.stops for prompt in read):
            rows = [n for n, prompt in enumerate(read) if prompt.stops == stops]
            asked = dataclasses.replace(sampling, stop_ids=tuple(stops))
            own = jax.tree.map(lambda x, rows=rows: x[np.array(rows)], media)
            some = draw(model, [read[n].ids for n in rows], asked, Layout(rows=rows, names=rows), media=own)
            drawn |= dict(zip(rows, some.tokens, strict=True))
    elif len(read) != 1 or tokenizer is None:
        raise UserError("streaming takes one prompt, and a tokenizer for its text")
    else:
        drawn[0] = []
        for piece in streamed(model, tokenizer, read[0], sampling, media):
            drawn[0] += piece.tokens
            if piece.text:
                stream(piece.text)
    found: list[str | list[int]] = []
    for n, prompt in enumerate(read):
        row = drawn[n][:-1] if drawn[n] and drawn[n][-1] in prompt.stops else drawn[n]
        found.append(tokenizer.decode(row) if tokenizer is not None and prompt.is_text else row)
    return found


def chat(model: Transformer, tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> dict[str, str]:
    """Return the assistant's next message of a conversation, {"role": "assistant", "content": …}.

    messages: such as [{"role": "user", "content": "What is a cat?"}]. options: those of `generate`, with `stream`.
    Raises: UserError for anything but a list of messages.
    """
    if not is_list(messages) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise UserError('chat takes the messages of one conversation, such as [{"role": "user", "content": "…"}]')
    answer = generate(model, tokenizer, [messages], **options)[0]
    assert isinstance(answer, str)  # as the prompt is messages
    return make_message("assistant", answer)


class Watch(NamedTuple):
    """Callbacks that inspect continuations during sampling.

    every: tokens between two calls; 0: no calls. enough(number of a continuation, its tokens so far): whether to end it.
    tell({number: (tokens, ended)}): receives the continuations that have ended since the last call.
    """

    every: int = 0
    enough: Callable[[int, list[int]], bool] = lambda number, tokens: False
    tell: Callable[[dict[int, tuple[list[int], bool]]], None] = lambda done: None


def draw(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    layout: Layout = Layout(),  # noqa: B008 (it is immutable)
    *,
    prefix: Sequence[int] = (),
    media: Media | None = None,
    watch: Watch = Watch(),  # noqa: B008
) -> Drawn:
    """Sample continuations of prompts of token ids in one batch, on the mesh that is set.

    Args:
      prefix: ids before all prompts, read once. Not for models with windows or angles that depend on the length.
      media: images and sound that the prompts have tokens for, arrays with a row for each prompt.
      watch: if its `every` is above 0, slots are added as needed, and finished rows are removed when a
        quarter is left. Not with copies of a prompt.
    On several hosts every process calls this with the same arguments and gets all rows.
    Raises: UserError at the first token whose logits are NaN or infinite; it names the prompt and the likely cause.
    """
    if not len(prompts):
        return Drawn([], [], [])
    every, limit, copies = watch.every, sampling.max_new_tokens, layout.copies
    if every and copies > 1:
        raise ValueError("continuations that share a prompt go on together")
    until = min(every or limit, limit)
    slots = min(2 * every or limit, limit)
    call = prepared(model, prompts, sampling, layout, prefix, media, slots, COARSE if every else 8)
    state = call.start()
    call = call.with_weights()
    state = call.loop(state, until)
    count, numbers = len(prompts) * copies, np.arange(call.draws.rows_B.shape[0])  # of the continuation in each row
    going = numbers < count  # the others fill the batch
    found: list[tuple[list[int], list[float], bool] | None] = [None] * count
    names = range(len(prompts)) if layout.names is None else layout.names
    while True:
        _check_finite(model, state, [names[int(n) // copies if n < count else 0] for n in numbers], sampling)
        done = {}
        for place, row in enumerate(zip(*_drawn(state, sampling.stop_ids))):
            number = int(numbers[place])
            if going[place] and (row[2] or until == limit or watch.enough(number, row[0])):
                found[number], going[place], done[number] = row, False, (row[0], row[2])
        watch.tell(done)
        if not going.any():
            return Drawn(*map(list, zip(*found)))
        until = min(until + every, limit)
        call, state, numbers, going = _resumed(call, state, numbers, going, until)


def _check_finite(model: Transformer, state: SamplingState, prompts: Sequence[int], sampling: Sampling) -> None:
    """Raise UserError if the last step found logits that are not finite. prompts: the index of each row's prompt."""
    rows = np.flatnonzero(gathered(state.lost_B))
    if rows.size:
        raise not_finite.of_prompt(model, prompts[rows[0]], int(state.n) - 1, sampling.temperature)


def _drawn(state: SamplingState, stop_ids: Sequence[int]) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Return (tokens, logps, ended) of each row so far, as in Drawn."""
    n = int(state.n)
    out, logps = gathered((state.out_BN, state.logps_BN))
    out = out[:, :n]
    ends = np.isin(out, stop_ids)
    ended = np.any(ends, axis=1)
    counts = np.where(ended, ends.argmax(axis=1) + 1, n)  # up to and with the token that ended a row
    tokens = [row[:count].tolist() for row, count in zip(out, counts)]
    return tokens, [row[: len(drawn)].tolist() for row, drawn in zip(logps, tokens)], ended.tolist()


def _resumed(
    call: Call, state: SamplingState, numbers: np.ndarray, going: np.ndarray, until: int
) -> tuple[Call, SamplingState, np.ndarray, np.ndarray]:
    """Return (call, state, numbers, going) after `until` tokens. Finished rows may be removed; unfinished ones stay."""
    ways, left, kept, config = row_ways(), int(going.sum()), None, call.config
    size = ways << (-(-left // ways) - 1).bit_length()
    if 4 * size <= len(numbers) and not config.scan_layers:
        kept = np.resize(np.flatnonzero(going), size)
        numbers, going = numbers[kept], np.arange(size) < left
    drawn, end = int(state.n), int(state.decode.slot) - int(state.n)
    slots, more = state.decode.segments_BS.shape[1], 0
    if end + until > slots:
        more = rounded_slots(end + min(call.limit, max(until, 2 * drawn)), COARSE) - slots
    if more or kept is not None:
        prompts, draws = call.prompts, call.draws
        state, tokens_BP, rows_B = changed(config, more, state, prompts.tokens_BP, draws.rows_B, kept)
        call = call._replace(prompts=prompts._replace(tokens_BP=tokens_BP), draws=draws._replace(rows_B=rows_B))
    state = state._replace(done_B=state.done_B | place_rows(~going)[0])
    return call, call.loop(state, until), numbers, going


class Piece(NamedTuple):
    """Part of a streamed completion. tokens: the new ones, with the end token. text: of all characters that they complete."""

    tokens: list[int]
    text: str


def streamed(
    model: Transformer, tokenizer: Tokenizer, prompt: Prompt, sampling: Sampling, media: Media | None = None
) -> Iterator[Piece]:
    """Yield the completion of one prompt piece by piece: its first token, then what is sampled in about UPDATE seconds.

    The compiled loop is interrupted for each piece. The tokens do not depend on the pieces, and the texts add up to the text
    that `generate` returns: a character waits until all its bytes are sampled.
    """
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    sampling = dataclasses.replace(sampling, stop_ids=prompt.stops)
    call = prepared(model, [prompt.ids], sampling, media=media)
    state, seen, steps = call.start(), 0, 1
    while True:
        _check_finite(model, state, [0] * state.lost_B.shape[0], sampling)
        n = int(state.n)
        tokens, over = np.asarray(state.out_BN)[0, seen:n].tolist(), n == call.limit or bool(state.done_B[0])
        shown = tokens[:-1] if tokens[-1] in prompt.stops else tokens
        yield Piece(tokens, characters.decode(tokenizer.decode_bytes(shown), final=over))
        if over:
            return
        call = call.with_weights()
        began, seen = time.perf_counter(), n
        state = jax.block_until_ready(call.loop(state, min(n + steps, call.limit)))
        each = (time.perf_counter() - began) / max(1, int(state.n) - n)
        steps = max(1, min(2 * steps, int(UPDATE / each)))
