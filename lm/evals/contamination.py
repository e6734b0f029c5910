"""Contamination check: word n-gram overlap of benchmark items with training text, and scores on the clean items.

An item is dirty if one 13-gram of its words occurs in the training text (GPT-3, Brown et al. 2020, appendix C; a strict rule),
or if 70 % of its 8-grams do (PaLM, Chowdhery et al. 2022, section 8). Words are runs of letters and digits; case is ignored. An
item of fewer than 8 words cannot be checked and counts as neither dirty nor clean.

The items are held in memory and the text is streamed, so the items and the longest document bound the memory. Matches are
compared word for word, so a hash collision makes no item dirty.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from lm.errors import UserError
from lm.evals.stats.measures import is_number, mean

LONG, SHORT = 13, 8  # n-gram sizes, words
SHARE = 0.7  # of the short grams
SHOWN = 3  # matched grams listed per item
WORDS = re.compile(r"\w+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, with bits everywhere
KNOWN_WORDS = 1 << 20  # maximum number of words whose hashes are cached


class BenchmarkItem(NamedTuple):
    task: str
    doc_id: Any
    text: str


def check(items: Sequence[BenchmarkItem], texts: Iterable[str]) -> list[dict]:
    """Return for each item {"task", "doc_id", "words", "overlap": share of its 8-grams that occur in a text, "overlap_13": the
    same for its 13-grams (None if it is shorter), "matched": some matching grams, "dirty": bool, or None below 8 words}.
    """
    hashes = _Hashes()
    words = [WORDS.findall(item.text.casefold()) for item in items]
    tables = [_Table(words, size, hashes) for size in (LONG, SHORT)]
    for text in texts:
        found = WORDS.findall(text.casefold())
        if len(found) < SHORT:
            continue
        hashed = hashes.of(found)
        for table in tables:
            table.look(found, hashed)
    long, short = tables
    results = []
    for i, item in enumerate(items):
        (share_long, grams), (share, other) = long.result(i), short.result(i)
        dirty = None if share is None else bool(share_long) or share >= SHARE
        results.append(
            {
                "task": item.task,
                "doc_id": item.doc_id,
                "words": len(words[i]),
                "overlap": share,
                "overlap_13": share_long,
                "matched": (grams or other)[:SHOWN],
                "dirty": dirty,
            }
        )
    return results


def of_samples(samples: Iterable[Mapping], texts: Iterable[str]) -> dict[str, Any]:
    """Check an evaluation's samples and return their scores with and without the dirty ones.

    Returns: {"tasks": {task: {"items", "dirty", "untold": items too short to check, "metrics": {metric: {"all", "clean",
    "clean_stderr", "dirty"}}}}, "items": the dirty entries of `check`}. Samples with the same doc_id count as one item.
    """
    kept = [(str(s["task"]), s["doc_id"], query(s), s.get("metrics") or {}) for s in samples]
    items: dict[tuple, BenchmarkItem] = {}
    for task, doc_id, text, _ in kept:
        items.setdefault((task, str(doc_id)), BenchmarkItem(task, doc_id, text))
    checked = dict(zip(items, check(list(items.values()), texts), strict=True))
    tasks: dict[str, dict] = {}
    for (task, _), one in checked.items():
        counts = tasks.setdefault(task, {"items": 0, "dirty": 0, "untold": 0, "metrics": {}})
        counts["items"] += 1
        counts["dirty"] += one["dirty"] is True
        counts["untold"] += one["dirty"] is None
    values: dict[tuple, dict[str, list]] = {}
    for task, doc_id, _, metrics in kept:
        dirty = checked[task, str(doc_id)]["dirty"]
        for metric, value in metrics.items():
            if is_number(value):
                parts = values.setdefault((task, metric), {"all": [], "clean": [], "dirty": []})
                parts["all"].append(value)
                if dirty is not None:
                    parts["dirty" if dirty else "clean"].append(value)
    for (task, metric), parts in values.items():
        clean = mean("clean", parts["clean"])
        tasks[task]["metrics"][metric] = {part: mean(part, parts[part])[part] for part in ("all", "dirty")} | clean
    return {"tasks": tasks, "items": [one for one in checked.values() if one["dirty"]]}


def query(sample: Mapping) -> str:
    """Return the question of a sample without its few-shot examples: its `query`, else the last user message. Of a text prompt,
    return the part after the last blank line, where the examples end."""
    if isinstance(sample.get("query"), str):
        return sample["query"]
    asked = sample.get("messages") or sample.get("prompt") or ""
    if isinstance(asked, list) and isinstance(asked[0], str):  # a prompt for each choice
        asked = asked[0]
    if isinstance(asked, str):
        return asked.rstrip().rpartition("\n\n")[2]
    said = [str(m.get("content") or "") for m in asked if isinstance(m, Mapping) and m.get("role") == "user"]
    return said[-1] if said else ""


def texts(input: str | os.PathLike, *, text_key: str = "text") -> Iterator[str]:
    """Yield the training text of `input`: a run's workdir, a packed dataset in it (workdir/data/HASH), or any value of
    data.input (files, folders, globs, a TFDS name).

    Packed text is cut at the ends of rows, so n-grams across a cut are missed. Name the original files if they still exist.
    Raises: UserError if the input is missing or cannot be read.
    """
    from data.sources import open_sources
    from data.text.dataset import prepared

    folder = Path(input)
    datasets = [path for path in (folder, *sorted(folder.glob("data/*"))) if prepared(path)] if folder.is_dir() else []
    for dataset in datasets:
        yield from _packed(dataset)
    if not datasets:
        for source in open_sources(os.fspath(input), text_key=text_key):
            yield from (document.text for document in source.read())


def _packed(dataset: Path) -> Iterator[str]:
    from data.text.dataset import texts as packed_texts
    from data.text.tokenizer import load_tokenizer

    workdir = dataset.resolve().parent.parent
    if not any((workdir / name).exists() for name in ("tokenizer.model", "tokenizer.json")):
        raise UserError(f"{dataset}: no tokenizer in {workdir} to decode it with; name the run's workdir or the text files")
    for piece in packed_texts(dataset, "train", load_tokenizer(workdir)):
        yield piece.decode("utf-8", "replace")


class _Hashes(dict):
    """Cached 64-bit hashes of words."""

    def __missing__(self, word: str) -> int:
        hash = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return hash

    def of(self, words: Sequence[str]) -> np.ndarray:
        if len(self) > KNOWN_WORDS:
            self.clear()
        return np.fromiter(map(self.__getitem__, words), np.uint64, len(words))


def _grams(hashed: np.ndarray, size: int) -> np.ndarray:
    """Return hashes of all grams of `size` words: h(i) = Σ_j hashed[i+j]·m^(size−1−j) mod 2^64."""
    count = max(0, len(hashed) - size + 1)
    grams = np.zeros(count, np.uint64)
    for j in range(size):
        grams = grams * MULTIPLIER + hashed[j : j + count]
    return grams


class _Table:
    """The distinct grams of all items, sorted by hash, and which of them occurred in a text."""

    def __init__(self, words: Sequence[Sequence[str]], size: int, hashes: _Hashes):
        self._words, self._size = words, size
        grams = [_grams(hashes.of(one), size) for one in words]
        owners = np.repeat(np.arange(len(words)), [len(g) for g in grams])
        offsets = np.concatenate([np.arange(len(g)) for g in grams] or [np.zeros(0, np.int64)])
        whole = np.concatenate(grams or [np.zeros(0, np.uint64)])
        self._hashes, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
        self._owner, self._offset = owners[first], offsets[first]
        self._of_item = np.split(inverse, np.cumsum([len(g) for g in grams])[:-1]) if grams else []
        self._seen = np.zeros(len(self._hashes), bool)

    def look(self, found: Sequence[str], hashed: np.ndarray) -> None:
        """Mark the grams that occur in a text with the words `found`."""
        if not len(self._hashes):
            return
        grams = _grams(hashed, self._size)
        at = np.minimum(np.searchsorted(self._hashes, grams), len(self._hashes) - 1)
        for i in np.flatnonzero((self._hashes[at] == grams) & ~self._seen[at]):
            if list(found[i : i + self._size]) == self._gram(at[i]):
                self._seen[at[i]] = True

    def _gram(self, gram: int) -> list[str]:
        offset = self._offset[gram]
        return list(self._words[self._owner[gram]][offset : offset + self._size])

    def result(self, item: int) -> tuple[float | None, list[str]]:
        """Return the share of an item's grams that occurred (None if it has no grams) and those grams, in order and unique."""
        ids = self._of_item[item]
        if not len(ids):
            return None, []
        seen = self._seen[ids]
        return float(seen.mean()), [" ".join(self._gram(gram)) for gram in dict.fromkeys(ids[seen].tolist())][:SHOWN]
