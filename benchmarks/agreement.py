"""Which documents the published rules keep, in any script: ours beside datatrove's.

python -m benchmarks.agreement --texts=FOLDER

FOLDER holds one folder for each script or language, and these hold one UTF-8 file (.txt) for each document. Needs
datatrove[processing] and spacy.

Prints for each folder the share of documents on which the two agree: on all words, and on what Gopher's quality and repetition
rules, C4's and FineWeb's keep. "chain" is FineWeb's order: repetition, quality, C4 without end marks, and FineWeb's rules on
what C4 leaves. In brackets: how many datatrove keeps and the Jaccard similarity of the kept sets. The last line is one JSON
object.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from configs.curate import default
from data.filters.heuristics.c4 import c4
from data.filters.heuristics.fineweb import fineweb_quality
from data.filters.heuristics.gopher import gopher_quality, gopher_repetition
from data.filters.words import Words
from data.recipe.rules import parse, reasons

MEASURES = {
    "GopherQualityFilter": (gopher_quality, default.gopher_quality),
    "GopherRepetitionFilter": (gopher_repetition, default.gopher_repetition),
    "C4QualityFilter": (lambda words: c4(words)[1], lambda rules: default.c4(rules, sentences=5)),
    "FineWebQualityFilter": (fineweb_quality, default.fineweb_quality),
}
_BATCH = 200  # documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    options = parser.parse_args()
    folders = sorted(path for path in options.texts.iterdir() if path.is_dir())
    names, found = ("words", *MEASURES, "chain"), {}
    print("| folder | documents | " + " | ".join(names) + " |\n| --- |" + " --- |" * (len(names) + 1))
    total: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for folder in folders:
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.rglob("*.txt"))]
        pairs = {"words": (np.ones(len(texts), bool), same_words(texts))}
        pairs |= {name: (theirs(name, texts), ours(name, texts)) for name in MEASURES}
        pairs["chain"] = (their_chain(texts), our_chain(texts))
        for name, pair in pairs.items():
            total[name].append(np.array(pair))
        found[folder.name] = row(folder.name, pairs)
    found["all"] = row("all", {name: tuple(np.concatenate(pairs, axis=1)) for name, pairs in total.items()})
    print(json.dumps(found))


def row(name: str, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict:
    """Print a line of the table. pairs: for each column, whether datatrove and we keep each document."""
    result, cells = {}, []
    for column, (want, have) in pairs.items():
        jaccard = float((want & have).sum() / (want | have).sum()) if (want | have).any() else 1.0
        result[column] = {"agree": float((want == have).mean()), "kept": int(want.sum()), "jaccard": jaccard}
        cells.append(f"{result[column]['agree']:.4f}" + (f" ({want.sum()}, {jaccard:.4f})" if column != "words" else ""))
    print(f"| {name} | {len(want)} | " + " | ".join(cells) + " |", flush=True)
    return result


def same_words(texts: Sequence[str]) -> np.ndarray:
    """Return whether the words of each text, as datatrove and as we split them, are the same."""
    from datatrove.utils.text import split_into_words

    found = []
    for text in texts:
        words, at, sizes = Words([text]), 0, []
        for word in split_into_words(text, "eng"):
            at = text.index(word, at) + len(word)
            sizes.append(len(word))
        found.append(sizes == words.size_W.tolist())
    return np.array(found)


def keeps(name: str, columns: Mapping[str, np.ndarray], documents: int) -> np.ndarray:
    """Return whether a filter's thresholds keep each document with these measures."""
    config = default.get_config()
    MEASURES[name][1](config.rules)
    return reasons(parse(config.rules.to_dict()), columns, documents) < 0


def kept(name: str, words: Words) -> np.ndarray:
    """Return whether our measures, with the filter's thresholds, keep each document."""
    return keeps(name, MEASURES[name][0](words), len(words))


def ours(name: str, texts: Sequence[str]) -> np.ndarray:
    return np.concatenate([kept(name, Words(texts[k : k + _BATCH])) for k in range(0, len(texts), _BATCH)])


def our_chain(texts: Sequence[str]) -> np.ndarray:
    words = Words(texts)
    left, columns = c4(words, end_marks=())
    stays = kept("GopherRepetitionFilter", words) & kept("GopherQualityFilter", words)
    return stays & keeps("C4QualityFilter", columns, len(texts)) & kept("FineWebQualityFilter", Words(left))


def theirs(name: str, texts: Sequence[str], **options) -> np.ndarray:
    """Return whether a filter of datatrove keeps each text."""
    from datatrove.data import Document
    from datatrove.pipeline import filters

    peer = getattr(filters, name)(**options)
    return np.array([is_kept(peer, Document(text=text, id="")) for text in texts])


def is_kept(peer, document) -> bool:
    result = peer.filter(document)
    return bool(result[0] if isinstance(result, tuple) else result)


def their_chain(texts: Sequence[str]) -> np.ndarray:
    from datatrove.data import Document
    from datatrove.pipeline import filters

    peers = (
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.C4QualityFilter(filter_no_terminal_punct=False),
        filters.FineWebQualityFilter(),
    )
    documents = [Document(text=text, id="") for text in texts]
    return np.array([all(is_kept(peer, document) for peer in peers) for document in documents])


if __name__ == "__main__":
    main()
