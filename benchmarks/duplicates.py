"""Near duplicates and leaked benchmark items: what is found, beside datatrove's MinHash, and what a leak costs.

python -m benchmarks.duplicates [--documents=150] [--related=4000]

Text: docstrings and documentation of this Python installation, one document a file.

1. Recall. Of the first 100, 300, 1,000 and 3,000 words of different documents, copies are made with a share of the words
   replaced by words of other documents, doubled or deleted. Printed: the share of copies that are in one cluster with their
   original, for settings "bands × rows, threshold" of near_duplicates and for datatrove's MinhashConfig(), from signatures
   to clusters.
2. Precision. The same settings on --related whole documents, of which many share licences and phrases. Printed: documents
   removed, and how many of them have no other document with a similarity of 0.7 or 0.5 (of sets of 5-grams, by brute
   force).
3. Decontamination. A made benchmark of MMLU's size, 14,042 questions with four choices, and 300 documents of 600 words. Of
   these 0, 1 and 300 hold a question. Printed: CPU seconds to index the items, and of the stage.

Prints tables; the last line is one JSON object.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.curate import default
from data.dedup import grams, minhash, near
from data.dedup.minhash import FINEWEB, MinHash
from data.recipe.batch import Batch
from data.recipe.stages import STAGES
from data.sources.python_installation import open_installation

WORDS, SHARES = (100, 300, 1000, 3000), (0.01, 0.02, 0.05, 0.1)
WORD = re.compile(r"[^\W\d_]+")
QUESTIONS = 14_042  # of MMLU's test split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=150, help="of each length")
    parser.add_argument("--related", type=int, default=4000)
    options = parser.parse_args()
    texts = documents()
    found = {"recall": recall(texts, options.documents), "precision": precision(texts[: options.related])}
    found["decontamination"] = decontamination()
    print(json.dumps(found))


def documents() -> list[str]:
    """Return distinct documents of at least 50 words, in an order that is a random one."""
    texts = [one.text for source in open_installation() if source.name != "code" for one in source.read()]
    texts = [text for text in dict.fromkeys(texts) if len(text.split()) >= 50]
    random.Random(0).shuffle(texts)
    return texts


def settings() -> dict[str, tuple[MinHash, float]]:
    """Return the MinHash settings and the threshold that are compared."""
    own = default.get_config().near_duplicates
    return {
        f"default.py: {own.bands} × {own.rows}, {own.threshold:g}": (MinHash(bands=own.bands, rows=own.rows), own.threshold),
        "fineweb.py: 14 × 8, 0": (FINEWEB, 0.0),
        "code.py: 28 × 4, 0.7": (MinHash(), 0.7),
        "14 × 8, 0.5": (FINEWEB, 0.5),
        "14 × 8, 0.7": (FINEWEB, 0.7),
        "22 × 5, 0.5": (MinHash(bands=22, rows=5), 0.5),
        "28 × 4, 0.4": (MinHash(), 0.4),
        "32 × 4, 0.5": (MinHash(bands=32, rows=4), 0.5),
    }


def ours(texts: Sequence[str], minhash: MinHash, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [documents], the cluster of each, and bool [documents], whether it is removed."""
    with tempfile.TemporaryDirectory() as folder:
        with near.new_part(Path(folder, "part"), minhash) as part:
            part.add(texts, range(len(texts)))
        near.find([Path(folder, "part")], Path(folder, "clusters"), threshold=threshold)
        columns = near.columns(range(len(texts)), Path(folder, "clusters"))
    return columns["near_duplicate_cluster"], ~columns["near_duplicate_keep"]


def theirs(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return what `ours` does, from datatrove's four steps with their default settings."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash as peer
    from datatrove.utils.hashing import HashConfig

    with tempfile.TemporaryDirectory() as folder:
        signatures, pairs, removed = (f"{folder}/{name}" for name in ("signatures", "pairs", "removed"))
        config = peer.MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash wants an older xxhash
        peer.MinhashDedupSignature(signatures, config).run(Document(text=text, id=str(i)) for i, text in enumerate(texts))
        for bucket in range(config.num_buckets):
            peer.MinhashDedupBuckets(signatures, pairs, config=config).run(None, bucket, config.num_buckets)
        peer.MinhashDedupCluster(pairs, removed, config, save_cluster_id=True).run(None, 0, 1)
        cluster, gone = np.arange(len(texts)), np.zeros(len(texts), bool)
        for path in Path(removed).glob("*.clusters"):
            document, of = np.fromfile(path, np.uint32).reshape(-1, 2).T
            cluster[document] = of.astype(np.int64) + len(texts)
        for path in Path(removed).glob("*.remove"):
            gone[np.fromfile(path, np.uint32)] = True
    return cluster, gone


def edited(text: str, share: float, draws: random.Random, vocabulary: Sequence[str]) -> str:
    """Return the text with this share of its words, at random places, replaced, doubled or deleted."""
    found = list(WORD.finditer(text))
    chosen = set(draws.sample(range(len(found)), round(share * len(found))))
    parts, at = [], 0
    for i, word in enumerate(found):
        new = draws.choice([draws.choice(vocabulary), f"{word[0]} {word[0]}", ""]) if i in chosen else word[0]
        parts += [text[at : word.start()], new]
        at = word.end()
    return "".join([*parts, text[at:]])


def recall(texts: Sequence[str], count: int) -> dict:
    """Return the recall of edited copies: {method: {words: {share: recall}}}."""
    draws, found = random.Random(1), defaultdict(dict)
    vocabulary = sorted({word for text in texts[:2000] for word in WORD.findall(text)})
    methods = {name: lambda texts, one=one: ours(texts, *one) for name, one in settings().items()}
    methods["datatrove, 14 × 8"] = theirs
    for words in WORDS:
        # One kind of document each, so that originals are no duplicates of each other.
        originals = unlike([starts for text in texts if (starts := start(text, words))][: 3 * count])[:count]
        copies = [edited(text, share, draws, vocabulary) for share in SHARES for text in originals]
        for name, method in methods.items():
            cluster, _ = method([*originals, *copies])
            same = cluster[len(originals) :].reshape(len(SHARES), -1) == cluster[: len(originals)]
            found[name][words] = dict(zip(map(str, SHARES), same.mean(axis=1).tolist()))
        print(f"{words} words, {len(originals)} documents", file=sys.stderr)
    print(
        "| recall of copies with 1 / 2 / 5 / 10 % of the words edited | "
        + " | ".join(f"{words} words" for words in WORDS)
        + " |"
    )
    print("| --- " * (len(WORDS) + 1) + "|")
    for name, rows in found.items():
        print(f"| {name} | " + " | ".join(" / ".join(f"{100 * r:.0f}" for r in row.values()) for row in rows.values()) + " |")
    return found


def start(text: str, words: int) -> str:
    """Return the first words of a text; "" if it has fewer."""
    found = list(re.finditer(r"\S+", text))
    return text[: found[words - 1].end()] if len(found) >= words else ""


def unlike(texts: Sequence[str]) -> list[str]:
    """Return the texts that share less than a fifth of their 5-grams with every other."""
    return [text for text, most in zip(texts, similarities(texts)) if most < 0.2]


def similarities(texts: Sequence[str]) -> np.ndarray:
    """Return float64 [documents]: the highest Jaccard similarity of each to another one, by counting all pairs."""
    hashes, offsets = grams.sets(*minhash.documents_shingles(texts, MinHash()))
    sizes, owner = np.diff(offsets), np.repeat(np.arange(len(texts)), np.diff(offsets))
    order = np.argsort(hashes, kind="stable")
    _, first, count = np.unique(hashes[order], return_index=True, return_counts=True)
    holders = [owner[order[f : f + c]] for f, c in zip(first[count > 1].tolist(), count[count > 1].tolist())]
    of = [[] for _ in texts]
    for some in holders:
        for document in some.tolist():
            of[document].append(some)
    most = np.zeros(len(texts))
    for i, groups in enumerate(of):
        if groups:
            both = np.bincount(np.concatenate(groups), minlength=len(texts))
            both[i] = 0
            most[i] = (both / (sizes + sizes[i] - both)).max()
    return most


def precision(texts: Sequence[str]) -> dict:
    """Return {method: documents removed, and those without a similar document, and CPU seconds}."""
    most, found = similarities(texts), {}
    print(f"\n| of {len(texts)} documents | removed | below 0.7 | below 0.5 | of those with one above 0.8, clustered | CPU s |")
    print("| --- " * 6 + "|")
    methods = {name: lambda one=one: ours(texts, *one) for name, one in settings().items()}
    methods["datatrove, 14 × 8"] = lambda: theirs(texts)
    for name, method in methods.items():
        begin = time.process_time()
        cluster, gone = method()
        seconds = time.process_time() - begin
        members = np.bincount(np.unique(cluster, return_inverse=True)[1])[np.unique(cluster, return_inverse=True)[1]]
        row = [int(gone.sum()), int((gone & (most < 0.7)).sum()), int((gone & (most < 0.5)).sum())]
        alike = float((members[most >= 0.8] > 1).mean())
        found[name] = dict(zip(("removed", "below_0.7", "below_0.5"), row)) | {"alike": alike, "seconds": seconds}
        print(f"| {name} | " + " | ".join(map(str, row)) + f" | {100 * alike:.1f} % | {seconds:.1f} |")
    return found


def decontamination() -> dict[str, float]:
    """Return CPU seconds: {"index", "0 leaks", "1 leaks", "300 leaks"}."""
    draws = random.Random(2)
    vocabulary = [
        f"{a}{b}{c}" for a in "bcdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en") for c in ("", "ta", "mi", "ro")
    ]

    def words(count: int) -> str:
        return " ".join(draws.choices(vocabulary, k=count))

    items = [{"question": words(45), "choices": [words(8) for _ in range(4)]} for _ in range(QUESTIONS)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "items.jsonl")
        file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        options = default.get_config().decontaminate.to_dict() | {"benchmarks": str(file)}

        def seconds(texts: Sequence[str]) -> float:
            begin = time.process_time()
            columns = STAGES["decontaminate"].run(Batch({"text": texts}), options)
            spent = time.process_time() - begin
            assert sum(items is not None for items in columns["contamination_of"]) == min(leaks, len(texts))
            return spent

        leaks = 0
        found = {"index": seconds(["a word"])}
        for leaks in (0, 1, 300):
            leaked = [items[i]["question"] if i < leaks else "" for i in range(300)]
            found[f"{leaks} leaks"] = seconds([f"{words(300)} {question} {words(300)}" for question in leaked])
    print("\ndecontamination, CPU seconds: " + ", ".join(f"{name} {spent:.2f}" for name, spent in found.items()))
    return found


if __name__ == "__main__":
    main()
