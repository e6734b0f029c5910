"""Score documents with logistic regression on hashed n-grams, as the quality filters of CCNet and DCLM do with fastText.

Axes: N documents, W words, F distinct features of all documents. A model has 2^bits weights.

A feature is a bucket in which an n-gram of words or of characters falls. With the set S of a document's buckets, which makes a
vector of length 1:

    P(good | document) = σ(bias + Σ_{b ∈ S} weight_b / √|S|)

Buckets stand for n-grams as in Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (2009). Sets instead of
counts, and vectors of length 1 as in Joachims (1998), so that repeated words and long documents decide no more than others.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from data.filters.words import Words
from lm.errors import UserError
from lm.files import saving

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd: multiplicative hashing (Knuth, volume 3, 6.4)
WEIGHTS, ABOUT = "weights.npy", "classifier.json"
_PROBE = "Don't panic: 42 (of 100) naïve 东京 words,\nsee https://example.org/x?y=1 …"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Features of a classifier: n-grams of 1 to `ngrams` words, and of exactly `characters` characters, in 2^bits buckets.

    ngrams: 0 for none. characters: 0 for none; white space counts as one blank. They suit scripts without spaces between words.
    bits: the default has as many buckets as fastText, about 2 million.
    """

    ngrams: int = 2
    characters: int = 0
    bits: int = 21

    def __post_init__(self):
        for name, least, most in (("ngrams", 0, 8), ("characters", 0, 16), ("bits", 8, 26)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"classifier: {name}={getattr(self, name)} is not in {least} … {most}")
        if not self.ngrams and not self.characters:
            raise UserError("classifier: ngrams=0 and characters=0 leave no feature; set one of them")


class Features(NamedTuple):
    """Buckets of N documents. bucket_F: int32, those of each document distinct and ascending.  count_N: int64."""

    bucket_F: np.ndarray
    count_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
    """weights: float32 [2^bits]. about: how it was trained and its held-out figures, as JSON."""

    settings: Settings
    weights: np.ndarray
    bias: float
    about: Mapping[str, Any]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of everything that scores depend on."""
        probe = features(Words([_PROBE]), self.settings).bucket_F.tolist()  # it changes if words are split in another way
        state = xxhash.xxh3_128(json.dumps([dataclasses.asdict(self.settings), float(self.bias), probe]).encode())
        state.update(np.ascontiguousarray(self.weights, "<f4").data)
        return state.hexdigest()


class Grams(NamedTuple):
    """All n-grams of one kind in a batch. n: its words; below 0: minus its characters.

    at_P: int64, the place of the first word (or character) in the batch.  hash_P: uint64.  document_P: int64.
    begin_N: int64, the place at which each document begins
    """

    n: int
    at_P: np.ndarray
    hash_P: np.ndarray
    document_P: np.ndarray
    begin_N: np.ndarray


def features(words: Words, settings: Settings) -> Features:
    """Return the distinct buckets of each document."""
    narrow = np.uint32 if len(words) << settings.bits < 1 << 32 else np.uint64  # it sorts in about half the time
    first_N = np.arange(len(words), dtype=narrow) << narrow(settings.bits)
    keys = [some.hash_P.astype(narrow) | first_N[some.document_P] for some in grams(words, settings, settings.bits)]
    key = np.sort(np.concatenate(keys))
    key = key[np.append(True, key[1:] != key[:-1])[: len(key)]]
    starts = np.searchsorted(key, first_N)
    return Features((key & narrow((1 << settings.bits) - 1)).astype(np.int32), np.diff(np.append(starts, len(key))))


def grams(words: Words, settings: Settings, bits: int) -> Iterator[Grams]:
    """Yield the n-grams of each kind, with the highest `bits` bits of their hashes.

    The hash of the values v (hashes of words, or code points) is ((n·G + v_0)·G + … + v_last)·G mod 2^64, with G = GOLDEN and
    n as in `Grams`. So n-grams of different kinds differ.
    """
    for n in range(1, settings.ngrams + 1):
        yield _grams(words.hash_W, words.words_N, n, bits)
    if settings.characters:
        plain = [" ".join(text.split()) for text in words.texts]
        codes = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        yield _grams(codes, np.fromiter(map(len, plain), np.int64, len(plain)), -settings.characters, bits)


def _grams(value: np.ndarray, count_N: np.ndarray, n: int, bits: int) -> Grams:
    size = abs(n)
    found = value[: max(0, len(value) - size + 1)] + np.uint64(n * GOLDEN % (1 << 64))
    for j in range(1, size):
        found *= np.uint64(GOLDEN)
        found += value[j : j + len(found)]
    found *= np.uint64(GOLDEN)
    found >>= np.uint64(64 - bits)
    document = np.repeat(np.arange(len(count_N)), count_N)
    at = np.flatnonzero(document[: len(found)] == document[len(value) - len(found) :])  # both ends in one document
    return Grams(n, at, found[at], document[at], np.cumsum(count_N) - count_N)


def logits(features: Features, weights: np.ndarray, bias: float) -> np.ndarray:
    """Return float64 [N]: the log-odds of good. A document's sum does not depend on its neighbours in the batch."""
    document_F = np.repeat(np.arange(len(features.count_N)), features.count_N)
    total_N = np.bincount(document_F, weights[features.bucket_F], len(features.count_N))
    return bias + total_N / np.sqrt(np.maximum(features.count_N, 1))


def probability(logit: np.ndarray) -> np.ndarray:
    """Return σ(logit), float64."""
    return 1 / (1 + np.exp(-np.clip(logit, -500, 500)))


def scores(words: Words, model: Model) -> np.ndarray:
    """Return float32 [N]: the probability that a document is good. One without a feature has that of the bias."""
    return _scores(features(words, model.settings), model)


def _scores(features: Features, model: Model) -> np.ndarray:
    return probability(logits(features, model.weights, model.bias)).astype(np.float32)


def save(folder: Path, model: Model) -> None:
    """Write weights.npy, then classifier.json with the settings, `model.about` and the fingerprint of both files."""
    data = io.BytesIO()
    np.save(data, np.ascontiguousarray(model.weights, "<f4"))
    saving.write(folder / WEIGHTS, data.getvalue())
    about = {
        "fingerprint": model.fingerprint,
        "settings": dataclasses.asdict(model.settings),
        "bias": float(model.bias),
        **saving.plain(model.about),
    }
    saving.write(folder / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def load(folder: str | Path) -> Model:
    """Return the model in a folder. Processes share its memory.

    Raises: UserError: there is none, it is damaged, or words are split differently since it was trained.
    """
    return _loaded(str(folder), fingerprint(folder))


def fingerprint(folder: str | Path) -> str:
    """Return a digest of all that the scores of the model in a folder depend on. Raises: UserError: there is none."""
    try:
        return str(json.loads((Path(folder) / ABOUT).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_model(Path(folder) / ABOUT, error) from error


def _no_model(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is no classifier ({type(error).__name__}: {error}); make one with python -m data.filters.classifier --help"
    )


@functools.lru_cache(maxsize=16)
def _loaded(folder: str, expected: str) -> Model:
    try:
        about = json.loads((Path(folder) / ABOUT).read_text(encoding="utf-8"))
        settings, bias = Settings(**about.pop("settings")), float(about.pop("bias"))
        del about["fingerprint"]
        weights = np.load(Path(folder) / WEIGHTS, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_model(Path(folder), error) from error
    model = Model(settings, weights, bias, about)
    if weights.shape != (1 << settings.bits,) or weights.dtype != np.float32 or model.fingerprint != expected:
        raise UserError(
            f"{folder}: the fingerprint in {ABOUT} does not fit: a file was changed, or this version splits words in another "
            "way than the one that trained it; train the classifier again"
        )
    return model


def classifier(words: Words, model: str, name: str) -> dict[str, np.ndarray]:
    """Return the columns classifier_NAME: float32 [N], the probability that a document is good.

    Models with the same settings share their features.

    Args:
      model: folder of a classifier; several as NAME=DIR with commas between. name: of one without NAME=.
    Raises: UserError: a folder holds no classifier, or a name is there twice.
    """
    columns, shared = {}, dict[Settings, Features]()
    for column, folder in _models(model, name):
        loaded = load(folder)
        if loaded.settings not in shared:
            shared[loaded.settings] = features(words, loaded.settings)
        columns[column] = _scores(shared[loaded.settings], loaded)
    return columns


def fingerprints(model: str, name: str) -> list[tuple[str, str]]:
    """Return (column, digest of the classifier) of each model. Raises: UserError as `classifier`."""
    return [(column, fingerprint(folder)) for column, folder in _models(model, name)]


def _models(model: str, name: str) -> list[tuple[str, str]]:
    """Return (column, folder) of each model."""
    found: list[tuple[str, str]] = []
    for part in filter(None, (part.strip() for part in model.split(","))):
        own, equals, folder = part.partition("=")
        found.append((f"classifier_{own if equals else name}", folder if equals else part))
    if not found:
        raise UserError("classifier.model is empty; name the folder of a classifier: python -m data.filters.classifier --help")
    if len({column for column, _ in found}) < len(found):
        raise UserError(f"classifier.model={model!r}: two models have the same name; write NAME=DIR,OTHER=DIR")
    return found
