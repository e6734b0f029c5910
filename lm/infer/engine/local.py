"""A serving engine for a model of the same process, such as one that is trained or evaluated.

On a CPU it is faster than lm/infer/sampler.py: its products read packed matrices, all cores share them, and a row that ends
makes room for the next. It draws other random numbers, so samples differ, and greedy ones do not.
"""

import dataclasses
import math
import weakref
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from data.text.tokenizer import Tokenizer
from lm.adapt.quantize import dequantize
from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer import not_finite
from lm.infer.call import Layout
from lm.infer.decode import Sampling
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import NOT_FINITE, Event, Request
from lm.infer.engine.room import Capacity, affordable
from lm.infer.sampler import Drawn
from lm.kernels.native.registered import compiled
from lm.model.transformer import Transformer, skeleton

ROWS = 64  # that are decoded together
PAGE = 16
MIN = 1 << 24  # parameters; the steps of a smaller model take less time than their dispatch
NO_MESH = jax.sharding.Mesh(np.empty((), object), ())


def pays(config: ModelConfig, room: float) -> bool:
    """Return whether the serving engine is faster here and a packed copy of the weights fits into `room` bytes."""
    if jax.process_count() > 1 or not (compiled("cpu.products") and compiled("cpu.attention")):
        return False
    size = sum(x.size for x in jax.tree.leaves(skeleton(config)[1]))
    return size >= MIN and 4 * size < room


class LocalEngine:
    """An engine that starts when it is first needed, and takes new weights when they change. close: stop its thread.

    rows, longest: it has room for so many sequences (at most ROWS) of so many tokens from the start.
    """

    def __init__(self, tokenizer: Tokenizer | None, rows: int = 1, longest: int = 1):
        self._tokenizer = tokenizer
        self._engine: Engine | None = None
        self._shape = _rows(rows), _pages(longest)
        self._weights: list[weakref.ref[jax.Array]] = []

    def using(self, model: Transformer, rows: int, longest: int) -> Engine:
        """Return an engine with the weights of `model`, and room for so many sequences (at most ROWS) of `longest` tokens.

        The model may be on any mesh. No request of an earlier model may be left. A packed copy of the weights is here once.
        """
        rows, pages = _rows(rows), _pages(longest)
        arrays = jax.tree.leaves(nnx.split(model)[1])
        if self._engine is None or rows > self._shape[0] or pages > self._shape[1]:
            self.close()
            self._shape = max(rows, self._shape[0]), max(pages, self._shape[1])
            self._engine = self._opened(model)
        elif any(known() is not x for known, x in zip(self._weights, arrays, strict=True)):
            self._engine.swap(_on_one_device(model), free_first=True)
        self._weights = [weakref.ref(x) for x in arrays]
        return self._engine

    def draw(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        layout: Layout = Layout(),  # noqa: B008 (it is immutable)
    ) -> Drawn:
        """Return continuations of prompts of token ids, as lm.infer.sampler.draw does; the layout's width counts for nothing.

        The tokens of a continuation depend on (sampling.seed, its row) and its prompt. The same call gives the same bits.
        Raises: UserError as lm.infer.sampler.draw.
        """
        if not len(prompts):
            return Drawn([], [], [])
        o, copies = sampling, layout.copies
        count = len(prompts) * copies
        numbers: dict[tuple[tuple[int, ...], int], list[int]] = {}  # equal requests are answered once
        for number, row in enumerate(range(count) if layout.rows is None else layout.rows):
            seed = int(np.random.SeedSequence([o.seed, row]).generate_state(1)[0]) if o.temperature else 0
            numbers.setdefault((tuple(prompts[number // copies]), seed), []).append(number)
        # Copies start when their prompt has been read, and prompts with a common prefix one after the other: all is read once.
        before = Counter[tuple[int, ...]]()
        turn = {}
        for prompt, seed in numbers:
            turn[prompt, seed] = before[prompt]
            before[prompt] += 1
        asked = sorted(numbers, key=lambda key: (turn[key], key))
        engine = self.using(model, min(len(asked), self._shape[0]), max(map(len, prompts)) + o.max_new_tokens)
        engine.forget()
        settings = o.max_new_tokens, o.temperature, o.top_p, o.top_k
        plain = Request((), *settings, stop_ids=o.stop_ids, logprobs=0, tempered=True, media=None)
        answers = engine.answers(dataclasses.replace(plain, prompt=prompt, seed=seed) for prompt, seed in asked)
        found: list[Event] = [Event()] * count
        for key, answer in zip(asked, answers, strict=True):
            for number in numbers[key]:
                found[number] = answer
        for number, answer in enumerate(found):
            if answer.error == NOT_FINITE:
                raise not_finite.of_prompt(model, number // copies, len(answer.tokens), o.temperature)
            if answer.finish == "error":
                raise UserError(answer.error)
        logps = [[one.chosen for one in answer.likely] for answer in found]
        return Drawn([list(answer.tokens) for answer in found], logps, [answer.finish == "stop" for answer in found])

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _opened(self, model: Transformer) -> Engine:
        rows, pages = self._shape
        with jax.set_mesh(NO_MESH):
            capacity = Capacity(rows, ROWS, page=PAGE, queue=1 << 30)  # whoever asks here waits for all answers
            pages = max(pages, min(rows * pages, _power(affordable(model.config, capacity)) // 2))
            return Engine(_on_one_device(model), self._tokenizer, capacity._replace(pages=pages), packed=model.config.dtype)


def _rows(count: int) -> int:
    return _power(min(ROWS, count))


def _pages(tokens: int) -> int:
    return _power(math.ceil(tokens / PAGE))


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _on_one_device(model: Transformer) -> Transformer:
    """Return the model on the first device, in the dtypes of its parameters; without a copy of those that are there whole."""
    device = jax.local_devices()[0]
    here = jax.sharding.SingleDeviceSharding(device)  # to name the device alone would keep the axes of a mesh of one device

    def moved(x: jax.Array) -> jax.Array:
        there = next((shard.data for shard in x.addressable_shards if shard.device == device), None)
        return jax.device_put(there if there is not None and there.shape == x.shape else np.asarray(x), here)

    config = dataclasses.replace(model.config, dtype="float32")  # of activations, as in open_engine
    params = jax.tree.map(moved, nnx.split(model)[1])
    if config.quantization.bits and not config.adapter.rank:
        config, params = dequantize(config, params)  # products with integers would round activations to 16 bits
    return nnx.merge(skeleton(config)[0], params)
