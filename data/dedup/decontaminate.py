"""Find the text of benchmark items in training documents and cut it out, or drop the documents.

The default is GPT-3's (Brown et al. 2020, appendix C), as lm-evaluation-harness's Janitor has it: 13-grams of words, in lower
case and without punctuation; 200 characters on each side of a match are cut; slices below 200 characters go; a document in
more than 10 pieces goes. Another measure is the share of an item's n-grams that were found (PaLM, Chowdhery et al. 2022,
section 8: at least 70 %, at n = 8).

Matches are compared word for word, so a hash collision is no match.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.dedup.grams import rolling
from data.filters.word_hashes import Words, spelling, words
from lm.errors import UserError

NGRAM, MIN_WORDS = 13, 8  # GPT-3's N is the 5th percentile of a benchmark's example lengths, but in 8 … 13
AROUND, MIN_SLICE, MAX_PIECES = 200, 200, 10  # characters, characters, slices


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The n-grams of benchmark items, distinct over all items. Make it with `benchmark`."""

    ids: list[str]
    grams: list[tuple[str, ...]]  # the words of each
    tables: dict[int, tuple[np.ndarray, np.ndarray]]  # size in words -> (hashes, uint64 in ascending order; indexes of grams)
    held: list[list[int]]  # the distinct grams of each item, in order
    owners: list[list[int]]  # the items that hold each gram
    words: np.ndarray  # int64 [items]
    keep_symbols: bool  # which words they are made of, see `words` of data/filters/word_hashes.py


@dataclasses.dataclass(frozen=True)
class Matches:
    """Where a batch of documents holds grams of a benchmark, in order of documents and places."""

    documents: int
    document: np.ndarray  # int64 [matches], index in the batch
    gram: np.ndarray  # int64 [matches]
    start: np.ndarray  # int64 [matches], in code points
    end: np.ndarray  # int64 [matches]


def benchmark(items: Sequence[Mapping], n: int = NGRAM, least_words: int = MIN_WORDS, keep_symbols: bool = True) -> Benchmark:
    """Return the n-grams of items {"id", "text"}.

    An item of least_words … n − 1 words is one gram. Shorter ones cannot be told from common phrases and are not looked for.
    keep_symbols: of the words, see data/filters/word_hashes.py.

    Raises: UserError: an item has no id or no text, two have one id, or n is below least_words.
    """
    if not 1 <= least_words <= n:
        raise UserError(f"decontamination: n={n}, least_words={least_words}; use 1 ≤ least_words ≤ n")
    for number, item in enumerate(items):
        if not isinstance(item.get("text"), str) or item.get("id") is None:
            raise UserError(
                f'benchmark item {number} needs "id" and a string "text"; it has {", ".join(map(str, item)) or "nothing"}'
            )
    ids, texts = [str(item["id"]) for item in items], [item["text"] for item in items]
    if len(set(ids)) < len(ids):
        twice = next(one for i, one in enumerate(ids) if one in ids[:i])
        raise UserError(f"two benchmark items have the id {twice!r}; put the benchmark's name in front")
    found = words(texts, keep_symbols=keep_symbols)
    counts = np.diff(found.offsets)
    known: dict[tuple[str, ...], int] = {}
    hashes: dict[int, dict[int, int]] = {}
    held: list[list[int]] = [[] for _ in ids]
    for item, text in enumerate(texts):
        size = n if counts[item] >= n else int(counts[item])
        if size < least_words:
            continue
        spelled = _spelled(text, found, found.offsets[item], counts[item], keep_symbols)
        hash = rolling(found.hash[found.offsets[item] : found.offsets[item + 1]], size)
        for place, value in enumerate(hash.tolist()):
            gram = known.setdefault(spelled[place : place + size], len(known))
            # If two grams had one hash, the first one would be found and the second not: 2^-64 a pair.
            hashes.setdefault(size, {}).setdefault(value, gram)
            held[item].append(gram)
        held[item] = list(dict.fromkeys(held[item]))
    tables = {}
    for size, of_size in sorted(hashes.items()):
        hash, gram = np.array(list(of_size), np.uint64), np.array(list(of_size.values()), np.int64)
        order = np.argsort(hash)
        tables[size] = hash[order], gram[order]
    owners: list[list[int]] = [[] for _ in known]
    for item, own in enumerate(held):
        for gram in own:
            owners[gram].append(item)
    return Benchmark(ids, list(known), tables, held, owners, counts, keep_symbols)


def find(texts: Sequence[str], held: Benchmark) -> Matches:
    """Return where texts hold grams of the benchmark."""
    found = words(texts, keep_symbols=held.keep_symbols)
    places = []
    for size, (hashes, gram) in held.tables.items():
        grams = rolling(found.hash, size)
        row = np.minimum(np.searchsorted(hashes, grams), len(hashes) - 1)
        at = np.flatnonzero(hashes[row] == grams)
        document = np.searchsorted(found.offsets, at, side="right") - 1
        inside = at + size <= found.offsets[document + 1]
        for i, d, g in zip(at[inside].tolist(), document[inside].tolist(), gram[row[at[inside]]].tolist()):
            if _spelled(texts[d], found, i, size, held.keep_symbols) == held.grams[g]:
                places.append((d, found.start[i], found.end[i + size - 1], g))
    document, start, end, gram = np.array(sorted(places), np.int64).reshape(-1, 4).T
    return Matches(len(texts), document, gram, start, end)


def columns(matches: Matches, held: Benchmark) -> dict[str, Any]:
    """Return columns of one value a document.

    contamination_matches: int64, places that hold a gram. contamination_items: int64, items of which it holds a gram.
    contamination_share: float64, the highest share of one item's distinct grams; PaLM's rule at n = 8 is a share of 0.7.
    contamination_of: str, the ids of the items as a JSON list, or None.
    """
    grams = set(zip(matches.document.tolist(), matches.gram.tolist()))
    shared = Counter((document, item) for document, gram in grams for item in held.owners[gram])
    share, items = np.zeros(matches.documents), [[] for _ in range(matches.documents)]
    for (document, item), count in shared.items():
        items[document].append(held.ids[item])
        share[document] = max(share[document], count / len(held.held[item]))
    return {
        "contamination_matches": np.bincount(matches.document, minlength=matches.documents),
        "contamination_items": np.array(list(map(len, items)), np.int64),
        "contamination_share": share,
        "contamination_of": [json.dumps(sorted(ids), ensure_ascii=False) if ids else None for ids in items],
    }


def cleaned(texts: Sequence[str], held: Benchmark, policy: str, **options: int) -> tuple[Sequence[str], dict[str, Any]]:
    """Return texts without grams of the benchmark, and columns: those of `columns` and of `cut`.

    policy: cut; or measure: return the texts as they are. options: of `cut`. Raises: UserError: there is no such policy.
    """
    matches = find(texts, held)
    if policy == "measure":
        return texts, columns(matches, held)
    if policy != "cut":
        raise UserError(f"decontaminate.policy={policy!r}; use cut, or measure with rules.contamination_matches=(0, 0)")
    left, removed = cut(texts, matches, **options)
    return left, columns(matches, held) | removed


def cut(
    texts: Sequence[str], matches: Matches, *, around: int = AROUND, least_slice: int = MIN_SLICE, most_pieces: int = MAX_PIECES
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the texts without their matches, and columns. Texts without a match are returned as they are.

    The slices that stay are joined by a blank line. A document that is cut into more than `most_pieces` slices becomes empty.

    contamination_pieces: int64, slices between the cuts, short ones included; 1 without a match.
    contamination_characters: int64, characters removed.
    """
    left, pieces = list(texts), np.ones(len(texts), np.int64)
    begins, ends = (np.searchsorted(matches.document, np.arange(len(texts)), side=side) for side in ("left", "right"))
    for i in np.flatnonzero(begins < ends):
        slices, at = [], 0
        for start, end in zip(matches.start[begins[i] : ends[i]].tolist(), matches.end[begins[i] : ends[i]].tolist()):
            if start - around > at:
                slices.append(texts[i][at : start - around])
            at = max(at, end + around)
        if at < len(texts[i]):
            slices.append(texts[i][at:])
        pieces[i] = len(slices)
        if len(slices) > most_pieces:
            slices = []
        left[i] = "\n\n".join(part for part in slices if len(part) >= least_slice)
    removed = np.array([len(text) - len(new) for text, new in zip(texts, left)], np.int64)
    return left, {"contamination_pieces": pieces, "contamination_characters": np.maximum(removed, 0)}


class Report:
    """Which grams of a benchmark's items occur in documents."""

    def __init__(self, held: Benchmark):
        self.held, self._found = held, np.zeros(len(held.grams), bool)

    def add(self, matches: Matches) -> None:
        """Add the matches of some documents."""
        self._found[matches.gram] = True

    def matched(self, item: int) -> list[tuple[str, ...]]:
        """Return the grams of an item that were found, in order, each once."""
        return [self.held.grams[gram] for gram in self.held.held[item] if self._found[gram]]

    def share(self, item: int) -> float | None:
        """Return the share of an item's distinct grams that were found; None if it is too short to be looked for."""
        return float(self._found[self.held.held[item]].mean()) if self.held.held[item] else None


def _spelled(text: str, found: Words, first: int, size: int, keep_symbols: bool) -> tuple[str, ...]:
    return tuple(spelling(text[found.start[i] : found.end[i]], keep_symbols) for i in range(first, first + size))
