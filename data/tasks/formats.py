"""Instructions with a verifiable format: JSON, brackets, a number of words, capitals, a first word.

Column `format` is for the reward `format` (lm/align/rl/reward_functions.py): a regular expression for the whole answer, or
"json". Column `contains` lists texts that the answer must contain.
"""

import json
import random
from collections.abc import Iterator

from data.tasks.splits import exercise, held_out, records

THINGS = tuple("fox boat house stone tree lamp river coat bird door hill cup road leaf horse star wall book field ship".split())
QUALITIES = tuple("red old small quiet green warm heavy bright slow round dark tall blue thin soft clean".split())
OPENINGS = ("Well", "Look", "Indeed", "Surely")
NUMBERS = ("one", "two", "three", "four", "five", "six")


def formats(split: str, seed: int, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Say in capitals that the fox is red." -> "THE FOX IS RED".

    A pair of thing and quality is held out in all forms. `rejected` says the same in a form that was not requested.
    """

    def draw(rng: random.Random) -> tuple[bool, dict]:
        thing, quality, form = rng.choice(THINGS), rng.choice(QUALITIES), rng.choice(list(_FORMS))
        prompt, completion, format, contains = _FORMS[form](thing, quality, rng)
        rejected = f"that would be the {thing}, which is {quality}"
        columns = {"format": format, "contains": contains, "form": form}
        return held_out(f"{thing} {quality}"), exercise("formats", prompt, completion, rejected, **columns)

    return records(draw, split, seed, valid)


def _json(thing: str, quality: str, rng: random.Random):
    prompt = f'Answer in JSON with the keys "thing" and "is": the {thing} is {quality}.'
    return prompt, json.dumps({"thing": thing, "is": quality}), "json", [f'"{thing}"', f'"{quality}"']


def _brackets(thing: str, quality: str, rng: random.Random):
    prompt = f"Say in square brackets that the {thing} is {quality}."
    return prompt, f"[the {thing} is {quality}]", r"\[[^\[\]]+\]", [thing, quality]


def _words(thing: str, quality: str, rng: random.Random):
    count = rng.randint(2, 6)
    words = {2: "{1} {0}", 3: "the {1} {0}", 4: "the {0} is {1}", 5: "the {0} is very {1}", 6: "the {0} is very {1} today"}
    prompt = f"Say in exactly {NUMBERS[count - 1]} words that the {thing} is {quality}."
    return prompt, words[count].format(thing, quality), rf"\S+( \S+){{{count - 1}}}", [thing, quality]


def _capitals(thing: str, quality: str, rng: random.Random):
    return f"Say in capitals that the {thing} is {quality}.", f"THE {thing} IS {quality}".upper(), r"[^a-z]+", [thing, quality]


def _opening(thing: str, quality: str, rng: random.Random):
    word = rng.choice(OPENINGS)
    prompt = f"Say that the {thing} is {quality}, and begin with the word {word}."
    return prompt, f"{word}, the {thing} is {quality}", rf"{word}\b.*", [thing, quality]


_FORMS = {"json": _json, "brackets": _brackets, "words": _words, "capitals": _capitals, "opening": _opening}
