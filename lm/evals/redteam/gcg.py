"""GCG: find a suffix that makes a model begin its answer with a target, by the model's gradients.

Zou et al. 2023, "Universal and transferable adversarial attacks on aligned language models", algorithms 1 and 2. The loss is
−log p(target | before, suffix, after), summed over several prompts. Its gradient with respect to the one-hot vectors of the
suffix shows which tokens could lower it. Each step samples `batch` suffixes that differ in one such token, and keeps the best.

Axes beside the model's: P prompts, S tokens of the suffix, L of the longest target, N candidates, C chunk of rows.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.evals.redteam.prompts import Request
from lm.evals.redteam.safety_eval import with_system
from lm.evals.task import Subject
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.parallel.hosts import gathered
from lm.parallel.mesh import place_rows, reshard, row_ways, spec

# Of the task. batch: candidates per step. topk: candidate tokens for each position. requests: the first ones are used. init:
# words of the initial suffix. chunk: rows that the model reads at a time.
OPTIONS = {"steps": 100, "batch": 128, "topk": 64, "requests": 8, "init": " ".join("!" * 16), "chunk": 64}
LIKELY = "Sure, here it is:"  # the target if a benchmark gives none
ROUNDS = 8  # maximum rounds of sampling to find enough valid candidates


class Place(NamedTuple):
    """Token ids around a suffix: those before it, those after it, and the target beginning of the answer."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]


class History(NamedTuple):
    """The suffixes of a search, the first one and that after each step, and their losses: nats per target token, summed over
    prompts."""

    suffixes: list[tuple[int, ...]]
    losses: list[float]

    @property
    def best(self) -> tuple[int, ...]:
        return self.suffixes[self.losses.index(min(self.losses))]


class InChat(NamedTuple):
    """A suffix in conversations. init: its initial ids. fits: whether ids, decoded to text, are encoded as the same ids in
    every conversation. text: returns the text that `suffix` of lm/evals/redteam/attacks.py appends for ids."""

    places: list[Place]
    init: tuple[int, ...]
    fits: Callable[[Sequence[int]], bool]
    text: Callable[[Sequence[int]], str]


def searched_suffix(
    subject: Subject, requests: Sequence[Request], options: Mapping[str, Any], system: str, seed: int
) -> dict[str, Any]:
    """Find one suffix for the first requests: {"suffix", "loss", "loss_before", "steps", "requests"}.

    options: see OPTIONS. Raises: UserError for a subject without gradients (one that is not our model), and without a request.
    """
    model, encoding = getattr(subject, "model", None), getattr(subject, "encoding", None)
    if model is None or encoding is None:
        raise UserError(f"redteam: family gcg needs a model's gradients, and {subject.name} has none; remove gcg")
    used = requests[: options["requests"]]
    if not used:
        raise UserError("redteam: family gcg needs a harmful request, but there is none")

    def encode(request: str) -> list[int]:
        return encoding.ids(subject.chat_prompt(with_system(system, [{"role": "user", "content": request}])))

    chat = in_chat(encoding.tokenizer, used, options["init"], encode)
    history = gcg(model, encoding.tokenizer, chat, options, seed)
    return {
        "suffix": chat.text(history.best),
        "loss": min(history.losses),
        "loss_before": history.losses[0],
        "steps": options["steps"],
        "requests": len(used),
    }


def gcg(model: Transformer, tokenizer: Tokenizer, chat: InChat, options: Mapping[str, Any], seed: int = 0) -> History:
    """Search from the initial suffix on the current mesh. Candidates that do not fit are rejected.

    options: see OPTIONS. seed: random draws depend only on it and the step's number.
    Raises: UserError without prompts or suffix, for prompts too long for the model, and for a suffix that does not fit.
    """
    places, suffix, fits, _ = chat
    if not places or not suffix:
        raise UserError(f"gcg: {'the suffix' if places else 'the list of prompts'} is empty")
    if not fits(suffix):
        raise UserError(f"gcg: the suffix {tokenizer.decode(suffix)!r} is encoded as other tokens; use another initial suffix")

    def alone(ids: Sequence[int]) -> bool:
        return list(tokenizer.encode(tokenizer.decode(ids))) == list(ids)

    # `alone` is cheap and seldom wrong. If it rejects `init`, the tokenizer treats a text's start differently.
    survives = alone if alone(suffix) else fits
    reader = _Reader(model, places, options["chunk"])
    allowed_V = allowed_tokens(tokenizer, model.config.vocab_size)
    (loss,) = reader.losses(np.asarray([suffix])).tolist()
    if not math.isfinite(loss):
        raise UserError(f"gcg: the loss is {loss}: the model's probabilities are not finite; use another checkpoint")
    history = History([suffix], [loss])
    for step in range(1, options["steps"] + 1):
        suffix, loss = history.suffixes[-1], history.losses[-1]
        choices_SK = reader.substitutes(suffix, min(options["topk"], int(allowed_V.sum())), allowed_V)
        candidates = _candidates(suffix, choices_SK, options["batch"], (seed, step), survives)
        losses_N = reader.losses(np.asarray(candidates))
        best_first = np.argsort(losses_N, kind="stable").tolist()
        best = next((n for n in best_first if candidates[n] == suffix or fits(candidates[n])), None)
        history.suffixes.append(suffix if best is None else candidates[best])
        history.losses.append(loss if best is None else float(losses_N[best]))
    return history


class _Reader:
    """A model that reads suffixes in their places, `chunk` rows at a time."""

    def __init__(self, model: Transformer, places: Sequence[Place], chunk: int):
        self.config, self.places, self.chunk = model.config, places, chunk
        self.graph, self.params = nnx.split(model)

    def losses(self, suffixes_NS: np.ndarray) -> np.ndarray:
        """Return float32 [N]: the losses of suffixes, summed over prompts."""
        laid = _laid(self.places, suffixes_NS)
        longest = laid[0].shape[1]
        if self.config.positions == "learned" and longest > self.config.max_positions:
            raise UserError(f"gcg: a prompt of {longest} tokens, and the model has {self.config.max_positions} positions")
        rows = [gathered(_loss(self.graph, self.params, *place_rows(*part))) for part in _chunks(laid, self.chunk)]
        return np.concatenate(rows)[: laid[0].shape[0]].reshape(len(self.places), -1).sum(axis=0)

    def gradient(self, suffix: Sequence[int]) -> np.ndarray:
        """Return float32 [S, D]: of the loss, summed over prompts, with respect to the suffix's embeddings."""
        laid = _laid(self.places, np.asarray([suffix]))
        rows = min(self.chunk, len(laid[0]))  # hardly ever as many as candidates, and the memory of a gradient is larger
        parts = [gathered(_gradient(self.graph, self.params, *place_rows(*part))) for part in _chunks(laid, rows)]
        gradients_PTD = np.concatenate([part.astype(np.float32) for part in parts])[: len(laid[0])]
        ends = [gradients_PTD.shape[1] - len(place.after) - len(place.target) for place in self.places]
        return sum(gradient_TD[end - len(suffix) : end] for gradient_TD, end in zip(gradients_PTD, ends, strict=True))

    def substitutes(self, suffix: Sequence[int], topk: int, allowed_V: np.ndarray) -> np.ndarray:
        """Return int32 [S, K]: the tokens that could lower the loss most at each position."""
        return gathered(_substitutes(self.graph, topk, self.params, self.gradient(suffix), allowed_V))


def in_chat(tokenizer: Tokenizer, requests: Sequence[Request], init: str, encode: Callable[[str], list[int]]) -> InChat:
    """Return the places of a suffix after requests, each as the only message of a user.

    Args: init: words of the initial suffix. encode: maps the message to the ids before the model's answer.
    Raises: UserError if the words are not separate tokens, the same after every request.
    """
    words = init.split()
    other = " ".join("?" if word != "?" else "." for word in words)
    around, suffixes = [], set()
    for request in requests:
        ids, changed = encode(f"{request.prompt.text} {init}"), encode(f"{request.prompt.text} {other}")
        head = len(os.path.commonprefix([ids, changed]))
        tail = len(os.path.commonprefix([ids[head:][::-1], changed[head:][::-1]]))
        suffixes.add(tuple(ids[head : len(ids) - tail]))
        around.append((tuple(ids[:head]), tuple(ids[len(ids) - tail :])))
    if len(suffixes) != 1 or not (ids := next(iter(suffixes))):
        raise UserError(f"gcg: the suffix {init!r} is not encoded as the same tokens after every request; change init")
    # With some tokenizers the space before the suffix is a separate token; with others it is part of the suffix.
    space = "" if tokenizer.decode(ids).startswith(" ") else " "

    def fits(ids: Sequence[int]) -> bool:
        behind = space + tokenizer.decode(ids)
        return behind.startswith(" ") and all(
            encode(request.prompt.text + behind) == [*before, *ids, *after]
            for request, (before, after) in zip(requests, around, strict=True)
        )

    places = [
        Place(before, after, tuple(tokenizer.encode(request.target or LIKELY)))
        for (before, after), request in zip(around, requests, strict=True)
    ]
    return InChat(places, ids, fits, lambda ids: (space + tokenizer.decode(ids)).removeprefix(" "))


def allowed_tokens(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Return which tokens a suffix may use, bool [V]: those of printable ASCII that are no control symbols."""
    controls = set(tokenizer.controls.values())

    def allowed(i: int) -> bool:
        text = tokenizer.decode([i]) if i < tokenizer.vocab_size and i not in controls else ""
        return text.isprintable() and text.isascii() and text != ""

    return np.fromiter(map(allowed, range(vocab_size)), bool, vocab_size)


def _candidates(
    suffix: tuple[int, ...], choices_SK: np.ndarray, batch: int, seed: tuple[int, int], survives: Callable
) -> list[tuple[int, ...]]:
    """Return `batch` candidates: the suffix with one token replaced, and the suffix itself in place of missing ones."""
    rng = np.random.default_rng(seed)
    S, K = choices_SK.shape
    candidates: list[tuple[int, ...]] = []
    for _ in range(ROUNDS):
        places, choices = rng.integers(S, size=batch), rng.integers(K, size=batch)
        replaced = (
            (*suffix[:place], int(choices_SK[place, choice]), *suffix[place + 1 :])
            for place, choice in zip(places.tolist(), choices.tolist())
        )
        candidates += itertools.islice(filter(survives, replaced), batch - len(candidates))
        if len(candidates) == batch:
            break
    return candidates + [suffix] * (batch - len(candidates))


def _laid(places: Sequence[Place], suffixes_NS: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return rows of every prompt with every suffix: [P·N, T] tokens and segments, and [P·N, L] targets and weights.

    Rows are padded on the left, so that every target ends at the end of its row. A target's weights sum to 1.
    """
    N, S = suffixes_NS.shape
    longest = max(len(place.target) for place in places)
    width = max(len(place.before) + S + len(place.after) + len(place.target) for place in places)
    tokens, segments = np.zeros((2, len(places), N, width), np.int32)
    targets, weights = np.zeros((len(places), N, longest), np.int32), np.zeros((len(places), N, longest), np.float32)
    for p, (before, after, target) in enumerate(places):
        tail = (*after, *target)
        begin = width - len(tail) - S
        tokens[p, :, begin - len(before) : begin] = before
        tokens[p, :, begin : begin + S] = suffixes_NS
        tokens[p, :, begin + S :] = tail
        segments[p, :, begin - len(before) :] = 1
        targets[p, :, longest - len(target) :] = target
        weights[p, :, longest - len(target) :] = 1 / len(target)
    return tuple(x.reshape(-1, x.shape[-1]) for x in (tokens, segments, targets, weights))


def _chunks(laid: tuple[np.ndarray, ...], chunk: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield `chunk` rows at a time; the last chunk is padded with rows without weight."""
    ways = row_ways()
    chunk = -(-chunk // ways) * ways
    for begin in range(0, len(laid[0]), chunk):
        part = [x[begin : begin + chunk] for x in laid]
        missing = ((0, chunk - len(part[0])), (0, 0))
        tokens, segments, targets, weights = (np.pad(x, missing) for x in part)
        segments[len(part[0]) :] = 1
        yield tokens, segments, targets, weights


def _negative_logp(model: Transformer, tokens_CT, segments_CT, targets_CL, weights_CL, noise_CTD=None) -> jax.Array:
    """Return float32 [C]: −Σ weight · log p(target)."""
    positions_CT = jnp.maximum(0, jnp.cumsum(segments_CT, axis=1) - 1)
    x_CTD = model.hidden(Inputs(tokens_CT, segments_CT, positions_CT, noise_BTD=noise_CTD)).x_BTD
    logits_CLV = reshard(model.logits(x_CTD[:, -targets_CL.shape[1] - 1 : -1]), "batch", None, None)
    is_target_CLV = lax.broadcasted_iota(jnp.int32, logits_CLV.shape, 2) == targets_CL[..., None]
    logp_CL = jnp.sum(jnp.where(is_target_CLV, logits_CLV, 0), axis=-1) - jax.nn.logsumexp(logits_CLV, axis=-1)
    return -jnp.sum(weights_CL * logp_CL, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _loss(graph, params, *rows) -> jax.Array:
    return _negative_logp(nnx.merge(graph, params), *rows)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(graph, params, tokens_CT, *rows) -> jax.Array:
    """Return [C, T, D]: the gradient of noise added to the embeddings, at zero noise; it equals the embeddings' gradient."""
    model = nnx.merge(graph, params)
    zero_CTD = jnp.zeros((*tokens_CT.shape, model.config.embed_dim), jnp.float32, out_sharding=spec("batch", "length", None))
    return jax.grad(lambda noise_CTD: jnp.sum(_negative_logp(model, tokens_CT, *rows, noise_CTD)))(zero_CTD)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _substitutes(graph, topk: int, params, gradient_SD, allowed_V) -> jax.Array:
    """Return int32 [S, K]: for each position, the tokens with the most negative gradient of their one-hot vectors.

    A token's embedding is embed_scale times its row of the table, so ∂loss/∂onehot = embed_scale · table · ∂loss/∂embedding.
    """
    model = nnx.merge(graph, params)
    table_VD = reshard(model.embedding[...].astype(jnp.float32), None, None) * model.config.embed_scale
    gradient_SV = jnp.einsum("sd,vd->sv", gradient_SD, table_VD)
    return lax.top_k(jnp.where(allowed_V, -gradient_SV, -jnp.inf), topk)[1]
