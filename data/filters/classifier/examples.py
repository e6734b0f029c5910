"""Read labelled documents, and split them into parts for training, validation and testing."""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import xxhash

from data.sources import archives
from data.sources.source import Document
from lm.errors import UserError, naming
from lm.progress import progress

PARTS = ("train", "valid", "test")


class Labelled(NamedTuple):
    """Texts with their labels, bool [N], in an order that depends on the texts alone."""

    texts: list[str]
    good_N: np.ndarray


def read(flag: str, files: str, options: archives.Options) -> Iterator[str]:
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
