"""Fit the weights of a linear classifier with JAX.

JAX is imported inside `fit`, and runs on the CPU there. So reading and scoring documents, the rest of `data`, works without JAX
and knows no devices.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data.filters.classifier.linear import Features, Model, Settings, logits
from data.filters.words import runs
from lm.errors import UserError

MOMENTUM = 0.9
EVALUATE_EVERY = 50  # steps
PATIENCE = 10  # evaluations without a better validation loss, after which training ends
MIN_PADDED = 1 << 14  # features of a batch are padded to a power of two, so few shapes are compiled


class Examples(NamedTuple):
    """N labelled documents. good_N: bool."""

    features: Features
    good_N: np.ndarray


class Options(NamedTuple):
    """How to train: gradient descent with Nesterov momentum on minibatches, whose rate falls to 0 along a cosine.

    On real mail, AdamW had a higher test loss on one split and an equal one on another (docs/decisions.md).

    learning_rate: at the beginning. It can be so high because a document's vector has length 1, so the gradient of the loss is
      1-Lipschitz or less. l2: l2/2 · |weights|² is added to the loss. min_documents: a bucket in fewer training documents gets
      the weight 0.
    """

    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 5.0
    l2: float = 1e-6
    min_documents: int = 2
    seed: int = 0


def fit(
    train: Examples, valid: Examples, settings: Settings, options: Options, shown: Callable[[int, float], None] | None = None
) -> Model:
    """Return the model with the lowest validation loss among those seen during training.

    Minimises the mean of −log p(label), in which both classes have the same total weight. So probabilities hold for a corpus
    with as many good documents as bad ones. It runs on the CPU, where sums have a fixed order: a seed always gives the same
    weights.

    Args:
      train, valid: each with good and bad documents.
      shown: called with the step and the validation loss at each evaluation.
    Returns: a model whose `about` has {steps, best_step, valid_loss, buckets}.
    Raises: UserError: training diverges.
    """
    import jax
    import jax.numpy as jnp
    import optax

    used = np.flatnonzero(np.bincount(train.features.bucket_F, minlength=1 << settings.bits) >= options.min_documents)
    column = np.full(1 << settings.bits, len(used), np.int32)  # buckets without a weight share the last column, which stays 0
    column[used] = np.arange(len(used))
    train, valid = _renamed(train, column), _renamed(valid, column)
    rate = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    optimizer = optax.sgd(rate, momentum=MOMENTUM, nesterov=True)

    def loss(parameters, batch):
        weight_V, bias = parameters
        terms_P = weight_V.at[batch["column_P"]].get(mode="fill", fill_value=0) * batch["value_P"]
        logit_B = bias + jax.ops.segment_sum(terms_P, batch["row_P"], len(batch["good_B"]))
        loss_B = batch["weight_B"] * (jax.nn.softplus(logit_B) - batch["good_B"] * logit_B)
        return jnp.mean(loss_B) + options.l2 / 2 * jnp.vdot(weight_V, weight_V)

    @jax.jit
    def step(parameters, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(parameters, batch), state, parameters)
        return optax.apply_updates(parameters, updates), state

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        parameters = jnp.zeros(len(used)), jnp.zeros(())
        state = optimizer.init(parameters)
        best_loss, best_step, best = np.inf, 0, parameters
        for number, batch in enumerate(_batches(train, len(used), options), 1):
            parameters, state = step(parameters, state, batch)
            if number % EVALUATE_EVERY == 0 or number == options.steps:
                weights, bias = np.append(parameters[0], np.float32(0)), float(parameters[1])
                now = log_loss(logits(valid.features, weights, bias), valid.good_N)
                if shown is not None:
                    shown(number, now)
                if now < best_loss:
                    best_loss, best_step, best = now, number, (weights[:-1], bias)
                elif number - best_step >= PATIENCE * EVALUATE_EVERY:
                    break
    if not np.isfinite(best_loss):
        raise UserError(f"classifier: the validation loss is not finite; lower learning_rate={options.learning_rate}")
    weights = np.zeros(1 << settings.bits, np.float32)
    weights[used] = best[0]
    about = {"steps": number, "best_step": best_step, "valid_loss": best_loss, "buckets": len(used)}
    return Model(settings, weights, float(best[1]), about)


def _renamed(examples: Examples, column: np.ndarray) -> Examples:
    return examples._replace(features=examples.features._replace(bucket_F=column[examples.features.bucket_F]))


def class_weights(good_N: np.ndarray) -> np.ndarray:
    """Return float64 [N] with mean 1: both classes have the same total."""
    share = good_N.mean()
    return np.where(good_N, 0.5 / share, 0.5 / (1 - share))


def log_loss(logit_N: np.ndarray, good_N: np.ndarray) -> float:
    """Return the mean of −log p(label), both classes with the same total weight, in nats."""
    return float(np.mean(class_weights(good_N) * (np.logaddexp(0, logit_N) - good_N * logit_N)))


def _batches(examples: Examples, columns: int, options: Options) -> Iterator[dict[str, np.ndarray]]:
    """Yield options.steps batches; each epoch has an order of its own. A padded place names no column.

    column_P, row_P: int32, of each feature. value_P: float32, 1/√|S|. good_B, weight_B: float32; a padded row has weight 0.
    """
    count_N, good_N = examples.features.count_N, examples.good_N
    start_N, weight_N = np.cumsum(count_N) - count_N, class_weights(examples.good_N)
    size, order, epoch = min(options.batch_size, len(good_N)), np.empty(0, np.int64), 0
    for _ in range(options.steps):
        while len(order) < size:
            order = np.append(order, np.random.default_rng([options.seed, epoch]).permutation(len(good_N)))
            epoch += 1
        rows, order = order[:size], order[size:]
        count = count_N[rows]
        padded = max(MIN_PADDED, 1 << (int(count.sum()) - 1).bit_length())
        column, row, value = np.full(padded, columns, np.int32), np.zeros(padded, np.int32), np.zeros(padded, np.float32)
        F = int(count.sum())
        column[:F] = examples.features.bucket_F[runs(start_N[rows], count)]
        row[:F] = np.repeat(np.arange(size), count)
        value[:F] = np.repeat(1 / np.sqrt(np.maximum(count, 1)), count)
        yield {
            "column_P": column,
            "row_P": row,
            "value_P": value,
            "good_B": good_N[rows].astype(np.float32),
            "weight_B": weight_N[rows].astype(np.float32),
        }
