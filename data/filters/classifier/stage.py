"""Columns of several classifiers for a batch of documents."""

import numpy as np

from data.filters.classifier.linear import Features, Settings, features, fingerprint, load, logits, probability
from data.filters.words import Words
from lm.errors import UserError


def classifier(words: Words, model: str, name: str) -> dict[str, np.ndarray]:
    """Return the columns classifier_NAME: float32 [N], the probability that a document is good.

    Models with the same settings share their features.

    Args:
      model: folder of a classifier; several as NAME=DIR with commas between. name: of one without NAME=.
    Raises: UserError: a folder holds no classifier, or a name is there twice.
    """
    found, shared = {}, dict[Settings, Features]()
    for column, folder in models(model, name):
        one = load(folder)
        if one.settings not in shared:
            shared[one.settings] = features(words, one.settings)
        found[column] = probability(logits(shared[one.settings], one.weights, one.bias)).astype(np.float32)
    return found


def fingerprints(model: str, name: str) -> list[tuple[str, str]]:
    """Return (column, digest of the classifier) of each model."""
    return [(column, fingerprint(folder)) for column, folder in models(model, name)]


def models(model: str, name: str) -> list[tuple[str, str]]:
    """Return (column, folder) of each model. Raises: UserError: none, or a name is there twice."""
    found: list[tuple[str, str]] = []
    for part in filter(None, (part.strip() for part in model.split(","))):
        given, equals, folder = part.partition("=")
        found.append((f"classifier_{given if equals else name}", folder if equals else part))
    if not found:
        raise UserError("classifier.model is empty; name the folder of a classifier: python -m data.filters.classifier --help")
    if len({column for column, _ in found}) < len(found):
        raise UserError(f"classifier.model={model!r}: two models have the same name; write NAME=DIR,OTHER=DIR")
    return found
