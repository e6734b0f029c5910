"""Train a classifier on good and bad texts: split, features, weights, figures on held-out texts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.filters.classifier import held_out, linear
from data.filters.classifier.examples import Labelled, split
from data.filters.classifier.fit import Examples, Options, fit
from data.filters.classifier.linear import Features, Model, Settings
from data.filters.classifier.telling import telling
from data.filters.words import Words
from lm.errors import UserError
from lm.progress import progress

_BATCH_CHARACTERS = 4 << 20


def train(
    good: Mapping[int, str],
    bad: Mapping[int, str],
    settings: Settings = Settings(),  # noqa: B008 (it is frozen)
    options: Options = Options(),  # noqa: B008
    *,
    fractions: tuple[float, float] = (0.1, 0.1),
    shown: bool = True,
) -> Model:
    """Return a model of P(good | text), which depends on the arguments alone.

    Memory: the texts, and 4 bytes for each distinct n-gram of a document.

    Args:
      good, bad: {digest: text} of `examples.distinct`. fractions: of validation and of test documents.
      shown: show progress.
    Returns: a model whose `about` has the options, {documents}, {fit}, {test}: figures of held_out.measure, and {telling}.
    Raises: UserError: a part lacks good or bad documents, or the fractions are wrong.
    """
    parts, both = split(good, bad, fractions)
    for name, part in parts.items():
        if part.good_N.all() or not part.good_N.any():
            counts = " and ".join(f"{count} {side}" for side, count in _counts(part).items())
            raise UserError(f"the {name} part has {counts} documents; it needs both: give more documents")
    examples = {}
    documents = sum(len(part.texts) for part in parts.values())
    with progress("features", documents, unit=" documents", enabled=shown, soon=False) as bar:
        for name, part in parts.items():
            found = []
            for texts in _batches(part.texts):
                found.append(linear.features(Words(texts), settings))
                bar.update(len(texts))
            examples[name] = Examples(Features(*map(np.concatenate, zip(*found))), part.good_N)
    with progress("training", options.steps, unit=" steps", enabled=shown) as bar:
        bar.compiling()

        def show(step: int, loss: float) -> None:
            bar.set_postfix_str(f"validation loss {loss:.4f}", refresh=False)
            bar.update(step - bar.n)

        model = fit(examples["train"], examples["valid"], settings, options, show)
    test = examples["test"]
    score_N = linear.probability(linear.logits(test.features, model.weights, model.bias)).astype(np.float32)
    about: dict[str, Any] = {
        "options": options._asdict() | {"fractions": list(fractions)},
        "documents": {"in_both": both} | {name: _counts(part) for name, part in parts.items()},
        "fit": dict(model.about),
        "test": held_out.measure(score_N, test.good_N),
        "telling": telling(
            _batches(parts["train"].texts), model.weights, examples["train"].features, parts["train"].good_N, settings
        ),
    }
    return dataclasses.replace(model, about=about)


def _counts(part: Labelled) -> dict[str, int]:
    return {"good": int(part.good_N.sum()), "bad": int((~part.good_N).sum())}


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    begin, size = 0, 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= _BATCH_CHARACTERS or end == len(texts):
            yield texts[begin:end]
            begin, size = end, 0
