"""Train a classifier on good and bad texts: read them, split them, make features, fit, and measure on held-out texts."""

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from data.filters.classifier import figures, linear
from data.filters.classifier.fit import Examples, Options, fit
from data.filters.classifier.linear import Features, Model, Settings
from data.filters.words import Words
from data.sources import archives
from data.sources.source import Document
from lm.errors import UserError, naming
from lm.progress import progress

_BATCH_CHARACTERS = 4 << 20
PARTS = ("train", "valid", "test")


class Labelled(NamedTuple):
    """Texts with their labels, bool [N], in an order that depends on the texts alone."""

    texts: list[str]
    good_N: np.ndarray


def read_texts(flag: str, files: str, options: archives.Options) -> Iterator[str]:
    """Yield the texts of files, folders and globs with commas between, of any format that curate.py reads.

    flag: named in errors. Prints how many pieces of input could not be read. Raises: UserError: no document is there.
    """
    documents, faults = 0, {}
    with naming(flag), progress(f"reading {flag}", unit=" documents", soon=False) as bar:
        for path, id in archives.units(files, options):
            for found in archives.read(path, id, options):
                if isinstance(found, Document):
                    documents += 1
                    yield found.text
                    bar.update(1)
                else:
                    faults[found.reason] = faults.get(found.reason, 0) + 1
        if faults:
            bar.write(f"{flag}: not read: {', '.join(f'{count} × {reason}' for reason, count in sorted(faults.items()))}")
    if not documents:
        raise UserError(f"{flag}={files}: no document could be read; name files with text")


def distinct(texts: Iterable[str], most: int, seed: int) -> dict[int, str]:
    """Return {digest: text} of distinct texts; of more than `most`, those with the lowest digests: a random choice.

    Texts that differ only in white space have the same digest, of 128 bits. Memory: that of `most` texts.
    """
    found: dict[int, str] = {}
    largest: list[int] = []  # a heap of negative digests
    for text in texts:
        digest = xxhash.xxh3_128_intdigest(" ".join(text.split()).encode(), seed)
        if digest in found or (len(found) == most and digest > -largest[0]):
            continue
        found[digest] = text
        heapq.heappush(largest, -digest)
        if len(found) > most:
            del found[-heapq.heappop(largest)]
    return found


def split(good: Mapping[int, str], bad: Mapping[int, str], fractions: tuple[float, float]) -> tuple[dict[str, Labelled], int]:
    """Return the parts, and the number of texts that are good and bad, which are in none.

    Equal texts have equal digests, so they are never in two parts.

    fractions: of validation and of test documents. A part depends on the text's digest alone.
    """
    valid, test = fractions
    if not (valid > 0 and test > 0 and valid + test < 1):
        raise UserError(f"valid_fraction={valid} and test_fraction={test} must be above 0, with a sum below 1; 0.1 is usual")
    both = good.keys() & bad.keys()
    parts: dict[str, tuple[list[str], list[bool]]] = {name: ([], []) for name in PARTS}
    for digest in sorted((good.keys() | bad.keys()) - both):
        place = (digest & (1 << 64) - 1) / 2**64  # the lower half; `distinct` looks at the upper one
        name = "test" if place < test else "valid" if place < test + valid else "train"
        parts[name][0].append(good[digest] if digest in good else bad[digest])
        parts[name][1].append(digest in good)
    return {name: Labelled(texts, np.array(labels, bool)) for name, (texts, labels) in parts.items()}, len(both)


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
      good, bad: {digest: text} of `distinct`. fractions: of validation and of test documents.
      shown: show progress.
    Returns: a model whose `about` has the options, {documents}, {fit}, {test}: `figures.measure`, and {telling}.
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
        "test": figures.measure(score_N, test.good_N),
        "telling": figures.telling(
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
