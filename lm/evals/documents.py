"""Score documents one by one: the perplexity of each under a model, and its bits per byte.

Axes: N documents, B rows, T slots of a row, D model.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.text.tokenizer import Tokenizer
from lm.config import ModelConfig
from lm.errors import UserError
from lm.evals.engine import likelihood
from lm.evals.engine.encoding import prefix_of
from lm.evals.engine.likelihood import Request, dropless
from lm.infer import not_finite
from lm.kernels.logprobs import target_logprobs
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer

MIN_WIDTH = 64  # slots of the narrowest program; each next one is twice as wide
CHARACTERS = 32  # of a text that are tokenized at most, for each token that may be read
MAX_NATS = 69.0  # a token; perplexities stay below 10^30, so that sums of them are finite in float32


class Scores(NamedTuple):
    """logp: float64 [N], Σ log p of the tokens read, nats. tokens, bytes: int64 [N], read."""

    logp: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray


class Scorer:
    """A model that scores documents.

    max_tokens: the first tokens of a document that are read. batch: documents in one run of the compiled program.

    A document fills one row, behind the begin symbol (else the end symbol), and rows have a few fixed widths, so few programs
    are compiled. With batch=1 the score of a document depends on nothing else. With more, rows share a program, and a score may
    depend by rounding on the row that the document gets; small models on a CPU show no difference.

    Raises: UserError: the model cannot read as many tokens.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, max_tokens: int = 1024, batch: int = 1):
        check(model.config, max_tokens, batch)
        self.tokenizer, self.max_tokens, self.batch = tokenizer, max_tokens, batch
        self._graph, self._params = nnx.split(dropless(model))
        self._prefix = prefix_of(tokenizer)

    def scores(self, texts: Sequence[str]) -> Scores:
        """Return the scores of texts, which control symbols in them do not change: these are read as text.

        Raises: UserError: a log-probability is not finite.
        """
        heads = [text[: CHARACTERS * self.max_tokens] for text in texts]
        every = self.tokenizer.encode_many(heads) if texts else []
        ids = [np.asarray(row[: self.max_tokens], np.int32) for row in every]
        tokens = np.array([len(row) for row in ids], np.int64)
        lengths = [int(self.tokenizer.bytes_per_token[row].sum()) for row in ids]
        # The sum over ids may differ by the space that a tokenizer puts before a text.
        whole = [len(row) == len(all_) for row, all_ in zip(ids, every)]
        sizes = [len(head.encode()) if all_ else size for head, all_, size in zip(heads, whole, lengths)]
        logp = np.zeros(len(ids))
        for least, width in zip([0, *widths(self.max_tokens)], widths(self.max_tokens)):
            fits = np.flatnonzero((tokens > least) & (tokens <= width))
            for begin in range(0, len(fits), self.batch):
                some = fits[begin : begin + self.batch]
                logp[some] = self._of_rows([ids[n] for n in some], width)
        return Scores(logp, tokens, np.array(sizes, np.int64))

    def _of_rows(self, ids: Sequence[np.ndarray], width: int) -> list[float]:
        """Return Σ log p of at most `batch` documents of at most `width` tokens."""
        tokens_BT, targets_BT, valid_BT = np.zeros((3, self.batch, width), np.int32)
        for b, row in enumerate(ids):
            tokens_BT[b, : len(row)] = [self._prefix, *row[:-1]]
            targets_BT[b, : len(row)], valid_BT[b, : len(row)] = row, 1
        logp_BT = np.asarray(_logps(self._graph, self._params, tokens_BT, targets_BT, valid_BT))
        sums = [float(np.sum(logp_BT[b, : len(row)], dtype=np.float64)) for b, row in enumerate(ids)]
        if not np.isfinite(sums).all():
            raise not_finite.error(nnx.merge(self._graph, self._params), "perplexity: log-probabilities of the model")
        return sums


@functools.partial(jax.jit, static_argnums=0)
def _logps(graph, params, tokens_BT, targets_BT, valid_BT):
    """Return log p of the targets, float32 [B, T]."""
    model = nnx.merge(graph, params)
    positions_BT = valid_BT * jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    x_BTD = model.to_head(model.hidden(Inputs(tokens_BT, valid_BT, positions_BT)).x_BTD)
    config = model.config
    return target_logprobs(x_BTD, model.head_VD, targets_BT, dtype=config.dtype, softcap=config.logit_softcap)[0]


def widths(max_tokens: int) -> list[int]:
    """Return the widths of rows: MIN_WIDTH · 1, 2, 4, … below max_tokens, and max_tokens."""
    doublings = math.ceil(math.log2(max(1.0, max_tokens / MIN_WIDTH)))
    return [*(MIN_WIDTH << k for k in range(doublings)), max_tokens]


def columns(scores: Scores) -> dict[str, np.ndarray]:
    """Return columns of one value a document; NaN without a token.

    perplexity: float32, exp(−Σ log p / tokens), at most 10^30. bits_per_byte: float32, −Σ log2 p / UTF-8 bytes, which does not
    depend on the tokenizer's vocabulary. perplexity_tokens: int64, the tokens that were read.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        nats = np.where(scores.tokens > 0, -scores.logp / scores.tokens, np.nan)
        bits = np.where(scores.bytes > 0, -scores.logp / scores.bytes / math.log(2), np.nan)
    return {
        "perplexity": np.exp(np.minimum(nats, MAX_NATS)).astype(np.float32),
        "bits_per_byte": bits.astype(np.float32),
        "perplexity_tokens": scores.tokens,
    }


def check(config: ModelConfig, max_tokens: int, batch: int) -> None:
    """Raise UserError if a model cannot score rows of max_tokens."""
    for name, value in (("max_tokens", max_tokens), ("batch", batch)):
        if value < 1:
            raise UserError(f"perplexity.{name}={value}; use 1 or more")
    if max_tokens > config.max_positions:
        raise UserError(
            f"perplexity.max_tokens={max_tokens}: the model reads at most {config.max_positions}; use no more than that"
        )
    rope = config.rope
    if config.positions == "rotary" and rope.depends_on_length and max_tokens > rope.original_positions:
        raise UserError(
            f"perplexity.max_tokens={max_tokens}: rotary angles of this model depend on the length of a row over "
            f"{rope.original_positions} tokens; use no more than that"
        )


def reference(model: Transformer, tokenizer: Tokenizer, text: str, max_tokens: int) -> tuple[float, int]:
    """Return Σ log p and the number of tokens of one text, with full logits. A slow twin of `Scorer.scores`."""
    ids = tokenizer.encode(text)[:max_tokens]
    if not ids:
        return 0.0, 0
    return float(likelihood.reference(model, Request([prefix_of(tokenizer)], ids), max_tokens).logps.sum()), len(ids)
