"""Train a small adapter on all items of a store, such that it is a function of (items, settings, base model) and nothing else.

Items are taken by their ids, which are digests of what they say, never by when or in which order they came. So the adapter that
is trained after an item was forgotten is, bit for bit, the one of a store that never had it: on one machine with the same
versions of JAX and NumPy. Without differential privacy it does not depend on the store either; with it, on the store's secret.

A note or a file is read as text, an exchange by the chat template with loss on the assistant's turns. A long item makes several
rows, whose gradients are added up before they are clipped, because the item is what is protected.

The base stays in 8 bits; the gradient of one row of one item is in memory at a time. The adapter and the state from which a
stopped training goes on are blobs of the store, so they are encrypted, and `forget` removes them if they know the item.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data.chat.example_encoding import Encoder
from data.chat.messages import Conversation
from lm.adapt import lora
from lm.adapt.rebuild import arrays_of
from lm.config import Adapter, ModelConfig
from lm.errors import UserError
from lm.model.transformer import Transformer, build, skeleton
from lm.personal import private
from lm.personal.items import Item
from lm.personal.speaker import Speaker, with_adapter
from lm.personal.store import Gone, Store
from lm.progress import progress
from lm.train.step import token_loss

SAVE_EVERY = 60.0  # seconds between states on disk
WARMUP = 5  # updates
TOGETHER = 8  # items
LONGEST, SHORTEST = 256, 32  # tokens of a row
TOKENS = 256  # of a batch


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the adapter is trained; see the flags of the command. epsilon 0: no differential privacy."""

    seed: int = 0
    epochs: int = 4
    batch: int = 8
    rank: int = 8
    learning_rate: float = 1e-3
    epsilon: float = 0.0
    delta: float = 1e-5
    clip: float = 0.5
    attack: float = 0.55
    targets: str = r"attention\..*"

    @property
    def adapter(self) -> Adapter:
        return Adapter(rank=self.rank, alpha=2.0 * self.rank, targets=self.targets)


class Row(NamedTuple):
    """tokens, targets: int32 [T]; weights: float32 [T], which add up to 1 over the rows of an item; 0: not learnt."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class State(NamedTuple):
    """lora: A and B. moments: of Adam. update: how many were made."""

    lora: nnx.State
    moments: Any
    update: int


def train(speaker: Speaker, store: Store, settings: Settings) -> str:
    """Train on all items, or resume, and store the adapter. Return a line that says what was done.

    Raises: UserError if there is nothing to learn, or an item is forgotten meanwhile.
    """
    begin = time.perf_counter()
    items = sorted(store.items(), key=lambda item: item.id)
    if not items:
        raise UserError(f"{store.home} has no items to train on: add some first")
    ids = [item.id for item in items]
    examples = [rows_of(speaker, item) for item in items]
    updates = plan(ids, settings, store.secret)
    sigma = _sigma(ids, settings, len(updates))
    spent = private.spent(sigma, settings.delta, rate(ids, settings), len(updates)) if sigma else 0.0
    spent = math.ceil(100 * spent) / 100
    task = [ids, dataclasses.asdict(settings), speaker.fingerprint]
    name = hashlib.sha256(json.dumps(task).encode()).hexdigest()
    made = store.about("adapter")
    if made and made["task"] == name:
        return f"the adapter is of these items and settings already: {made['said']}"
    state = _resumed(store, name, start(speaker, settings))
    about = {"settings": dataclasses.asdict(settings), "task": name, "of": len(updates)}

    def save() -> None:
        store.put("training", _packed(state), ids, about | {"updates": state.update})

    saved = time.monotonic()
    try:
        with progress("train", len(updates), done=state.update, unit=" updates") as bar:
            while state.update < len(updates):
                chosen = [examples[n] for n in updates[state.update]]
                noise = _noise_of(store, settings, ids, sigma, f"noise {name} {state.update}")
                divisor = rate(ids, settings) * len(ids) if sigma else len(chosen)
                with _uninterrupted():
                    state = updated(speaker, settings, state, chosen, noise, divisor)
                bar.update(1)
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
        said = f"{len(ids)} items, {len(updates)} updates, {_privacy(sigma, spent, settings, ids, len(updates))}"
        more = {"said": said, "model": speaker.fingerprint, "sigma": sigma}
        store.put("adapter", _npz(arrays_of(state.lora)), ids, about | more, without="training")
    except KeyboardInterrupt:
        with contextlib.suppress(Gone):
            save()
        raise
    except Gone:
        raise UserError("an item was forgotten during the training, whose result is discarded: run train again") from None
    store.count("trainings", spent)
    return f"trained an adapter: {said}; {time.perf_counter() - begin:.0f} s"


def _noise_of(store: Store, settings: Settings, ids: Sequence[str], sigma: float, name: str) -> Callable | None:
    """Return what draws the noise of an update, of a given shape, or None without differential privacy."""
    if not sigma:
        return None
    source = private.generator(store.secret, ids, name)
    return lambda shape: (sigma * settings.clip * source.standard_normal(shape)).astype(np.float32)


def _privacy(sigma: float, spent: float, settings: Settings, ids: Sequence[str], updates: int) -> str:
    """Return what is promised of an item, in words."""
    if not sigma:
        return "no differential privacy"
    most = private.attack_bound(sigma, rate(ids, settings), updates)
    return f"epsilon {spent:.2f} at delta {settings.delta:g}, no attack on membership above an area of {most:.2f}"


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block, because an update frees the arrays of the state before it."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def plan(ids: Sequence[str], settings: Settings, secret: bytes) -> list[list[int]]:
    """Return the items of each update, by their numbers in `ids`, which is sorted.

    Each epoch takes all items in an order by digests. With differential privacy each update draws each item with the
    probability `rate`; an update may then have none.
    """
    if settings.epsilon:
        count = math.ceil(settings.epochs * len(ids) / settings.batch)
        draws = private.generator(secret, ids, f"draws {settings.seed} {count}").random((count, len(ids)))
        return [np.flatnonzero(row < rate(ids, settings)).tolist() for row in draws]
    found = []
    for epoch in range(settings.epochs):
        digests = [hashlib.sha256(f"{settings.seed} {epoch} {name}".encode()).digest() for name in ids]
        order = sorted(range(len(ids)), key=digests.__getitem__)
        found += [order[n : n + settings.batch] for n in range(0, len(order), settings.batch)]
    return found


def _sigma(ids: Sequence[str], settings: Settings, updates: int) -> float:
    """Return the noise multiplier; 0: no differential privacy."""
    if not settings.epsilon:
        return 0.0
    if settings.delta * len(ids) >= 1:
        raise UserError(f"--delta={settings.delta:g} must be below 1 / items, here {1 / len(ids):.1e}")
    return private.noise_multiplier(settings.epsilon, settings.delta, rate(ids, settings), updates, settings.attack)


def rate(ids: Sequence[str], settings: Settings) -> float:
    """Return the probability with which an update draws an item."""
    return min(1.0, settings.batch / len(ids))


def start(speaker: Speaker, settings: Settings) -> State:
    """Return the state before the first update: A is random, B is zero."""
    adapter = jax.tree.map(jnp.asarray, _initial(speaker.config, settings.adapter, settings.seed))
    return State(adapter, optax.scale_by_adam().init(adapter), 0)


@functools.lru_cache(maxsize=4)
def _initial(config: ModelConfig, adapter: Adapter, seed: int) -> nnx.State:
    config = dataclasses.replace(config, adapter=adapter)
    lora.check_targets(config)
    return jax.tree.map(np.asarray, jax.jit(lambda: lora.adapter_only(build(config, seed)))())


def rows_of(speaker: Speaker, item: Item) -> list[Row]:
    """Return the rows of an item; at least one has a weight above 0. Raises UserError if the template refuses an exchange."""
    tokenizer = speaker.tokenizer
    if item.messages:
        ids, learnt = Encoder(tokenizer, speaker.template).conversation(Conversation(list(item.messages)))
        if not learnt.any():
            learnt = np.ones(len(ids), bool)
    else:
        ids = np.asarray([*tokenizer.prompt_ids(item.text), *tokenizer.stop_ids[:1]], np.int32)
        learnt = np.ones(len(ids), bool)
    if len(ids) < 2:
        raise UserError(f"item {item.id} has no tokens: forget it")
    found = []
    for begin in range(0, len(ids) - 1, LONGEST):
        window = slice(begin + 1, begin + 1 + LONGEST)
        targets = np.asarray(ids[window], np.int32)
        weights = np.asarray(learnt[window], np.float32) / max(1, learnt[1:].sum())
        found.append(Row(np.asarray(ids[begin : begin + len(targets)], np.int32), targets, weights.astype(np.float32)))
    return [row for row in found if row.weights.any()]


def batches(items: Sequence[Sequence[Row]]) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yield batches of at most TOKENS tokens in the form of lm/train/step.py, and for each row the number of its item.

    Rows of like lengths share a batch. Widths are powers of two. Rows that only fill a batch have weights of 0.
    """
    rows = sorted(((row, n) for n, rows in enumerate(items) for row in rows), key=lambda pair: -len(pair[0].tokens))
    while rows:
        width = max(SHORTEST, 1 << (len(rows[0][0].tokens) - 1).bit_length())
        some, rows = rows[: TOKENS // width], rows[TOKENS // width :]
        shape = (TOKENS // width, width)
        batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segment_ids")}
        batch |= {
            "weights": np.zeros(shape, np.float32),
            "positions": np.tile(np.arange(width, dtype=np.int32), (len(batch["tokens"]), 1)),
        }
        owner = np.zeros(shape[0], np.int32)
        for n, (row, of) in enumerate(some):
            count, owner[n] = len(row.tokens), of
            batch["segment_ids"][n, :count] = 1
            for name in Row._fields:
                batch[name][n, :count] = getattr(row, name)
        yield batch, owner


def updated(
    speaker: Speaker, settings: Settings, state: State, chosen: Sequence[Sequence[Row]], noise, divisor: float
) -> State:
    """Return the state after one update.

    g = (Σ over items of clip(gradient of the item's mean loss) + noise) / divisor; without noise nothing is clipped.
    """
    # Recomputing all but the layers' inputs keeps the memory small.
    config = dataclasses.replace(speaker.config, adapter=settings.adapter, remat="full")
    graph = skeleton(config)[0]
    total = summed_gradient(graph, state.lora, speaker.params, chosen, settings.clip if noise else np.inf)
    if noise is not None:
        total = jax.tree.map(lambda x: x + noise(x.shape), total)
    speed = settings.learning_rate * min(1.0, (state.update + 1) / WARMUP)
    adapter, moments = _adam(state.lora, state.moments, total, np.float32(1 / max(divisor, 1)), np.float32(speed))
    return State(adapter, moments, state.update + 1)


def summed_gradient(graph, adapter: nnx.State, base: nnx.State, chosen: Sequence[Sequence[Row]], clip: float) -> nnx.State:
    """Return the sum of the items' gradients, each clipped to a norm. base: all parameters but the adapter.

    The gradients of at most TOGETHER items are in memory at a time.
    """
    total = jax.tree.map(jnp.zeros_like, adapter)
    for begin in range(0, len(chosen), TOGETHER):
        of_items = jax.tree.map(lambda x: jnp.zeros((TOGETHER, *x.shape), x.dtype), adapter)
        for batch, owner in batches(chosen[begin : begin + TOGETHER]):
            of_items = _added(graph, adapter, base, of_items, batch, owner)
        total = _clipped_sum(total, of_items, np.float32(clip))
    return total


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _added(graph, adapter, base, of_items, batch, owner_B):
    """Return the gradient of each item, [I, …], plus those of its rows in a batch."""

    def loss(adapter, row):
        one = jax.tree.map(lambda x: x[None], row)
        return token_loss(nnx.merge(graph, nnx.merge_state(base, adapter)), one, z_loss=0.0)[0]

    of_rows = jax.vmap(jax.grad(loss), in_axes=(None, 0))(adapter, batch)
    return jax.tree.map(lambda total, g: total.at[owner_B].add(g), of_items, of_rows)


@functools.partial(jax.jit, donate_argnums=0)
def _clipped_sum(total, of_items, clip):
    """Return the total plus Σ over items of g · min(1, clip / ‖g‖)."""
    norm_I = jax.vmap(optax.global_norm)(of_items)
    factor_I = jnp.minimum(1.0, clip / jnp.maximum(norm_I, 1e-12))
    return jax.tree.map(lambda total, g: total + jnp.tensordot(factor_I, g, 1), total, of_items)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _adam(adapter, moments, total, scale, speed):
    direction, moments = optax.scale_by_adam().update(jax.tree.map(lambda t: t * scale, total), moments)
    return jax.tree.map(lambda p, d: p - speed * d, adapter, direction), moments


def adapted(speaker: Speaker, store: Store) -> Transformer:
    """Return the speaker's model with the store's adapter, or without one if there is none.

    Raises: UserError if the adapter is of another model.
    """
    found = store.blob("adapter")
    if found is None:
        return speaker.model()
    content, about = found
    if about["model"] != speaker.fingerprint:
        raise UserError("the adapter was trained on another model: run train with this --model, or ask with --noadapter")
    return with_adapter(speaker, Settings(**about["settings"]).adapter, arrays_from(content))


def arrays_from(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _npz(arrays: Mapping[str, jax.Array]) -> bytes:
    """Return the bytes of an .npz file; the same arrays give the same bytes."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _packed(state: State) -> bytes:
    leaves = jax.tree.leaves((state.lora, state.moments))
    return _npz({f"{n:04}": x for n, x in enumerate(leaves)})


def _resumed(store: Store, name: str, fresh: State) -> State:
    """Return the state of a stopped training of this name, or the fresh one."""
    found = store.blob("training")
    if found is None or found[1]["task"] != name:
        return fresh
    arrays = arrays_from(found[0])
    structure = jax.tree.structure((fresh.lora, fresh.moments))
    adapter, moments = jax.tree.unflatten(structure, [jnp.asarray(arrays[key]) for key in sorted(arrays)])
    return State(adapter, moments, found[1]["updates"])
