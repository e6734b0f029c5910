"""Encode conversations with images and audio: token ids with a run of tokens for each medium, and its arrays in the same order.

Letters: T tokens, N tiles of S × S pixels, K windows of F frames with M mels (data/media/tiles.py, spectrograms.py).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from data.chat.example_encoding import Encoder, Sequenced
from data.chat.messages import Conversation, Messages
from data.media import audio, images, spectrograms, tiles
from data.media.parts import KINDS
from data.media.prompts import OWN, Placed, Style
from data.text.tokenizer import Tokenizer
from lm.errors import UserError, after

# Tiles and windows of a conversation: 1.6 GB for tiles of 512 pixels, 0.8 GB for 30 seconds with 128 mels.
MAX = {"image": 512, "audio": 512}


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
    """Prepared media, in order. images: float32 [N, S, S, 3]. audio: float32 [K, F, M]."""

    images: np.ndarray
    audio: np.ndarray


class Kept(NamedTuple):
    """A medium as its file, and the number of its tiles or windows that a sequence has, from the first one."""

    kind: str
    file: bytes
    count: int


class Seen(NamedTuple):
    """A conversation with media.

    sequence: its T tokens; those of media are not trained. arrays: its media. image_spans, audio_spans: int64 [N, 2] and
    [K, 2], the first token of each tile or window, and the one after its last. media: the files of the arrays.
    """

    sequence: Sequenced
    arrays: Arrays
    image_spans: np.ndarray
    audio_spans: np.ndarray
    media: list[Kept]

    @property
    def ids(self) -> np.ndarray:
        return self.sequence.ids

    def learnt(self, length: int | None = None) -> "Seen":
        """Return the first `length` tokens, cut after the last trained one, with the media whose tokens are all among them.

        The cut is before the first tile or window that would be cut.
        """
        length = len(self.ids) if length is None else length
        for begin, end in sorted([*self.image_spans.tolist(), *self.audio_spans.tolist()]):
            if end > length:
                length = min(length, begin)
        sequence = self.sequence.learnt(length)
        pictures, sounds = (int(np.sum(spans[:, 1] <= len(sequence.ids))) for spans in (self.image_spans, self.audio_spans))
        arrays, left, media = Arrays(self.arrays.images[:pictures], self.arrays.audio[:sounds]), [pictures, sounds], []
        for kind, file, count in self.media:
            here = KINDS.index(kind)
            count = min(count, left[here])
            left[here] -= count
            media += [Kept(kind, file, count)] if count else []
        return Seen(sequence, arrays, self.image_spans[:pictures], self.audio_spans[:sounds], media)


def encode_conversation(encoder: Encoder, example: Conversation, towers: Towers) -> Seen:
    """Encode a conversation; all turns of the assistant are trained.

    Args: encoder: with the style of the towers.
    Raises: UserError as `prepared` and data.chat.example_encoding.Encoder.
    """
    messages, arrays, media = prepared(example.messages, towers)
    return _seen(encoder.conversation(example._replace(messages=messages)), arrays, media, encoder.tokenizer, towers)


def encode_prompt(encoder: Encoder, prompt: Messages, towers: Towers, tools: list[dict] | None = None) -> Seen:
    """Encode a prompt up to the start of the assistant's answer; nothing is trained. Else as `encode_conversation`."""
    messages, arrays, media = prepared(prompt, towers)
    ids = np.asarray(encoder.prompt_ids(messages, tools), np.int32)
    return _seen(Sequenced(ids, np.zeros(len(ids), bool)), arrays, media, encoder.tokenizer, towers)


def prepared(messages: Messages, towers: Towers) -> tuple[Messages, Arrays, list[Kept]]:
    """Return messages of `data.chat.conversations` with their media as `Placed`, for `encode_chat`; the arrays, and the files.

    Raises: UserError with the place, for a medium that cannot be read or decoded, or that the model has no tower for.
    """
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    new, media = [], []
    for message in messages:
        placed = []
        for medium in message.get("media", ()):
            file = medium.read()
            array, text = _prepared(medium.kind, file, towers, medium.where)
            found[medium.kind].append(array)
            if sum(map(len, found[medium.kind])) > MAX[medium.kind]:
                raise UserError(
                    f"{medium.where}: over {MAX[medium.kind]} tiles or windows in a conversation; cut it into several"
                )
            placed.append(Placed(medium.kind, text))
            media.append(Kept(medium.kind, file, len(array)))
        new.append(message | {"media": placed} if placed else message)
    return new, _joined(found, towers), media


def arrays_of(media: Iterable[Kept], towers: Towers, where: str) -> Arrays:
    """Return the arrays of media, in order. Raises: UserError that begins with `where`, as `prepared`."""
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for kind, file, count in media:
        found[kind].append(_prepared(kind, file, towers, where)[0][:count])
    return _joined(found, towers)


def _prepared(kind: str, file: bytes, towers: Towers, where: str) -> tuple[np.ndarray, str]:
    """Return the tiles or windows of a medium, and its text in a prompt."""
    style = towers.style
    if None in ((towers.image, style.image) if kind == "image" else (towers.audio, style.audio)):
        raise UserError(f"{where}: this model has no tower for {kind}; leave the record out")
    if kind == "audio":
        windows = spectrograms.prepare(audio.decode(file, where), towers.audio)
        return windows, style.audio(towers.audio_tokens, len(windows))
    with after(f"{where}: "):
        found = tiles.prepare(images.decode(file, "the image"), towers.image)
        return found.pixels, style.image(towers.image_tokens, found.rows, found.columns)


def _joined(found: Mapping[str, list[np.ndarray]], towers: Towers) -> Arrays:
    S = towers.image.size if towers.image else 0
    frames, mels = (towers.audio.seconds * spectrograms.FRAMES, towers.audio.mels) if towers.audio else (0, 0)
    none = {"image": np.zeros((0, S, S, 3), np.float32), "audio": np.zeros((0, frames, mels), np.float32)}
    return Arrays(*(np.concatenate([none[kind], *found[kind]]) for kind in KINDS))


def _seen(sequence: Sequenced, arrays: Arrays, media: list[Kept], tokenizer: Tokenizer, towers: Towers) -> Seen:
    spans = {}
    for kind, tokens, count in zip(KINDS, (towers.image_tokens, towers.audio_tokens), map(len, arrays)):
        spans[kind] = np.zeros((0, 2), np.int64)
        if count:
            symbol = towers.style.symbols[kind]
            places = np.flatnonzero(sequence.ids == tokenizer.chat_symbols(symbol)[symbol])
            sequence.trained[places] = False
            spans[kind] = places.reshape(count, tokens)[:, [0, -1]] + [0, 1]
    return Seen(sequence, arrays, spans["image"], spans["audio"], media)
