"""The engine of a model of this process, such as one that is trained or evaluated.

On one CPU it has a packed copy of the weights (lm/kernels/cpu/packed.py), if there is room for one: their products are faster,
and the bits of a row do not depend on its neighbours. Elsewhere it uses the model's own arrays on the mesh that is set.
"""

import dataclasses
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data.text.tokenizer import Tokenizer
from lm.adapt.quantize import dequantize
from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer import not_finite
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import NOT_FINITE, Event, Sampling, Tile
from lm.infer.engine.room import Capacity, affordable
from lm.kernels.native.registered import compiled
from lm.model.transformer import Transformer, skeleton
from lm.parallel.hosts import from_first
from lm.parallel.mesh import NO_MESH, row_ways

ROWS = 64  # of a shard, that are decoded together
SHORTEST = 16  # tokens of a sequence for which there is room
APART = 1 << 31  # most bytes of weights of which a CPU gets a copy that is cast and split into layers


def packs(config: ModelConfig, room: float) -> bool:
    """Return whether a packed copy of the weights fits into `room` bytes here, and its products are compiled."""
    if jax.process_count() > 1 or not (compiled("cpu.products") and compiled("cpu.attention")):
        return False
    return 4 * sum(x.size for x in jax.tree.leaves(skeleton(config)[1])) < room


class Layout(NamedTuple):
    """How prompts become requests.

    copies: continuations of each prompt, which are adjacent in the result; the prompt is read once for all of them.
    rows: a number for each continuation, which seeds its sample; None: its index.
    thought: most tokens of the thought that begins a continuation, which is then closed (lm/infer/engine/thought.py), or None.
    media: the tiles of each prompt and the number of its first tokens that they belong to, or None; None: there are none. Other
      tokens of media are read as any other, because a model drew them.
    """

    copies: int = 1
    rows: Sequence[int] | None = None
    media: Sequence[tuple[tuple[Tile, ...], int] | None] | None = None
    thought: int | None = None


class Drawn(NamedTuple):
    """The sampled continuation of each prompt.

    tokens: including the stop id that ended a row. logps: log-probability of each token in nats, at the sampling temperature
    (1 if that is 0) and before top_k and top_p. ended: whether a stop id ended it, not the length.
    """

    tokens: list[list[int]]
    logps: list[list[float]]
    ended: list[bool]


class Kind(NamedTuple):
    """What takes another engine when it changes. mesh: NO_MESH for packed weights, which may come from any mesh."""

    config: ModelConfig
    mesh: Mesh
    packed: bool
    cache_dtype: str

    def rows(self, count: int) -> int:
        """Return how many sequences run at a time if so many are wanted."""
        return _power(min(ROWS * (1 if self.mesh.empty else row_ways(self.mesh)), count))


class LocalEngine:
    """An engine that starts when it is first needed, and takes new weights when they change. close: stop its thread.

    room: bytes for a packed copy of the weights; 0: it uses the model's own arrays. rows, longest: it has room for so many
    sequences (at most ROWS a shard) of so many tokens from the start.
    Threads may `draw` from models of their own, in turns. On several processes every process calls it with the same arguments
    and gets all results.
    """

    def __init__(self, tokenizer: Tokenizer | None, room: float = 0.0, rows: int = 1, longest: int = 1):
        self._tokenizer, self._room = tokenizer, room
        self._engine: Engine | None = None
        self._drawing = threading.Lock()
        self._shape = _power(rows), _length(longest)
        self._kind: Kind | None = None  # of the engine
        self._weights: list[weakref.ref[jax.Array]] = []

    def using(self, model: Transformer, rows: int, longest: int, cache_dtype: str = "") -> Engine:
        """Return an engine with the weights of `model`, and room for so many sequences of `longest` tokens.

        The model is on the mesh that is set. No request of an earlier model may be left. cache_dtype: of keys and values.
        Raises: UserError if the model has fewer positions.
        """
        if model.config.positions == "learned" and longest > (most := model.config.max_positions):
            asked = f"prompt and max_new_tokens come to {longest} tokens"
            raise UserError(f"{asked}, the model has {most} positions: ask for fewer")
        packed = packs(model.config, self._room)
        kind = Kind(model.config, NO_MESH if packed else jax.sharding.get_mesh(), packed, cache_dtype)
        rows, longest, (most_rows, most) = kind.rows(rows), _length(longest), self._shape
        arrays = jax.tree.leaves(nnx.split(model)[1])
        if self._engine is None or kind != self._kind or rows > kind.rows(most_rows) or longest > most:
            self.close()
            self._shape, self._kind = (max(rows, most_rows), max(longest, most)), kind
            self._engine = self._opened(model, kind)
        elif any(known() is not x for known, x in zip(self._weights, arrays, strict=True)):
            self._engine.swap(_on_one_device(model) if packed else model, free_first=True)
        self._weights = [weakref.ref(x) for x in arrays]
        return self._engine

    def draw(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        layout: Layout = Layout(),  # noqa: B008 (it is immutable)
    ) -> Drawn:
        """Return continuations of prompts of token ids.

        The tokens of a continuation depend on (sampling.seed, its row) and its prompt. The same call gives the same bits.
        Raises: UserError for settings out of range; or if logits are NaN or infinite, with the prompt and the likely cause.
        """
        if not len(prompts):
            return Drawn([], [], [])
        o, copies = sampling, layout.copies
        count = len(prompts) * copies
        numbers: dict[tuple[tuple[int, ...], int, bytes], list[int]] = {}  # equal requests are answered once
        media = layout.media or [None] * len(prompts)
        for number, row in enumerate(range(count) if layout.rows is None else layout.rows):
            shown = b"".join(tile.digest for tile in (media[number // copies] or ((), 0))[0])
            numbers.setdefault((tuple(prompts[number // copies]), seed_of_row(o, row), shown), []).append(number)
        # Copies start when their prompt has been read, and prompts with a common prefix one after the other: all is read once.
        before = Counter[tuple[int, ...]]()
        turn = {}
        for key in numbers:
            turn[key] = before[key[0]]
            before[key[0]] += 1
        keys = sorted(numbers, key=lambda key: (turn[key], key))
        requests = []
        for key in keys:
            tiles, end = media[numbers[key][0] // copies] or (None, 0)
            plain = o.request(key[0], key[1])
            if layout.thought is not None and self._tokenizer is not None:
                from lm.infer.engine.thought import budget_of

                plain = dataclasses.replace(plain, thought=budget_of(self._tokenizer, key[0], layout.thought))
            requests.append(dataclasses.replace(plain, logprobs=0, tempered=True, media=tiles, media_end=end))
        with self._drawing:
            engine = self.using(model, len(keys), max(map(len, prompts)) + o.max_new_tokens, o.cache_dtype)
            engine.forget()
            answers = engine.answers(requests)
            if jax.default_backend() != "cpu":
                engine.forget(free=True)  # the next training step needs the memory
        found: list[Event] = [Event()] * count
        for key, answer in zip(keys, answers, strict=True):
            for number in numbers[key]:
                found[number] = answer
        checked(model, found, o.temperature, copies)
        logps = [[one.chosen for one in answer.likely] for answer in found]
        return Drawn([list(answer.tokens) for answer in found], logps, [answer.finish == "stop" for answer in found])

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _opened(self, model: Transformer, kind: Kind) -> Engine:
        rows, longest, is_cpu = kind.rows(self._shape[0]), self._shape[1], jax.default_backend() == "cpu"
        copied = is_cpu and sum(x.nbytes for x in jax.tree.leaves(nnx.split(model)[1])) <= APART
        with jax.set_mesh(kind.mesh):
            capacity = Capacity(rows, cache_dtype=kind.cache_dtype, queue=1 << 30, positions=longest).here()
            pages = -(-longest // capacity.page)
            # The same pages on all processes, and on the same machine for a run that is resumed.
            share = from_first(lambda: _power(affordable(kind.config, capacity)) // 2)
            return Engine(
                _on_one_device(model) if kind.packed else model,
                self._tokenizer,
                capacity._replace(pages=max(row_ways() * pages, min(rows * pages, share))),
                packed=kind.config.dtype if kind.packed else "",
                in_place=not kind.packed and not copied,
                mesh=None if kind.mesh.empty else kind.mesh,
            )


def seed_of_row(sampling: Sampling, row: int) -> int:
    """Return the seed of a row's request."""
    return int(np.random.SeedSequence([sampling.seed % 2**64, row]).generate_state(1)[0]) if sampling.temperature else 0


def checked(model: Transformer, answers: Iterable[Event], temperature: float, copies: int = 1) -> list[Event]:
    """Return the answers of requests, `copies` for each prompt. Raises: UserError for the first one that ended by an error."""
    answers = list(answers)
    failed = [(len(answer.tokens), number) for number, answer in enumerate(answers) if answer.finish == "error"]
    if failed:
        drawn, number = min(failed)
        if (error := answers[number].error) == NOT_FINITE:
            raise not_finite.of_prompt(model, number // copies, drawn, temperature)
        raise UserError(error)
    return answers


def _length(tokens: int) -> int:
    return _power(max(SHORTEST, tokens))


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _on_one_device(model: Transformer) -> Transformer:
    """Return the model on the first device, in the dtypes of its parameters; without a copy of those that are there whole."""
    device = jax.local_devices()[0]
    here = jax.sharding.SingleDeviceSharding(device)  # to name the device alone would keep the axes of a mesh of one device

    def moved(x: jax.Array | np.ndarray) -> jax.Array:
        shards = x.addressable_shards if isinstance(x, jax.Array) else ()
        there = next((shard.data for shard in shards if shard.device == device), None)
        return jax.device_put(there if there is not None and there.shape == x.shape else np.asarray(x), here)

    config = dataclasses.replace(model.config, dtype="float32")  # of activations, as in open_engine
    params = jax.tree.map(moved, nnx.split(model)[1])
    if config.quantization.bits and not config.adapter.rank:
        config, params = dequantize(config, params)  # products with integers would round activations to 16 bits
    return nnx.merge(skeleton(config)[0], params)
