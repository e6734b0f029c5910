"""Complete prompts and answer conversations with a model of this process."""

import codecs
import dataclasses
import queue
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil

from data.chat.harmony import Channels, awaits_channel, spelled
from data.chat.media.encoding import Towers
from data.chat.messages import is_list, make_message
from data.chat.template import Message, opens_thought
from data.text.tokenizer import Tokenizer
from lm.config import ModelConfig
from lm.config.towers import NAMES
from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.local import LocalEngine, checked, seed_of_row
from lm.infer.engine.request import NOT_FINITE, Event, Request, Sampling, Tile, tiles_of
from lm.infer.prompts import read as prompts_as_ids
from lm.model.media import Media
from lm.model.transformer import Transformer

SHARE = 0.5  # of the free memory, for a packed copy of the weights
_engines: weakref.WeakKeyDictionary[Transformer, LocalEngine] = weakref.WeakKeyDictionary()  # of models that generated before


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
    A row's sample depends on (seed, its index), not on the other rows. The model may be sharded over the mesh that is set. Its
    engine stays for the next call, as long as the model is there.

    Args:
      stream: called with each new piece of text; only for a single prompt.
      template: the Jinja chat template of messages; None: the tokenizer's own.
      media: images and sound that the prompts have tokens for, arrays with a row for each prompt. towers: of the model, for
        messages with images and sound (lm.convert.multimodal.processor.towers_of).
      settings: max_new_tokens=64, temperature=1.0, top_p=1.0, top_k=0, seed=0, cache_dtype=""; see Sampling.
    Returns: completions without the prompt and the end token: token ids for token ids, strings for the others.
    """
    read = prompts_as_ids(tokenizer, prompts, template, towers)
    if stream is not None and (len(read) != 1 or tokenizer is None):
        raise UserError("streaming takes one prompt, and a tokenizer for its text")
    if not read:
        return []
    o = Sampling(**{"max_new_tokens": 64} | settings)
    requests = []
    for row, prompt in enumerate(read):
        tiles = tiles_of(prompt.media) if media is None else _tiles_of_row(media, row, prompt.ids, model.config)
        seed = seed_of_row(o, row)
        requests.append(dataclasses.replace(o.request(prompt.ids, seed), stop_ids=prompt.stops, media=tiles))
    local = _engines.get(model)
    if local is None:
        local = _engines[model] = LocalEngine(tokenizer, SHARE * psutil.virtual_memory().available)
        weakref.finalize(model, local.close)
    engine = local.using(model, len(read), max(len(prompt.ids) for prompt in read) + o.max_new_tokens, o.cache_dtype)
    if stream is None:
        drawn = [list(event.tokens) for event in checked(model, engine.answers(requests), o.temperature)]
    else:
        drawn = [_streamed(model, engine, requests[0], stream)]
    found: list[str | list[int]] = []
    for prompt, tokens in zip(read, drawn, strict=True):
        shown = tokens[:-1] if tokens and tokens[-1] in prompt.stops else tokens
        if tokenizer is not None and prompt.is_text:
            found.append(spelled(tokenizer, shown, opens_thought(tokenizer, prompt.ids)))
        else:
            found.append(shown)
    return found


def chat(model: Transformer, tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> dict[str, str]:
    """Return the assistant's next message of a conversation, {"role": "assistant", "content": …}.

    The thought that begins the answer, `<think>…</think>`, is in its `reasoning_content`.
    messages: such as [{"role": "user", "content": "What is a cat?"}]. options: those of `generate`, with `stream`.
    Raises: UserError for anything but a list of messages.
    """
    if not is_list(messages) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise UserError('chat takes the messages of one conversation, such as [{"role": "user", "content": "…"}]')
    answer = generate(model, tokenizer, [messages], **options)[0]
    assert isinstance(answer, str)  # as the prompt is messages
    from data.chat.thoughts import divided

    prompt = prompts_as_ids(tokenizer, [messages], options.get("template"), options.get("towers"))[0]
    thought, answer = divided(answer, opens_thought(tokenizer, prompt.ids))
    return make_message("assistant", answer) | ({"reasoning_content": thought} if thought else {})


class Piece(NamedTuple):
    """Part of a streamed completion.

    tokens: the new ones, with the end token. text: of all characters that they complete. thought: those of them before the
    answer of a conversation.
    """

    tokens: list[int]
    text: str
    thought: str = ""


def pieces(engine: Engine, request: Request) -> Iterator[Piece]:
    """Yield the completion of a request as it is sampled. The engine has a tokenizer.

    A character waits until all its bytes are sampled. The request is cancelled if the caller stops.
    Raises: UserError if it ends by an error.
    """
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    characters, events, finish = codecs.getincrementaldecoder("utf-8")("replace"), queue.SimpleQueue[Event](), ""
    channels = Channels(tokenizer) if tokenizer.is_harmony and awaits_channel(tokenizer, request.prompt) else None
    handle = engine.submit(request, events.put)
    try:
        while not finish:
            event = events.get()
            finish = event.finish
            if finish == "error":
                raise UserError(event.error)
            shown = [token for token in event.tokens if token not in request.stop_ids]
            new = b"".join(map(channels.feed, shown)) if channels else tokenizer.decode_bytes(shown)
            if channels and finish:
                new += channels.over()
            yield Piece(list(event.tokens), characters.decode(new, final=bool(finish)))
    finally:
        handle.cancel()


def _streamed(model: Transformer, engine: Engine, request: Request, stream: Callable[[str], None]) -> list[int]:
    """Return the tokens of a request, and tell `stream` their text as it is sampled."""
    tokens: list[int] = []
    try:
        for piece in pieces(engine, request):
            tokens += piece.tokens
            if piece.text:
                stream(piece.text)
    except UserError as error:
        if str(error) != NOT_FINITE:
            raise
        checked(model, [Event(tuple(tokens), finish="error", error=NOT_FINITE)], request.temperature)
    return tokens


def _tiles_of_row(media: Media, row: int, ids: Sequence[int], config: ModelConfig) -> tuple[Tile, ...]:
    """Return the tiles of one row of media, as many as its prompt has tokens for; others only fill the array."""
    tiles: list[Tile] = []
    for name in NAMES:
        section = getattr(config, name)
        some = [tile for tile in tiles_of(jax.tree.map(lambda x: np.asarray(x)[row : row + 1], media)) if tile.name == name]
        tiles += some[: ids.count(section.token_id) // section.tokens] if section.num_layers else some
    return tuple(tiles)
