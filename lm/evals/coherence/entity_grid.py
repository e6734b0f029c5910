"""Who and what a text is about, sentence by sentence: the entity grid (Barzilay and Lapata 2008, "Modeling Local Coherence: An
Entity-Based Approach").

A grid has a row for each sentence and a column for each entity: subject S, object O, other X, or absent –. Coherent texts keep
to their entities from one sentence to the next, shuffled ones do not. The paper parses; here rules do, for English: an entity
is a capitalised name, known by its last word, or a noun, which is a word that somewhere ends a phrase after a determiner or
preposition; before the first verb it is S, after a preposition X, else O. Pronouns are not resolved. Rules mistake words, so a
single text's figures say little: compare means over a set.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lm.evals.factuality.claims import first_verb, sentences
from lm.evals.factuality.wording import DETERMINERS, FUNCTION, PERSONS, PREPOSITIONS, QUANTIFIERS, stem

METRICS = ("entity_grid_continuity", "entity_graph", "entities_recurring", "new_entities_per_sentence", "pronoun_errors")
WEIGHT = {"S": 3, "O": 2, "X": 1}
REACH = 3  # sentences before its own in which a pronoun may find what it stands for
PERSONAL = set("he she him her his hers himself herself".split())
OTHER = set("it its they them their theirs itself themselves".split())
NO_ENTITIES = FUNCTION | QUANTIFIERS | set("before after under over inside outside first down up out away back".split())
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")
_EXPLETIVE = re.compile(
    r"\bit(?:'s| is| was| seems| appears)(?: \w+){0,3}? (?:that|to|when|who)\b|\bit (?:rain|snow)", re.IGNORECASE
)

Grid = list[dict[str, str]]  # of each sentence the role of each entity in it


class Words(NamedTuple):
    """A sentence's words and marks. verb: where the first one is, len(words) without one."""

    words: list[str]
    verb: int


def grid(sentences: Sequence[str]) -> Grid:
    rows = [_words(sentence) for sentence in sentences]
    small = {word for row in rows for word in row.words if word.islower()}
    nouns = {stem(noun) for row in rows for noun in _nouns(row.words)}
    return [_roles(row, small, nouns) for row in rows]


def measures(text: str, context: str = "") -> dict[str, float | None]:
    """The figures of a text that follows `context`, from whose last sentence on transitions count; None where nothing is known:

    entity_grid_continuity     of the entities of a sentence, the share that the next one has too
    entity_graph               Guinaudeau and Strube 2013: mean over sentences of Σ over later ones of Σ over shared entities of
                               both roles' weights (S 3, O 2, X 1) / distance
    entities_recurring         of the text's entities, the share that several sentences have (of text and context)
    new_entities_per_sentence  that neither the sentences before it nor the context have
    pronoun_errors             share of third-person pronouns without anything that they could stand for in their own sentence
                               and the REACH before it: a name or person for he and she, any entity for it and they
    """
    before, after = sentences(context), sentences(text)
    if not after:
        return dict.fromkeys(METRICS)
    whole, begin = grid([*before, *after]), len(before)
    part = whole[max(0, begin - 1) :]
    kept = [name in following for row, following in itertools.pairwise(part) for name in row]
    own = {name for row in whole[begin:] for name in row}
    counts = {name: sum(name in row for row in whole) for name in own}
    known = {name for row in whole[:begin] for name in row}
    pronouns = _pronouns([*before, *after], whole, begin)
    return {
        "entity_grid_continuity": sum(kept) / len(kept) if kept else None,
        "entity_graph": entity_graph(part) if len(part) > 1 else None,
        "entities_recurring": sum(n > 1 for n in counts.values()) / len(own) if own else None,
        "new_entities_per_sentence": len(own - known) / len(after),
        "pronoun_errors": sum(not found for found in pronouns) / len(pronouns) if pronouns else None,
    }


def transitions(rows: Grid) -> dict[str, float]:
    """Of all pairs of adjacent sentences and all entities the share of each of the 16 transitions, such as "S–"."""
    names = sorted({name for row in rows for name in row})
    pairs = [(row.get(name, "–"), following.get(name, "–")) for row, following in itertools.pairwise(rows) for name in names]
    return {a + b: pairs.count((a, b)) / len(pairs) if pairs else 0.0 for a in "SOX–" for b in "SOX–"}


def entity_graph(rows: Grid) -> float:
    total = 0.0
    for (i, row), (k, later) in itertools.combinations(enumerate(rows), 2):
        total += sum(WEIGHT[role] * WEIGHT[later[name]] for name, role in row.items() if name in later) / (k - i)
    return total / len(rows)


def _words(sentence: str) -> Words:
    words = [word.removesuffix("'s").removesuffix("’s") for word in _TOKEN.findall(sentence)]
    verb = first_verb(words)
    return Words(words, len(words) if verb is None else verb)


def _nouns(words: Sequence[str]) -> list[str]:
    """Words that end a phrase: after a determiner or preposition at most three words, before one that is no noun, or a mark."""
    found = []
    for at, word in enumerate(words):
        if word.lower() not in DETERMINERS | PREPOSITIONS:
            continue
        run = list(itertools.takewhile(lambda w: w.isalpha() and w.lower() not in NO_ENTITIES, words[at + 1 : at + 6]))
        verb = first_verb(run)
        run = run[:verb] if verb else run
        if 0 < len(run) <= 3 and len(run[-1]) > 2:
            found.append(run[-1].lower())
    return found


def _roles(row: Words, small: set[str], nouns: set[str]) -> dict[str, str]:
    """small: words that somewhere begin with a small letter, which a capital at a sentence's begin makes no names."""
    roles: dict[str, str] = {}
    last: str | None = None  # a name that the next word may belong to
    preposition = False
    for at, word in enumerate(row.words):
        lower = word.lower()
        if lower in NO_ENTITIES or not word[0].isalpha():
            preposition = lower in PREPOSITIONS or (preposition and lower in DETERMINERS)
            last = None
            continue
        name = word[0].isupper() and (at > 0 or lower not in small)
        key = stem(lower)
        if not name and key not in nouns:
            last = None
            continue
        role = "S" if at < row.verb else "X" if preposition else "O"
        if name and last is not None:
            role = roles.pop(last, role)  # Albert Einstein is Einstein
        if key not in roles or WEIGHT[role] > WEIGHT[roles[key]]:
            roles[key] = role
        last = key if name else None
    return roles


def _pronouns(texts: Sequence[str], rows: Grid, begin: int) -> list[bool]:
    """Of each third-person pronoun from sentence `begin` on whether it has something to stand for."""
    found = []
    for at in range(begin, len(texts)):
        words = _words(_EXPLETIVE.sub("", texts[at])).words
        near = [name for row in rows[max(0, at - REACH) : at] for name in row]
        named = {stem(word.lower()) for sentence in texts[max(0, at - REACH) : at] for word in _names(sentence)}
        for place, word in enumerate(words):
            lower = word.lower()
            if lower not in PERSONAL | OTHER:
                continue
            own = [stem(w.lower()) for w in words[:place] if stem(w.lower()) in rows[at]]
            candidates = {*near, *own}
            if lower in PERSONAL:
                before = {stem(w.lower()) for w in words[:place] if w[0].isupper() and w.lower() not in FUNCTION}
                candidates &= named | before | {stem(person) for person in PERSONS}
            found.append(bool(candidates))
    return found


def _names(sentence: str) -> list[str]:
    return [word for word in _words(sentence).words if word[0].isupper() and word.lower() not in FUNCTION]


def shares(rows: Sequence[Grid]) -> dict[str, Any]:
    """The mean transitions of several texts of at least two sentences, those of all gaps left out."""
    several = [transitions(row) for row in rows if len(row) > 1]
    return {key: sum(some[key] for some in several) / len(several) for key in several[0] if key != "––"} if several else {}
