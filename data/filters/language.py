"""Identify the language of documents: py3langid's model, evaluated by a compiled loop.

The model (Lui and Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", 2012; retrained in py3langid 0.4) is
naive Bayes over byte n-grams. An automaton reads the UTF-8 text and emits at most one n-gram per byte. With counts c_f:

    score_l = log P(l) + Σ_f log(1 + c_f) · log P(f | l);    P(l | text) = softmax(score / √bytes)

`LanguageIdentifier.classify` of py3langid is the plain twin of the compiled loops.
"""

import contextlib
import functools
import hashlib
import unicodedata
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from data.filters.compiled import compiled
from lm.files import compile_cache, saving

SAMPLE = 4096  # characters of a document that are read: enough, since accuracy is flat above about 1,000
SLICES = 8  # evenly spaced pieces of a longer document, so that a menu at its top does not decide
FORMAT = 2  # of the tables in the user's cache
UNKNOWN = "und"  # ISO 639-2 for undetermined

_BATCH_BYTES = 1 << 20
_BATCH_TEXTS = 1 << 12
_TOGETHER = 16  # texts read in turns: the table is larger than a cache, so that waits for memory overlap


class Model(NamedTuple):
    """The tables of the automaton and of naive Bayes."""

    languages: np.ndarray  # str [classes], ISO 639 codes; one occurs twice if it is written in two scripts
    prior: np.ndarray  # float32 [classes]
    likelihood: np.ndarray  # float32 [features, classes]
    next_state: np.ndarray  # uint32 [rows · 256]
    row: np.ndarray  # int64 [states]: 256 times the row of next_state
    feature: np.ndarray  # int32 [states]: the feature that the state emits, or -1
    aliases: np.ndarray  # int64 [pairs, 2]: classes of the same language, its first one and another one


@functools.cache
def load_model() -> Model:
    """Load the model of the installed py3langid, once a process.

    Decompressing it takes half a second, so the tables are kept in the user's cache, under a hash of the package's file. The
    large ones, 92 MB, are mapped: only the pages that texts need take memory, and processes share them.
    """
    from py3langid.langid import MODEL_DIR, MODEL_FILE

    packed = xxhash.xxh3_128_hexdigest((MODEL_DIR / MODEL_FILE).read_bytes())
    try:
        path = compile_cache.home() / f"language-{FORMAT}-{packed}.npz"
        large = path.with_suffix(".npy")
    except RuntimeError:  # no home
        return decompressed()
    try:
        with np.load(path) as tables, large.open("rb") as file:  # tables have checksums of their own
            small, digest = dict(tables), hashlib.file_digest(file, "sha256").hexdigest()
            if small.pop("digest") != digest:
                raise ValueError(f"{large} is damaged")
        both, count = np.load(large, mmap_mode="c"), small.pop("states")
        return Model(
            **small, next_state=both[:count], likelihood=both[count:].view(np.float32).reshape(-1, len(small["prior"]))
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        model = decompressed()
    with contextlib.suppress(OSError):
        with saving.replacing(large, "wb", shared=True) as file:
            np.save(file, np.concatenate([model.next_state, model.likelihood.reshape(-1).view(np.uint32)]))
        with large.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        small = {name: x for name, x in model._asdict().items() if name not in ("next_state", "likelihood")}
        with saving.replacing(path, "wb", shared=True) as file:
            np.savez(file, **small, digest=digest, states=len(model.next_state))
    return model


def decompressed() -> Model:
    """Return the model as py3langid's own loader reads it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    own = LanguageIdentifier.from_model_file(MODEL_FILE)
    next_state = np.frombuffer(own.tk_nextmove, np.dtype(f"u{own.tk_nextmove.itemsize}"))
    languages = list(own.nb_classes)
    aliases = [(languages.index(name), i) for i, name in enumerate(languages) if languages.index(name) < i]
    return Model(
        np.array(languages),
        np.asarray(own.nb_pc, np.float32),
        np.asarray(own.nb_ptc).astype(np.float32),
        next_state.astype(np.uint32),
        np.asarray(own.tk_row, np.int64) << 8,
        np.asarray(own.tk_output, np.int32),
        np.array(aliases, np.int64).reshape(-1, 2),
    )


def language(texts: Sequence[str], sample: int = SAMPLE) -> dict[str, Any]:
    """Return the columns language (ISO 639 code) and language_score of documents.

    Args:
        sample: number of characters of a document that are read, in evenly spaced slices if it is longer.

    Returns:
        language: list of str; "und" if no n-gram of the model occurs.
        language_score: float32 [documents], P(language | text), 0 for "und". FineWeb's threshold 0.65 was chosen for fastText,
            whose scores differ.
    """
    labels, score = identify([_sampled(text, sample) for text in texts])
    return {"language": labels.tolist(), "language_score": score}


def identify(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return each text's language, str [texts], and its probability, float32 [texts]. The whole text is read."""
    model = load_model()
    encoded = [_encoded(text) for text in texts]
    labels = np.full(len(texts), UNKNOWN, dtype=np.array([*model.languages, UNKNOWN]).dtype)
    probabilities = np.zeros(len(texts), np.float32)
    begin = 0
    while begin < len(texts):
        end, size = begin, 0
        while end < len(texts) and size < _BATCH_BYTES and end - begin < _BATCH_TEXTS:
            size += len(encoded[end])
            end += 1
        best, probability = _classify(encoded[begin:end], model)
        known = best >= 0
        labels[begin:end][known] = model.languages[best[known]]
        probabilities[begin:end] = probability
        begin = end
    return labels, probabilities


def _classify(encoded: Sequence[bytes], model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Return the best class of each text, int64 [texts], −1 without features, and its probability, float32 [texts]."""
    lengths = np.array([len(data) for data in encoded], np.int64)
    end_N, data = np.cumsum(lengths), np.frombuffer(bytearray(b"".join(encoded)), np.uint8)
    feature_B, log_counts = np.empty(len(data), np.int32), np.log1p(np.arange(lengths.max() + 1, dtype=np.float32))
    _read(data, end_N - lengths, end_N, model.next_state, model.row, model.feature, feature_B)
    scores, found = np.zeros((len(encoded), len(model.languages)), np.float32), np.zeros(len(encoded), np.int64)
    _score(feature_B, end_N - lengths, end_N, model.likelihood, log_counts, scores, found)
    scores = (scores + model.prior) / np.sqrt(np.maximum(lengths, 1))[:, None].astype(np.float32)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    for first, other in model.aliases.tolist():
        scores[:, first] += scores[:, other]
        scores[:, other] = 0
    best, some = scores.argmax(axis=1), found > 0
    return np.where(some, best, -1), np.where(some, scores[np.arange(len(best)), best], 0).astype(np.float32)


@compiled
def _read(data, begin_N, end_N, next_state, row, feature, feature_B):
    """Write the n-gram that the automaton emits after each byte, int32, or −1.

    data: uint8, the UTF-8 of all texts;  next_state, row, feature: see `Model`
    """
    states = np.empty(_TOGETHER, np.int64)
    for first in range(0, len(end_N), _TOGETHER):
        texts = min(_TOGETHER, len(end_N) - first)
        longest = 0
        for k in range(texts):
            states[k] = 0
            longest = max(longest, end_N[first + k] - begin_N[first + k])
        for step in range(longest):
            for k in range(texts):
                i = begin_N[first + k] + step
                if i < end_N[first + k]:
                    states[k] = next_state[row[states[k]] + data[i]]
                    feature_B[i] = feature[states[k]]


@compiled
def _score(feature_B, begin_N, end_N, likelihood, log_counts, score_NL, found_N):
    """Add Σ_f log(1 + c_f) · log P(f | l) to float32 [N, L], and write how many different n-grams f occur, int64 [N].

    log_counts: float32, log(1 + c) of each count c
    """
    counts, some = np.zeros(len(likelihood), np.int32), np.empty(len(likelihood), np.int32)
    for n in range(len(end_N)):
        found = 0
        for i in range(begin_N[n], end_N[n]):
            f = feature_B[i]
            if f >= 0:
                if counts[f] == 0:
                    some[found] = f
                    found += 1
                counts[f] += 1
        for k in range(found):
            f = some[k]
            weight, counts[f] = log_counts[counts[f]], 0
            for label in range(likelihood.shape[1]):
                score_NL[n, label] += weight * likelihood[f, label]
        found_N[n] = found


def _encoded(text: str) -> bytes:
    """Return the bytes that the model reads: NFC, and lower case if there is no lower-case letter, as it was trained."""
    if text.isupper():
        text = text.lower()
    return unicodedata.normalize("NFC", text).encode("utf-8", errors="surrogatepass")


def _sampled(text: str, sample: int) -> str:
    if len(text) <= sample:
        return text
    size, step = max(sample // SLICES, 1), len(text) / SLICES
    return "\n".join(text[int(i * step) : int(i * step) + size] for i in range(SLICES))
