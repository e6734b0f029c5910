"""Identify the language of documents and of their lines: py3langid's model, evaluated with NumPy over a batch.

The model (Lui and Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", 2012; retrained in py3langid 0.4) is
naive Bayes over byte n-grams. An automaton reads the UTF-8 text and emits at most one n-gram per byte. With counts c_f:

    score_l = log P(l) + Σ_f log(1 + c_f) · log P(f | l);    P(l | text) = softmax(score / √bytes)

The state of the automaton depends on the last few bytes only. So a batch is cut into lanes of equal length that are read in
parallel, each after a run-up of as many bytes as the longest n-gram has. `LanguageIdentifier.classify` of py3langid is the
plain twin that reads byte by byte.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SAMPLE = 4096  # characters of a document that are read: enough, since accuracy is flat above about 1,000
SLICES = 8  # evenly spaced pieces of a longer document, so that a menu at its top does not decide
LINE_BYTES = 30  # shorter lines are names, dates and buttons, for which the model guesses
LINES = 16  # evenly spaced lines of a document that are read
LINE_SAMPLE = 256  # characters of a line that are read
UNKNOWN = "und"  # ISO 639-2 for undetermined

_LANE = 64  # bytes read by a lane, without its run-up
_BATCH_BYTES = 1 << 20
_BATCH_TEXTS = 1 << 12


class Model(NamedTuple):
    """The tables of the automaton and of naive Bayes."""

    languages: np.ndarray  # str [classes], ISO 639 codes; one occurs twice if it is written in two scripts
    prior: np.ndarray  # float32 [classes]
    likelihood: np.ndarray  # float32 [features, classes]
    next_state: np.ndarray  # uint32 [rows · 256]
    row: np.ndarray  # int64 [states]: 256 times the row of next_state
    feature: np.ndarray  # int32 [states]: the feature that the state emits, or -1
    depth: int  # bytes of the longest n-gram
    aliases: list[tuple[int, int]]  # classes of the same language: its first one, another one


@functools.cache
def load_model() -> Model:
    """Load the model of the installed py3langid. It takes about three seconds and 150 MB, once a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    own = LanguageIdentifier.from_model_file(MODEL_FILE)
    next_state = np.frombuffer(own.tk_nextmove, np.dtype(f"u{own.tk_nextmove.itemsize}"))
    row = np.asarray(own.tk_row, np.int64)
    languages = list(own.nb_classes)
    return Model(
        np.array(languages),
        np.asarray(own.nb_pc, np.float32),
        np.asarray(own.nb_ptc).astype(np.float32),
        next_state,
        row << 8,
        np.asarray(own.tk_output, np.int32),
        _depth(next_state.reshape(-1, 256), row),
        [(languages.index(name), i) for i, name in enumerate(languages) if languages.index(name) < i],
    )


def language(texts: Sequence[str], sample: int = SAMPLE) -> dict[str, np.ndarray]:
    """Return the columns language (ISO 639 code), language_score and language_line_share of documents.

    Args:
        sample: number of characters of a document that are read, in evenly spaced slices if it is longer.

    Returns:
        language: str [documents]; "und" if no n-gram of the model occurs.
        language_score: float32 [documents], P(language | text), 0 for "und". FineWeb's threshold 0.65 was chosen for fastText,
            whose scores differ.
        language_line_share: float32 [documents]: of the characters in up to 16 evenly spaced lines of at least 30 bytes, the
            share in lines that have the document's language. 1 if there is no such line.
    """
    found, score = identify([_sampled(text, sample) for text in texts])
    lines, lengths, document = [], [], []
    for number, text in enumerate(texts):
        for line in _some_lines(text):
            lines.append(line[:LINE_SAMPLE])
            lengths.append(len(line))
            document.append(number)
    line_language, _ = identify(lines)
    weight, document = np.array(lengths, np.float64), np.array(document, np.int64)
    total = np.bincount(document, weight, len(texts))
    same = np.bincount(document, weight * (line_language == found[document]), len(texts))
    share = np.where(total > 0, same / np.maximum(total, 1), 1.0)
    return {"language": found, "language_score": score, "language_line_share": share.astype(np.float32)}


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
    from scipy.sparse import csr_array

    lengths = np.array([len(data) for data in encoded], np.int64)
    feature = model.feature[_states(b"".join(encoded), np.cumsum(lengths) - lengths, model)]
    at = np.flatnonzero(feature >= 0)
    document = np.repeat(np.arange(len(encoded)), lengths)[at]
    starts = np.searchsorted(document, np.arange(len(encoded) + 1))
    counts = csr_array((np.ones(len(at), np.float32), feature[at], starts), shape=(len(encoded), len(model.likelihood)))
    counts.sum_duplicates()
    counts.data = np.log1p(counts.data)
    scores = (counts @ model.likelihood + model.prior) / np.sqrt(np.maximum(lengths, 1))[:, None].astype(np.float32)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    for first, other in model.aliases:
        scores[:, first] += scores[:, other]
        scores[:, other] = 0
    best, some = scores.argmax(axis=1), np.diff(starts) > 0
    return np.where(some, best, -1), np.where(some, scores[np.arange(len(best)), best], 0).astype(np.float32)


def _states(data: bytes, starts: np.ndarray, model: Model) -> np.ndarray:
    """Return the automaton's state after each byte, int64 [len(data)]. It begins anew at each of `starts`."""
    lead = model.depth - 1
    lanes = max(1, -(-len(data) // _LANE))
    padded = np.zeros(lead + lanes * _LANE, np.uint8)
    padded[lead : lead + len(data)] = np.frombuffer(data, np.uint8)
    begins = np.zeros(len(padded), bool)
    begins[lead + starts[starts < len(data)]] = True
    # Column l holds lane l and, above it, the last bytes of the lane before it.
    columns = np.lib.stride_tricks.sliding_window_view(padded, lead + _LANE)[::_LANE].T
    begins = np.lib.stride_tricks.sliding_window_view(begins, lead + _LANE)[::_LANE].T
    columns, begins = np.ascontiguousarray(columns), np.ascontiguousarray(begins)
    states = np.empty((lanes, _LANE), np.int64)
    state = np.zeros(lanes, np.int64)
    for step in range(lead + _LANE):
        state[begins[step]] = 0
        state = model.next_state[model.row[state] + columns[step]].astype(np.int64)
        if step >= lead:
            states[:, step - lead] = state
    return states.reshape(-1)[: len(data)]


def _depth(next_state: np.ndarray, row: np.ndarray) -> int:
    """Return the number of bytes after which every state has been reached, the length of the longest n-gram."""
    seen = np.zeros(len(row), bool)
    seen[0], frontier, depth = True, np.array([0]), -1
    while len(frontier):
        reached = np.zeros(len(row), bool)
        reached[next_state[np.unique(row[frontier])].reshape(-1)] = True
        frontier = np.flatnonzero(reached & ~seen)
        seen |= reached
        depth += 1
    return depth


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


def _some_lines(text: str) -> list[str]:
    lines = [line for line in text.split("\n") if len(line) >= LINE_BYTES or len(line.encode(errors="replace")) >= LINE_BYTES]
    if len(lines) <= LINES:
        return lines
    return [lines[i * len(lines) // LINES] for i in range(LINES)]
