"""Measure a run while it trains: the loss on held-out text, and evaluation tasks (lm/evals/in_loop.py)."""

import functools
from collections.abc import Callable, Mapping
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
from lm.parallel.context import sequences_whole
from lm.parallel.mesh import spec
from lm.train.feed import Feed, of_each
from lm.train.loop import Event, Run
from lm.train.step import Batch, Trainer, token_loss
from lm.train.update import averaged

Validate = Callable[[nnx.State, int | None], dict[str, float]]
Measure = Callable[[int, nnx.State], dict[str, float]]


class Validation(Event):
    """Validates every config.valid_every steps, and with all batches before the first step and at the end.

    validate: validate(params, batches or None for all) -> {name: number}.
    """

    def __init__(self, validate: Validate):
        self._validate = validate

    def before(self, run: Run, step: int) -> None:
        # Before the next step, not after the last one, so that a run that was stopped in between validates when it resumes.
        config, is_due = run.config, run.config.valid_every and step > 1 and (step - 1) % run.config.valid_every == 0
        first = step == 1 and (bool(config.init_from) if config.valid_first is None else config.valid_first)
        if first or is_due:
            with run.pause("validation"):
                # All of it before the first step, as at the end: the two are compared.
                numbers = self._validate(averaged(run.state), None if first else config.valid_batches)
                run.log.valid(step - 1, numbers)
                run.saves.losses.validated(step - 1, numbers)

    def end(self, run: Run) -> None:
        run.health.enter("validation")
        run.valid = self._validate(averaged(run.state), None)
        run.log.valid(run.step, run.valid)


class Evaluations(Event):
    """Runs evaluation tasks every config.evals.every steps and at the end.

    measure: measure(step, params) -> {name: number}; logged like validation.
    """

    def __init__(self, measure: Measure):
        self._measure = measure

    def before(self, run: Run, step: int) -> None:
        every = run.config.evals.every
        if every and step > 1 and (step - 1) % every == 0:
            with run.pause("validation"):
                self._log(run, step - 1)

    def end(self, run: Run) -> None:
        run.health.enter("validation")
        self._log(run, run.step)

    def _log(self, run: Run, step: int) -> None:
        with sequences_whole(averaged(run.state)) as params:
            run.log.valid(step, self._measure(step, params))


class Evaluator:
    """The validation of text: nats per token and bits per byte of all sources together, and bits per byte of each.

    batches: of each source, on a mesh (`valid_batches`).
    """

    def __init__(self, trainer: Trainer, batches: Mapping[str, Batches], mesh: Mesh, tokenizer: Tokenizer, vocab_size: int):
        self._feeds = {name: Feed(one, mesh) for name, one in batches.items()}
        self._batches = {name: one.num_batches for name, one in batches.items()}
        table = np.zeros(vocab_size, np.float32)
        table[: tokenizer.vocab_size] = tokenizer.bytes_per_token
        bytes_V = jnp.asarray(table)

        def sums(params: nnx.State, batch: Batch) -> dict[str, jax.Array]:
            target_bytes = bytes_V.at[batch["targets"]].get(out_sharding=spec("batch", "length"))
            nll = token_loss(nnx.merge(trainer.graph, params), batch, z_loss=0.0)[1]
            found = {"nll": nll, "tokens": jnp.sum(batch["weights"]), "bytes": jnp.sum(batch["weights"] * target_bytes)}
            if trainer.objective.is_nll:
                return found | {"objective": found["nll"], "weight": found["tokens"]}
            own = trainer.evaluate(params, batch)
            return found | {name: own[name] for name in ("objective", "weight")}

        self._step, self._is_nll = jax.jit(sums), trainer.objective.is_nll

    def __call__(self, params: nnx.State, at_most: int | None = None) -> dict[str, float]:
        """Return {"loss": the objective by its weight, "bits_per_byte": Σ nll / (ln 2 · Σ bytes), "tokens", "bytes"}.

        The objective of pretraining is the nll in nats per token; a run with another one also has "nll". With several sources
        also "bits_per_byte/NAME" of each. at_most: batches over all sources, spread evenly, but at least one of each. The
        end-of-document token is a target with an nll and 0 bytes.
        """
        sizes, total = self._batches, sum(self._batches.values())
        if at_most is not None:
            sizes = {name: max(1, min(at_most, total) * size // total) for name, size in sizes.items()}
        step = functools.partial(self._step, params)
        batches = {name: of_each(step, feed.spread(sizes[name])) for name, feed in self._feeds.items()}
        sums = {name: jax.tree.map(lambda *values: sum(values), *own) for name, own in batches.items()}
        totals = {key: sum([own[key] for own in sums.values()]) for key in ("nll", "tokens", "bytes", "objective", "weight")}
        each = {f"bits_per_byte/{name}": _bits_per_byte(own) for name, own in sums.items()}
        return {
            "loss": totals["objective"] / max(1e-9, totals["weight"]),
            **({} if self._is_nll else {"nll": totals["nll"] / max(1.0, totals["tokens"])}),
            "bits_per_byte": _bits_per_byte(totals),
            **(each if len(each) > 1 else {}),
            "tokens": int(totals["tokens"]),
            "bytes": int(totals["bytes"]),
        }


def valid_batches(dataset: Path, batch_size: int) -> dict[str, TextBatches]:
    """Return the validation batches of a dataset by source, each of one source. Raises: UserError: it holds out no text."""

    def batches(**chosen: Any) -> TextBatches:
        return TextBatches(dataset, "valid", batch_size=batch_size, shuffle=False, **chosen)

    return {name: batches(weights=Weights([Rule(0.0, "shares", {name: 1.0})])) for name in batches().ranges}


def _bits_per_byte(sums: Mapping[str, float]) -> float:
    return sums["nll"] / np.log(2) / max(1.0, sums["bytes"])
