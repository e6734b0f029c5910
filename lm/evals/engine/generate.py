"""Generate from many prompts in batches of similar length, each until a stop string, an end symbol or its limit.

A sample depends on the prompt, its settings and its seed. The rest of the batch changes only the order of float sums.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from data.chat.media.encoding import Kept, Towers, arrays_of
from data.media.spectrograms import FRAMES
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.likelihood import CACHE, Work, slot_bytes
from lm.evals.engine.prefix_plan import divided
from lm.infer.call import Layout
from lm.infer.decode import Sampling
from lm.infer.sampler import Watch, draw
from lm.model.media import Media
from lm.model.transformer import Transformer
from lm.parallel.mesh import row_ways

ROWS = 64  # maximum rows of a batch
SHARED = 64  # minimum length of a common prefix that is read once
MEDIA = 1 << 28  # bytes of the images and sound of a batch
CHUNK = 128  # tokens between checks for stop strings; finished answers are stored then
# Tokens that could be read in the time of fetching all weights once, as each decoding step does: FLOPs over bytes a second.
STEP = {"cpu": 32, "accelerator": 256}
COMPILING = {"cpu": 5 * 10**11, "accelerator": 10**16}  # cost of compiling a width: FLOPs of the device in that time


class Ask(NamedTuple):
    """tokens: the prompt's ids, at least one. stops: strings that end an answer. temperature 0 is greedy.

    media: files of the images and sound that the prompt has tokens for. tiles: number of images and of windows of sound.
    """

    tokens: tuple[int, ...]
    stops: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    media: tuple[Kept, ...] = ()
    tiles: tuple[int, int] = (0, 0)

    def identity(self) -> list:
        """Return what an answer depends on beside the tokens, for JSON."""
        hashes = [hashlib.sha256(file).hexdigest() for _, file, _ in self.media]
        return [*self[1:6], *([hashes] if hashes else [])]


class Answer(NamedTuple):
    """tokens: up to and including the one that completes a stop string, without an end symbol. ended: before the limit."""

    tokens: list[int]
    ended: bool


def work(model: Transformer, encoding: Encoding, asks: Sequence[Ask]) -> Iterator[Work]:
    """Yield the batches that answer all asks on the current mesh. Run them in this order; each may be skipped.

    A batch holds asks with the same settings except for the seed. It reads their common prefix once and pads the rest of each
    prompt to one width. Equal asks are answered once. The batches depend only on the set of asks.
    """
    numbers: dict[Ask, list[int]] = {}
    for number, ask in enumerate(asks):
        numbers.setdefault(ask, []).append(number)
    alike: dict[tuple, list[Ask]] = {}
    for ask in sorted(numbers, key=lambda ask: (len(ask.tokens), ask)):
        alike.setdefault((*ask[1:5], tuple(map(_power, ask.tiles))), []).append(ask)
    for settings in sorted(alike):
        shared, tiles = _shared(model, alike[settings]), settings[-1]
        most = max(1, MEDIA // max(1, sum(x.nbytes for x in _zeros(1, tiles, encoding.towers))))
        for width, rows, some in _batches(model, alike[settings], shared, most):
            batch = {ask: numbers[ask] for ask in some}
            yield Work(
                [number for ask in some for number in numbers[ask]],
                (width, rows, shared, *settings[1:]),
                functools.partial(_answer, model, encoding, batch, shared, width, rows),
            )


def arrays_for(ask: Ask, towers: Towers) -> Media:
    """Return the media of an ask, arrays with one row. Raises: UserError for a file that cannot be read."""
    return Media(*(array[None] if len(array) else None for array in arrays_of(ask.media, towers, "an item's media")))


def _media_of(asks: Sequence[Ask], towers: Towers | None) -> Media | None:
    """Return the media of a batch of asks, filled up with zeros to a power of two; None for text."""
    known: dict[Ask, Media] = {}  # rows that fill a batch repeat others
    arrays = _zeros(len(asks), tuple(map(_power, asks[0].tiles)), towers)
    if not arrays:
        return None
    for row, ask in enumerate(asks):
        if ask not in known:
            known[ask] = arrays_for(ask, towers)
        for whole, own in zip(arrays, known[ask]):
            if own is not None:
                whole[row, : own.shape[1]] = own[0]
    return Media(*(whole if whole.shape[1] else None for whole in arrays))


def _zeros(rows: int, tiles: tuple[int, int], towers: Towers | None) -> list[np.ndarray]:
    """Return float32 zeros for the images and for the windows of sound of rows; [] for text."""
    if not any(tiles):
        return []
    image, audio = towers.image, towers.audio
    shapes = (image.size, image.size, 3) if image else (), (audio.seconds * FRAMES, audio.mels) if audio else ()
    return [np.zeros((rows, count, *shape), np.float32) for count, shape in zip(tiles, shapes)]


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length() if n else 0


def text_of(answer: Answer, ask: Ask, decode: Callable[[Sequence[int]], str]) -> str:
    """Return the text before the first stop string."""
    text = decode(answer.tokens)
    ends = [at for stop in ask.stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _answer(
    model: Transformer,
    encoding: Encoding,
    batch: dict[Ask, list[int]],
    shared: int,
    width: int,
    rows: int,
    wanted: set[int],
    keep: Callable[[dict[int, Answer]], None],
) -> None:
    """Answer asks that have the same settings and the first `shared` tokens in common. batch: each ask's numbers.

    A batch always keeps all its rows, so that it compiles once and no row moves. Unwanted rows end at the first check.
    """
    asks = list(batch)
    first, filled = asks[0], [*asks, *[asks[0]] * (rows - len(asks))]
    known = {n for n, ask in enumerate(asks) if not wanted.intersection(batch[ask])}
    decode, vocab_size = encoding.tokenizer.decode, encoding.tokenizer.vocab_size

    def answer(ask: Ask, tokens: list[int], ended: bool) -> Answer:
        tokens = tokens[:-1] if ended else tokens
        end = stopped(tokens, ask, decode)
        return Answer(tokens, ended) if end is None else Answer(tokens[:end], True)

    def tell(done: dict[int, tuple[list[int], bool]]) -> None:
        finished = [n for n in done if n < len(asks) and n not in known]
        keep({number: answer(asks[n], *done[n]) for n in finished for number in batch[asks[n]]})

    draw(
        model,
        [ask.tokens[shared:] for ask in filled],
        Sampling(first.max_new_tokens, first.temperature, first.top_p, stop_ids=encoding.stop_ids, vocab_size=vocab_size),
        Layout(width=width, rows=[row_seed(ask) for ask in filled]),
        prefix=first.tokens[:shared],
        media=_media_of(filled, encoding.towers),
        watch=Watch(CHUNK, lambda n, tokens: n in known or stopped(tokens, filled[n], decode) is not None, tell),
    )


def stopped(tokens: list[int], ask: Ask, decode: Callable[[Sequence[int]], str]) -> int | None:
    """Return how many tokens complete a stop string, or None."""

    def complete(n: int) -> bool:
        text = decode(tokens[:n])
        return any(stop and stop in text for stop in ask.stops)

    if not any(ask.stops) or not complete(len(tokens)):
        return None
    low, high = 0, len(tokens)  # complete at high, not at low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle, high)
    return high


def row_seed(ask: Ask) -> int:
    """Return a number of 31 bits that seeds the ask's samples."""
    identity = json.dumps([ask.tokens, ask.temperature, ask.top_p, ask.seed, *ask.identity()[5:]])
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4]) >> 1


def _shared(model: Transformer, asks: Sequence[Ask]) -> int:
    """Return the length of the common prefix of all asks; 0 if it is too short or the model cannot reuse it."""
    config, (first, last) = model.config, (min(asks).tokens, max(asks).tokens)
    if (
        len(asks) == 1
        or any(ask.media for ask in asks)
        or config.rope.depends_on_length
        or any(kind.local for kind in config.layer_kinds)
    ):
        return 0
    most = min(len(ask.tokens) for ask in asks) - 1
    n = next((n for n, (a, b) in enumerate(zip(first, last)) if a != b), most)
    if (n := min(n, most)) < SHARED:
        return 0
    unit = max(16, 1 << (n.bit_length() - 5))  # each length is a program of its own
    return n // unit * unit


def _batches(model: Transformer, asks: list[Ask], shared: int, most: int) -> Iterator[tuple[int, int, list[Ask]]]:
    """Yield (width, rows, asks) of each batch of asks sorted by length, with the cheapest partition. most: rows of a batch.

    Costs are in tokens that could be read in the same time. The cost of one width is its padded rows, the weights and caches
    that each step of each batch fetches, and its compilation.
    """
    config, new = model.config, asks[0].max_new_tokens
    kind = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    leaves = jax.tree.leaves(nnx.split(model)[1])
    shape, weights = COMPILING[kind] // (2 * sum(x.size for x in leaves)), sum(x.nbytes for x in leaves)
    lengths = [_width(len(ask.tokens) - shared) for ask in asks]
    ends = [n + 1 for n, (a, b) in enumerate(zip(lengths, [*lengths[1:], None])) if a != b]  # end index of each width

    def cost(begin: int, end: int) -> float:
        width = lengths[end - 1]
        batches, rows = _split(model, end - begin, shared + width, new, most)
        fetched = 1 + rows * (width + new / 2) * slot_bytes(config) / weights
        return shape + batches * (rows * width + new * STEP[kind] * fetched)

    for begin, end in divided([0, *ends], len(asks), cost):
        width = lengths[end - 1]
        _, rows = _split(model, end - begin, shared + width, new, most)
        for at in range(begin, end, rows):
            yield width, rows, asks[at : min(at + rows, end)]


def _width(length: int) -> int:
    """Return the next of 8, 9, … 15 times a power of two, at least 16."""
    unit = 1 << max(1, (length - 1).bit_length() - 4)
    return max(16, -(-length // unit) * unit)


def _split(model: Transformer, count: int, width: int, new: int, most: int) -> tuple[int, int]:
    """Return (number of batches, rows of each) for `count` prompts of `width` slots."""
    config, ways = model.config, row_ways()
    if config.rope.depends_on_length and width + new > config.rope.original_positions:
        return count, 1  # the rotary angles would depend on the longest row
    most = ways * max(1, min(most // ways, ROWS // ways, CACHE // ((width + new) * slot_bytes(config))))
    batches = -(-count // most)
    return batches, min(most, -(-count // (4 * batches)) * 4)
