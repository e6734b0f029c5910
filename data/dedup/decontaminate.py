"""Find the text of benchmark items in training documents and cut it out, or drop the documents.

The default is GPT-3's (Brown et al. 2020, appendix C), as lm-evaluation-harness's Janitor has it: 13-grams of words, in lower
case and without punctuation; 200 characters on each side of a match are cut; slices below 200 characters go; a document in
more than 10 pieces goes. Two other measures come with the report of items: the share of an item's n-grams that were found
(PaLM, Chowdhery et al. 2022, section 8: at least 70 %, at n = 8) and the share of its words in n-grams that were found
(Llama 2, Touvron et al. 2023, appendix A.6: spans of more than 10 tokens, so n = 11).

Matches are compared word for word, so a hash collision is no match.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.dedup.grams import rolling
from data.filters.word_hashes import Words, spelling, words
from lm.errors import UserError

NGRAM, MIN_WORDS = 13, 8  # GPT-3's N is the 5th percentile of a benchmark's example lengths, but in 8 … 13
AROUND, MIN_SLICE, MAX_PIECES = 200, 200, 10  # characters, characters, slices
EXAMPLES = 5  # documents that a report names for an item


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The n-grams of benchmark items, distinct over all items. Make it with `benchmark`."""

    ids: list[str]
    grams: list[tuple[str, ...]]  # the words of each
    tables: dict[int, tuple[np.ndarray, np.ndarray]]  # size in words -> (hashes, uint64 in ascending order; indexes of grams)
    item: np.ndarray  # int64 [n], with `gram` and `place` sorted by item: where the items hold grams
    gram: np.ndarray  # int64 [n]
    place: np.ndarray  # int64 [n], the first word
    words: np.ndarray  # int64 [items]
    owners: np.ndarray  # int64 [pairs]: the items that hold gram 0, each once, then those that hold gram 1, …
    first_owner: np.ndarray  # int64 [grams + 1]: where those of each gram begin
    distinct: np.ndarray  # int64 [items]: distinct grams of each
    keep_symbols: bool  # which words they are made of, see `words` of data/filters/word_hashes.py

    def items_of(self, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all pairs of a gram's index in `gram` and an item that holds it, each once. Cost: that of the answer."""
        begin = self.first_owner[gram]
        count = self.first_owner[gram + 1] - begin
        index = np.repeat(np.arange(len(gram)), count)
        within = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
        return index, self.owners[begin[index] + within]


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
    rows = []
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
            rows.append((item, gram, place))
    tables = {}
    for size, of_size in sorted(hashes.items()):
        hash, gram = np.array(list(of_size), np.uint64), np.array(list(of_size.values()), np.int64)
        order = np.argsort(hash)
        tables[size] = hash[order], gram[order]
    item, gram, place = np.array(rows, np.int64).reshape(-1, 3).T
    owned, owners = np.divmod(np.unique(gram * len(ids) + item), max(1, len(ids)))
    first_owner = np.searchsorted(owned, np.arange(len(known) + 1))
    distinct = np.bincount(owners, minlength=len(ids))
    return Benchmark(ids, list(known), tables, item, gram, place, counts, owners, first_owner, distinct, keep_symbols)


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


def shared(matches: Matches, held: Benchmark) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of a document and an item that share grams, sorted, and how many distinct grams they share."""
    distinct = np.unique(np.stack([matches.document, matches.gram], axis=1), axis=0)
    index, item = held.items_of(distinct[:, 1])
    pairs, count = np.unique(np.stack([distinct[index, 0], item], axis=1), axis=0, return_counts=True)
    return pairs[:, 0], pairs[:, 1], count


def columns(matches: Matches, held: Benchmark) -> dict[str, np.ndarray]:
    """Return columns of one value a document.

    contamination_matches: int64, places that hold a gram. contamination_items: int64, items of which it holds a gram.
    contamination_share: float64, the highest share of one item's distinct grams; PaLM's rule at n = 8 is a share of 0.7.
    """
    document, item, count = shared(matches, held)
    share = np.zeros(matches.documents)
    np.maximum.at(share, document, count / held.distinct[item])
    return {
        "contamination_matches": np.bincount(matches.document, minlength=matches.documents),
        "contamination_items": np.bincount(document, minlength=matches.documents),
        "contamination_share": share,
    }


def cleaned(texts: Sequence[str], held: Benchmark, policy: str, **options: int) -> tuple[Sequence[str], dict[str, Any]]:
    """Return texts without grams of the benchmark, and columns: those of `columns` and of `cut`.

    contamination_of: str, the items of which a document holds a gram, as a JSON list, or None.

    policy: cut; or measure: return the texts as they are. options: of `cut`. Raises: UserError: there is no such policy.
    """
    if policy not in ("cut", "measure"):
        raise UserError(f"decontaminate.policy={policy!r}; use cut, or measure with rules.contamination_matches=(0, 0)")
    matches = find(texts, held)
    items: list[list[str]] = [[] for _ in texts]
    for document, item in zip(*(pairs.tolist() for pairs in shared(matches, held)[:2])):
        items[document].append(held.ids[item])
    found = columns(matches, held)
    found["contamination_of"] = [json.dumps(sorted(ids), ensure_ascii=False) if ids else None for ids in items]
    if policy == "measure":
        return texts, found
    left, removed = cut(texts, matches, **options)
    return left, found | removed


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
    """Counts, for every item of a benchmark, the documents that hold a gram of it."""

    def __init__(self, held: Benchmark):
        self.held = held
        self.documents = np.zeros(len(held.ids), np.int64)
        self.gram_documents = np.zeros(len(held.grams), np.int64)
        self.examples: list[list] = [[] for _ in held.ids]  # the lowest numbers (or names) of documents

    def add(self, matches: Matches, numbers: Sequence) -> None:
        """Count the matches of documents, each given once. numbers: numbers or names that can be ordered."""
        distinct = np.unique(np.stack([matches.document, matches.gram], axis=1), axis=0)
        np.add.at(self.gram_documents, distinct[:, 1], 1)
        document, item, _ = shared(matches, self.held)
        np.add.at(self.documents, item, 1)
        for d, i in zip(document.tolist(), item.tolist()):
            self.examples[i] = sorted([*self.examples[i], numbers[d]])[:EXAMPLES]

    def matched(self, item: int) -> list[tuple[str, ...]]:
        """Return the grams of an item that were found, in order, each once."""
        mine = self.held.gram[slice(*np.searchsorted(self.held.item, (item, item + 1)))]
        return [self.held.grams[gram] for gram in dict.fromkeys(mine[self.gram_documents[mine] > 0].tolist())]

    def rows(self) -> list[dict]:
        """Return for each item {"id", "words", "grams": distinct ones looked for (0: too short), "documents": that hold
        one of them, "examples": some of these, "share": of the grams that were found, "covered": of the words, in found grams}.

        share and covered are None for an item that is too short.
        """
        held, seen = self.held, self.gram_documents > 0
        size = np.array([len(gram) for gram in held.grams], np.int64)
        begins = np.searchsorted(held.item, np.arange(len(held.ids) + 1))
        rows = []
        for i, id in enumerate(held.ids):
            gram, place = held.gram[begins[i] : begins[i + 1]], held.place[begins[i] : begins[i + 1]]
            covered = np.zeros(held.words[i] + 1, np.int64)
            np.add.at(covered, place[seen[gram]], 1)
            np.add.at(covered, place[seen[gram]] + size[gram[seen[gram]]], -1)
            rows.append(
                {
                    "id": id,
                    "words": int(held.words[i]),
                    "grams": int(held.distinct[i]),
                    "documents": int(self.documents[i]),
                    "examples": self.examples[i],
                    "share": float(seen[np.unique(gram)].mean()) if len(gram) else None,
                    "covered": float((np.cumsum(covered)[:-1] > 0).mean()) if len(gram) else None,
                }
            )
        return rows


def _spelled(text: str, found: Words, first: int, size: int, keep_symbols: bool) -> tuple[str, ...]:
    return tuple(spelling(text[found.start[i] : found.end[i]], keep_symbols) for i in range(first, first + size))
