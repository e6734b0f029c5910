"""The validation of text: nats per token and bits per byte of all sources together, and bits per byte of each."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data.text.batches import Batches, TextBatches
from data.text.tokenizer import Tokenizer
from data.text.weights import Rule, Weights
from lm.parallel.mesh import spec
from lm.train.feed import Feed, summed
from lm.train.step import Batch, Trainer


def valid_batches(dataset: Path, batch_size: int) -> dict[str, TextBatches]:
    """Return the validation batches of a dataset by source, each of one source. Raises: UserError: it holds out no text."""

    def batches(**chosen: Any) -> TextBatches:
        return TextBatches(dataset, "valid", batch_size=batch_size, shuffle=False, **chosen)

    return {name: batches(weights=Weights([Rule(0.0, "shares", {name: 1.0})])) for name in batches().ranges}


class Evaluator:
    """Validation loss over all batches, or over some, spread evenly over the sources. batches: of each source, on a mesh."""

    def __init__(self, trainer: Trainer, batches: Mapping[str, Batches], mesh: Mesh, tokenizer: Tokenizer, vocab_size: int):
        self._feeds = {name: Feed(one, mesh) for name, one in batches.items()}
        self._batches = {name: one.num_batches for name, one in batches.items()}
        table = np.zeros(vocab_size, np.float32)
        table[: tokenizer.vocab_size] = tokenizer.bytes_per_token
        bytes_V = jnp.asarray(table)

        def sums(params: nnx.State, batch: Batch) -> dict[str, jax.Array]:
            target_bytes = bytes_V.at[batch["targets"]].get(out_sharding=spec("batch", "length"))
            counted = jnp.sum(batch["weights"] * target_bytes)
            found = {"nll": trainer.nll(params, batch), "tokens": jnp.sum(batch["weights"]), "bytes": counted}
            if trainer.objective.is_nll:
                return found | {"objective": found["nll"], "weight": found["tokens"]}
            own = trainer.evaluate(params, batch)
            return found | {name: own[name] for name in ("objective", "weight")}

        self._step, self._is_nll = jax.jit(sums), trainer.objective.is_nll

    def __call__(self, params: nnx.State, at_most: int | None = None) -> dict[str, float]:
        """Return {"loss": the objective by its weight, "bits_per_byte": Σ nll / (ln 2 · Σ bytes), "tokens", "bytes"}.

        The objective of pretraining is the nll in nats per token; a run with another one also has "nll". With several sources
        also "bits_per_byte/NAME" of each. at_most: batches over all sources, but at least one of each. The end-of-document
        token is a target with an nll and 0 bytes.
        """
        sizes, total = self._batches, sum(self._batches.values())
        if at_most is not None:
            sizes = {name: max(1, min(at_most, total) * size // total) for name, size in sizes.items()}
        step = functools.partial(self._step, params)
        found = {name: summed(step, feed.spread(sizes[name])) for name, feed in self._feeds.items()}
        totals = {key: sum(sums[key] for sums in found.values()) for key in ("nll", "tokens", "bytes", "objective", "weight")}
        each = {f"bits_per_byte/{name}": _bits_per_byte(sums) for name, sums in found.items()}
        return {
            "loss": totals["objective"] / max(1e-9, totals["weight"]),
            **({} if self._is_nll else {"nll": totals["nll"] / max(1.0, totals["tokens"])}),
            "bits_per_byte": _bits_per_byte(totals),
            **(each if len(each) > 1 else {}),
            "tokens": int(totals["tokens"]),
            "bytes": int(totals["bytes"]),
        }


def _bits_per_byte(sums: Mapping[str, float]) -> float:
    return sums["nll"] / np.log(2) / max(1.0, sums["bytes"])
