"""Fit the weights of a linear classifier: L-BFGS (Liu & Nocedal 1989) on all documents at once, by SciPy.

Axes: N documents, F distinct features of all documents, V buckets that have a weight.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data.filters.classifier.linear import Features, Model, Settings, logits, probability
from lm.errors import UserError

PATIENCE = 10  # steps without a better validation loss, after which training ends


class Examples(NamedTuple):
    """N labelled documents. good_N: bool."""

    features: Features
    good_N: np.ndarray


class Options(NamedTuple):
    """How to train.

    steps: at most. l2: l2/2 · |weights|² is added to the loss. min_documents: a bucket in fewer training documents gets the
    weight 0.
    """

    steps: int = 200
    l2: float = 1e-5
    min_documents: int = 2


def fit(
    train: Examples, valid: Examples, settings: Settings, options: Options, shown: Callable[[int, float], None] | None = None
) -> Model:
    """Return the model with the lowest validation loss among those seen during training.

    Minimises the mean of −log p(label), in which both classes have the same total weight. So probabilities hold for a corpus
    with as many good documents as bad ones.

    Args:
      train, valid: each with good and bad documents.
      shown: called with the step and the validation loss after each step.
    Returns: a model whose `about` has {steps, best_step, valid_loss, buckets}.
    Raises: UserError: no step has a validation loss, so the model would know nothing.
    """
    from scipy.optimize import minimize

    used = np.flatnonzero(np.bincount(train.features.bucket_F, minlength=1 << settings.bits) >= options.min_documents)
    column = np.full(1 << settings.bits, len(used), np.int32)  # buckets without a weight share the last column, which stays 0
    column[used] = np.arange(len(used))
    train, valid = _renamed(train, column), _renamed(valid, column)
    bucket_F, count_N = train.features
    weight_N, scale_N = class_weights(train.good_N) / len(count_N), 1 / np.sqrt(np.maximum(count_N, 1))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight_V, bias = parameters[:-1], parameters[-1]
        logit_N = logits(train.features, np.append(weight_V, 0.0), bias)
        error_N = weight_N * (probability(logit_N) - train.good_N)
        gradient_V = np.bincount(bucket_F, np.repeat(error_N * scale_N, count_N), len(used) + 1)[:-1] + options.l2 * weight_V
        return log_loss(logit_N, train.good_N) + options.l2 / 2 * weight_V @ weight_V, np.append(gradient_V, error_N.sum())

    best_loss, best_step, best, number = np.inf, 0, np.zeros(len(used) + 1), 0

    def seen(parameters: np.ndarray) -> None:
        nonlocal best_loss, best_step, best, number
        number += 1
        now = log_loss(logits(valid.features, np.append(parameters[:-1], 0.0), parameters[-1]), valid.good_N)
        if shown is not None:
            shown(number, now)
        if now < best_loss:
            best_loss, best_step, best = now, number, parameters.copy()
        elif number - best_step >= PATIENCE:
            raise StopIteration

    minimize(loss, best, jac=True, method="L-BFGS-B", callback=seen, options={"maxiter": options.steps})
    if not best_step:
        cause = f"no n-gram is in min_documents={options.min_documents} documents, or l2={options.l2} is too large"
        raise UserError(f"classifier: training finds no weights: {cause}; lower the two or give more documents")
    weights = np.zeros(1 << settings.bits, np.float32)
    weights[used] = best[:-1]
    about = {"steps": number, "best_step": best_step, "valid_loss": best_loss, "buckets": len(used)}
    return Model(settings, weights, float(best[-1]), about)


def _renamed(examples: Examples, column: np.ndarray) -> Examples:
    return examples._replace(features=examples.features._replace(bucket_F=column[examples.features.bucket_F]))


def class_weights(good_N: np.ndarray) -> np.ndarray:
    """Return float64 [N] with mean 1: both classes have the same total."""
    share = good_N.mean()
    return np.where(good_N, 0.5 / share, 0.5 / (1 - share))


def log_loss(logit_N: np.ndarray, good_N: np.ndarray) -> float:
    """Return the mean of −log p(label), both classes with the same total weight, in nats."""
    return float(np.mean(class_weights(good_N) * (np.logaddexp(0, logit_N) - good_N * logit_N)))
