"""The entity grid: which entities each sentence mentions (Barzilay and Lapata 2008, "Modeling Local Coherence: An Entity-Based
Approach").

A grid has a row for each sentence and a column for each entity, with its role: subject S, object O, other X, or absent –.
Coherent texts keep their entities from one sentence to the next; shuffled texts do not. The paper parses; here rules do, for
English. An entity is a capitalised name, identified by its last word, or a noun: a word that somewhere ends a phrase after a
determiner or preposition. It is S before the first verb, X after a preposition, else O. Pronouns are not resolved. The rules
make mistakes, so compare means over many texts, not single texts.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lm.evals.factuality.claims import first_verb, sentences
from lm.evals.factuality.wording import DETERMINERS, FUNCTION, PERSONS, PREPOSITIONS, QUANTIFIERS, stem

METRICS = ("entity_grid_continuity", "entity_graph", "entities_recurring", "new_entities_per_sentence", "pronoun_errors")
WEIGHT = {"S": 3, "O": 2, "X": 1}
REACH = 3  # number of earlier sentences in which a pronoun may find its referent
PERSONAL = set("he she him her his hers himself herself".split())
OTHER = set("it its they them their theirs itself themselves".split())
NO_ENTITIES = FUNCTION | QUANTIFIERS | set("before after under over inside outside first down up out away back".split())
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")
_EXPLETIVE = re.compile(
    r"\bit(?:'s| is| was| seems| appears)(?: \w+){0,3}? (?:that|to|when|who)\b|\bit (?:rain|snow)", re.IGNORECASE
)

Grid = list[dict[str, str]]  # {entity: role} for each sentence


class Words(NamedTuple):
    """A sentence's words and marks. verb: index of the first verb, len(words) if there is none."""

    words: list[str]
    verb: int


def grid(sentences: Sequence[str]) -> Grid:
    rows = [_words(sentence) for sentence in sentences]
    small = {word for row in rows for word in row.words if word.islower()}
    nouns = {stem(noun) for row in rows for noun in _nouns(row.words)}
    return [_roles(row, small, nouns) for row in rows]


def measures(text: str, context: str = "") -> dict[str, float | None]:
    """Return metrics of a text after `context`; transitions count from the context's last sentence on. None if undefined.

    entity_grid_continuity     share of a sentence's entities that the next sentence has too
    entity_graph               Guinaudeau and Strube 2013: mean over sentences of Σ over later ones of Σ over shared entities of
                               both roles' weights (S 3, O 2, X 1) / distance
    entities_recurring         share of the text's entities that occur in several sentences (of text and context)
    new_entities_per_sentence  entities in neither the earlier sentences nor the context
    pronoun_errors             share of third-person pronouns without a possible referent in their sentence and the REACH before
                               it: a name or person for he and she, any entity for it and they
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
    """Return the share of each of the 16 transitions, such as "S–", over adjacent sentences and all entities."""
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
    """Return words that end a phrase: at most three words after a determiner or preposition, before a non-noun or a mark."""
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
    """Return {entity: role}. small: words that occur in lower case; they are not names at the start of a sentence."""
    roles: dict[str, str] = {}
    last: str | None = None  # a name that the next word may extend
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
    """Return, for each third-person pronoun from sentence `begin` on, whether it has a possible referent."""
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
    """Return the mean transitions of texts with at least two sentences, without "––"."""
    several = [transitions(row) for row in rows if len(row) > 1]
    return {key: sum(some[key] for some in several) / len(several) for key in several[0] if key != "––"} if several else {}
