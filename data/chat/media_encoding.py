"""Encode conversations with images and audio: token ids with a run of tokens for each medium, and its arrays in the same order.

Letters: T tokens, N tiles of S × S pixels, K windows of F frames with M mels (data/media/tiles.py, spectrograms.py).
"""

from typing import NamedTuple

import numpy as np

from data.chat.conversations import Conversation
from data.chat.example_encoding import Encoder, Sequenced
from data.chat.media_places import Placed
from data.chat.messages import Messages
from data.media import audio, images, spectrograms, tiles
from data.media.parts import Medium
from data.media.prompts import OWN, Style
from data.text.tokenizer import Tokenizer
from lm.errors import UserError, after

MOST_TILES = 512  # of a conversation: 1.6 GB for tiles of 512 pixels
MOST_WINDOWS = 512  # of a conversation: 0.8 GB for 30 seconds with 128 mels


class Towers(NamedTuple):
    """What a model sees and hears. style: how its prompts write it.

    image, audio: how its towers want them; None if it has no such tower. image_tokens: of a tile. audio_tokens: of a window.
    """

    image: tiles.Tower | None = None
    image_tokens: int = 0
    audio: spectrograms.Tower | None = None
    audio_tokens: int = 0
    style: Style = OWN


class Arrays(NamedTuple):
    """The prepared media of a conversation, in order. images: float32 [N, S, S, 3]. audio: float32 [K, F, M]."""

    images: np.ndarray
    audio: np.ndarray


class Seen(NamedTuple):
    """A conversation with media.

    sequence: its T tokens; those of media are not trained. arrays: its media. image_spans, audio_spans: int64 [N, 2] and
    [K, 2], the first token of each tile or window, and the one after its last.
    """

    sequence: Sequenced
    arrays: Arrays
    image_spans: np.ndarray
    audio_spans: np.ndarray

    def learnt(self, length: int | None = None) -> "Seen":
        """Return the first `length` tokens, cut after the last trained one, with the media whose tokens are all among them.

        The cut is before the first tile or window that would be cut.
        """
        length = len(self.sequence.ids) if length is None else length
        for begin, end in sorted([*self.image_spans.tolist(), *self.audio_spans.tolist()]):
            if end > length:
                length = min(length, begin)
        sequence = self.sequence.learnt(length)
        pictures, sounds = (int(np.sum(spans[:, 1] <= len(sequence.ids))) for spans in (self.image_spans, self.audio_spans))
        arrays = Arrays(self.arrays.images[:pictures], self.arrays.audio[:sounds])
        return Seen(sequence, arrays, self.image_spans[:pictures], self.audio_spans[:sounds])


def prepared(messages: Messages, towers: Towers) -> tuple[Messages, Arrays]:
    """Return messages of `data.chat.conversations` with their media as `Placed`, for `encode_chat`, and the arrays.

    Raises: UserError with the place, for a medium that cannot be read or decoded, or that the model has no tower for.
    """
    pictures: list[np.ndarray] = []
    sounds: list[np.ndarray] = []
    new = []
    for message in messages:
        placed = [_placed(medium, towers, pictures, sounds) for medium in message.get("media", ())]
        new.append(message | {"media": placed} if placed else message)
    S = towers.image.size if towers.image else 0
    frames, mels = (towers.audio.seconds * spectrograms.FRAMES, towers.audio.mels) if towers.audio else (0, 0)
    none = np.zeros((0, S, S, 3), np.float32), np.zeros((0, frames, mels), np.float32)
    return new, Arrays(np.concatenate([none[0], *pictures]), np.concatenate([none[1], *sounds]))


def encode_conversation(tokenizer: Tokenizer, example: Conversation, towers: Towers, template: str | None = None) -> Seen:
    """Encode a conversation; all turns of the assistant are trained. template: None is the tokenizer's own.

    Raises: UserError as `prepared` and data.chat.example_encoding.Encoder.
    """
    messages, arrays = prepared(example.messages, towers)
    encoder = Encoder(tokenizer, template, towers.style.symbols)
    return _seen(encoder.conversation(example._replace(messages=messages)), arrays, tokenizer, towers)


def encode_prompt(
    tokenizer: Tokenizer, prompt: Messages, towers: Towers, template: str | None = None, tools: list[dict] | None = None
) -> Seen:
    """Encode a prompt up to the start of the assistant's answer; nothing is trained. Raises: as `encode_conversation`."""
    messages, arrays = prepared(prompt, towers)
    ids = np.asarray(Encoder(tokenizer, template, towers.style.symbols).prompt_ids(messages, tools), np.int32)
    return _seen(Sequenced(ids, np.zeros(len(ids), bool)), arrays, tokenizer, towers)


def _placed(medium: Medium, towers: Towers, pictures: list[np.ndarray], sounds: list[np.ndarray]) -> Placed:
    """Prepare a medium, append its array to `pictures` or `sounds`, and return its text."""
    if (towers.image if medium.kind == "image" else towers.audio and towers.style.audio) is None:
        raise UserError(f"{medium.where}: this model has no tower for {medium.kind}; leave the record out")
    if medium.kind == "audio":
        windows = spectrograms.prepare(audio.decode(medium.read(), medium.where), towers.audio)
        if sum(map(len, sounds)) + len(windows) > MOST_WINDOWS:
            raise UserError(f"{medium.where}: a conversation of more than {MOST_WINDOWS} windows; cut it into several")
        sounds.append(windows)
        return Placed("audio", towers.style.audio(towers.audio_tokens, len(windows)))
    with after(f"{medium.where}: "):
        found = tiles.prepare(images.decode(medium.read(), "the image"), towers.image)
        if sum(map(len, pictures)) + len(found.pixels) > MOST_TILES:
            raise UserError(f"a conversation of more than {MOST_TILES} tiles; cut it into several")
        text = towers.style.image(towers.image_tokens, found.rows, found.columns)
    pictures.append(found.pixels)
    return Placed("image", text)


def _seen(sequence: Sequenced, arrays: Arrays, tokenizer: Tokenizer, towers: Towers) -> Seen:
    spans = {}
    for kind, tokens, count in zip(("image", "audio"), (towers.image_tokens, towers.audio_tokens), map(len, arrays)):
        spans[kind] = np.zeros((0, 2), np.int64)
        if count:
            symbol = towers.style.symbols[kind]
            places = np.flatnonzero(sequence.ids == tokenizer.chat_symbols(symbol)[symbol])
            sequence.trained[places] = False
            spans[kind] = places.reshape(count, tokens)[:, [0, -1]] + [0, 1]
    return Seen(sequence, arrays, spans["image"], spans["audio"])
