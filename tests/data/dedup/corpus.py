"""Real text for the tests of duplicates: the Python reference in pieces, and the sources of the standard library."""

import functools
import random
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

PIECE = 1500  # characters
WORD = re.compile(r"[^\W_]+")


@functools.cache
def prose() -> list[str]:
    """Return pieces of the language reference that `help()` shows, of about 250 words each."""
    from pydoc_data.topics import topics

    found = []
    for name in sorted(topics):
        text = topics[name]
        found += [text[at : at + PIECE] for at in range(0, len(text) - PIECE // 2, PIECE)]
    return found


@functools.cache
def sources(count: int) -> list[str]:
    """Return some files of the standard library, in which licence texts and idioms are shared."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [text for text in (path.read_text("utf-8", "replace") for path in paths[:count]) if text.strip()]


def edited(text: str, share: float, seed: int) -> str:
    """Return the text with this share of its words, at random places, replaced, doubled or deleted."""
    draws, found = random.Random(seed), list(WORD.finditer(text))
    chosen = set(draws.sample(range(len(found)), round(share * len(found))))
    parts, at = [], 0
    for i, word in enumerate(found):
        parts.append(text[at : word.start()])
        at = word.end()
        new = draws.choice([f"edit{draws.randrange(10_000)}", f"{word[0]} more{draws.randrange(10_000)}", ""])
        parts.append(new if i in chosen else word[0])
    return "".join([*parts, text[at:]])


def plain_components(edges: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the smallest node of each node's component: by union-find in memory."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for one, other in edges:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {node: root(node) for node in parent}
