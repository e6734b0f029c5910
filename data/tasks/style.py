"""Answers with the same content in many styles, scored by a known rule: polite, brief, without filler words."""

import itertools
import random
import re
from collections.abc import Iterable, Iterator

from data.tasks.splits import held_out, records
from lm.errors import UserError

THINGS = tuple("fox boat house stone tree lamp river coat bird door hill cup road leaf horse star wall book field ship".split())
QUALITIES = tuple("red old small quiet green warm heavy bright slow round dark tall blue thin soft clean".split())
OPENINGS = ("", "", "Of course, ", "Gladly, ", "Look, ", "Fine, ")
FILLERS = ("", "", "basically ", "obviously ", "honestly ")
CLOSINGS = ("", "", " and thank you", " and all the best", " and so what", " and that is that")
POLITE = ("of course", "gladly", "thank you", "all the best")
RUDE = ("look", "fine", "so what", "that is that")
BANNED = ("basically", "obviously", "honestly")
QUESTIONS = ("Tell me that {}.", "Say that {}.", "Please write that {}.", "Let me hear that {}.")


def _any_of(phrases: Iterable[str]) -> str:
    return rf"\b(?:{'|'.join(map(re.escape, phrases))})\b"


_POINTS = ((re.compile(_any_of(POLITE)), 1.0), (re.compile(_any_of(RUDE)), -1.0), (re.compile(_any_of(BANNED)), -2.0))


def style(completion: str, statement: str) -> float:
    """Return the score of an answer: +1 per distinct polite phrase, −1 per rude phrase, −2 per banned word, −0.01 per word.

    It is 10 lower if the answer does not contain the statement exactly once. Case is ignored.

    >>> style("Gladly, the fox is red", "the fox is red")
    0.95
    """
    text = completion.lower()
    score = sum(points * len(set(phrases.findall(text))) for phrases, points in _POINTS) - 0.01 * len(text.split())
    bare = re.sub(rf"{_any_of(BANNED)}\s+", "", text)
    return score if len(re.findall(_any_of([statement.lower()]), bare)) == 1 else score - 10.0


def preferred_style(split: str, seed: int, part: str = "pairs", valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Say that the fox is red." with two answers in different styles.

    Example: `chosen` is "Gladly, the fox is red", `rejected` is "Look, the fox is basically red".
    part: "pairs": two styles are drawn, and `style` decides which is chosen; `margin` is the difference of their scores.
    "answers": `completion` has a random style, so a model that imitates it learns all styles.
    The rule reads column `statement`. A pair of thing and quality is held out in all phrasings.
    """
    if part not in ("pairs", "answers"):
        raise UserError(f"preferred_style: part={part!r} is neither pairs nor answers")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        thing, quality = rng.choice(THINGS), rng.choice(QUALITIES)
        statement = f"the {thing} is {quality}"
        one = other = _manner(rng)
        record = {
            "prompt": rng.choice(QUESTIONS).format(statement),
            "completion": _render(one, thing, quality),
            "answer": statement,
            "statement": statement,
            "task": "preferred_style",
        }
        if part == "pairs":
            while abs(_SCORES[one] - _SCORES[other]) < 0.5:
                other = _manner(rng)
            worse, better = sorted((one, other), key=_SCORES.__getitem__)
            chosen, rejected = _render(better, thing, quality), _render(worse, thing, quality)
            record |= {"completion": chosen, "chosen": chosen, "rejected": rejected, "margin": _SCORES[better] - _SCORES[worse]}
        return held_out(f"{thing} {quality}"), record

    return records(draw, split, seed, valid)


def _manner(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice(OPENINGS), rng.choice(FILLERS), rng.choice(CLOSINGS)


def _render(manner: tuple[str, str, str], thing: str, quality: str) -> str:
    opening, filler, closing = manner
    text = f"{opening}the {thing} is {filler}{quality}{closing}"
    return text[0].upper() + text[1:]


# The score of each style. It does not depend on the statement, because no thing or quality is a word of the rule.
_SCORES = {
    manner: style(_render(manner, THINGS[0], QUALITIES[0]), f"the {THINGS[0]} is {QUALITIES[0]}")
    for manner in itertools.product(OPENINGS, FILLERS, CLOSINGS)
}
