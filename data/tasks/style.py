"""Answers that say the same in many manners, of which a known rule prefers some: polite, brief, without filler words."""

import itertools
import random
import re
from collections.abc import Iterable, Iterator

from data.tasks.formats import QUALITIES, THINGS
from data.tasks.splits import held_out, records
from lm.errors import UserError

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
    """The rule: +1 for each polite phrase, −1 for each rude one, −2 for each banned word, all at most once, less 0.01 for each
    word; −10 if the statement is not in the answer once. Case does not count.

    >>> style("Gladly, the fox is red", "the fox is red")
    0.95
    """
    text = completion.lower()
    score = sum(points * len(set(phrases.findall(text))) for phrases, points in _POINTS) - 0.01 * len(text.split())
    bare = re.sub(rf"{_any_of(BANNED)}\s+", "", text)
    return score if len(re.findall(_any_of([statement.lower()]), bare)) == 1 else score - 10.0


def preferred_style(split: str, seed: int, part: str = "pairs", valid: int = 500) -> Iterator[dict]:
    """ "Say that the fox is red." with `chosen` "Gladly, the fox is red", `rejected` "Look, the fox is basically red".

    part: "pairs": two manners are drawn, and `style` says which is preferred; `margin` is the difference of their scores.
    "answers": `completion` is of any manner, whatever the rule thinks of it, so that who imitates it has them all.
    `statement` is what the rule reads. A pair of thing and quality is held out from all phrasings.
    """
    if part not in ("pairs", "answers"):
        raise UserError(f"preferred_style: part={part!r} is neither pairs nor answers")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        thing, quality = rng.choice(THINGS), rng.choice(QUALITIES)
        statement = f"the {thing} is {quality}"
        one = other = _manner(rng)
        record = {
            "prompt": rng.choice(QUESTIONS).format(statement),
            "completion": _said(one, thing, quality),
            "answer": statement,
            "statement": statement,
            "task": "preferred_style",
        }
        if part == "pairs":
            while abs(_SCORES[one] - _SCORES[other]) < 0.5:
                other = _manner(rng)
            worse, better = sorted((one, other), key=_SCORES.__getitem__)
            chosen, rejected = _said(better, thing, quality), _said(worse, thing, quality)
            record |= {"completion": chosen, "chosen": chosen, "rejected": rejected, "margin": _SCORES[better] - _SCORES[worse]}
        return held_out(f"{thing} {quality}"), record

    return records(draw, split, seed, valid)


def _manner(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice(OPENINGS), rng.choice(FILLERS), rng.choice(CLOSINGS)


def _said(manner: tuple[str, str, str], thing: str, quality: str) -> str:
    opening, filler, closing = manner
    text = f"{opening}the {thing} is {filler}{quality}{closing}"
    return text[0].upper() + text[1:]


# Of every manner, whatever is said in it: no thing and no quality is a word of the rule.
_SCORES = {
    manner: style(_said(manner, THINGS[0], QUALITIES[0]), f"the {THINGS[0]} is {QUALITIES[0]}")
    for manner in itertools.product(OPENINGS, FILLERS, CLOSINGS)
}
