"""Numbers hidden in long texts, in the manner of RULER (Hsieh et al. 2024, arXiv 2404.06654), at several lengths and depths."""

import random
from collections.abc import Iterator

from data.tasks.splits import exercise, held_out, records
from data.tasks.style import QUALITIES, THINGS
from lm.errors import UserError

DEPTHS = (0, 25, 50, 75, 100)  # percent of the text before the needle
LINKS = 4  # of a chain, from a number to the name that is asked for
NEEDLE, LINK = "The number of the {} is {}.", "The number of the {} is the number of the {}."
QUESTION = "What is the number of the {}? Answer with the number only."


def haystack(split: str, seed: int, part: str = "needle", words: str = "256,512,1024,2048", valid: int = 200) -> Iterator[dict]:
    """Yield records with a text of so many words and a question about one number in it.

    part: "needle": one number among sentences about nothing. "keys": among numbers of other things, which the model must tell
    apart. "chain": the number of a thing is that of another, and so on, with links spread over the text from the depth on.
    words: lengths, of which each record has one. Column `cell` is its length and depth, such as "512 words at 25 %".
    """
    lengths = [int(length) if length.isdecimal() else 0 for length in words.split(",")]
    if part not in ("needle", "keys", "chain"):
        raise UserError(f"haystack: part={part!r} must be needle, keys or chain")
    if min(lengths) < 64:
        raise UserError(f"haystack: words={words!r} must be numbers from 64 on, with commas between them")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        length, depth, code = rng.choice(lengths), rng.choice(DEPTHS), rng.randrange(10**6)
        if (out := held_out(str(code))) != (split == "valid"):
            return out, {}
        names = [f"{rng.choice(QUALITIES)} {rng.choice(THINGS)} {code}-{n}" for n in range(LINKS)]
        answer = str(rng.randrange(10**6, 10**7))
        asked = names[-1] if part == "chain" else names[0]
        links = zip(names[1:], names[:-1]) if part == "chain" else ()
        needles = [NEEDLE.format(names[0], answer), *(LINK.format(*link) for link in links)]
        hay = _hay(rng, length - sum(len(needle.split()) for needle in needles), part == "keys")
        first = round(len(hay) * depth / 100)
        places = [first, *sorted(rng.randint(first, len(hay)) for _ in needles[1:])]
        for place, needle in reversed([*zip(places, needles)]):
            hay.insert(place, needle)
        prompt = f"{' '.join(hay)}\n\n{QUESTION.format(asked)}"
        cell = f"{length} words at {depth} %"
        return out, exercise("haystack", prompt, answer, str(int(answer) + 1), cell=cell)

    return records(draw, split, seed, valid)


def _hay(rng: random.Random, words: int, numbered: bool) -> list[str]:
    """Return sentences of at least so many words in all."""
    hay: list[str] = []
    while words > 0:
        one, other = (f"{rng.choice(QUALITIES)} {rng.choice(THINGS)}" for _ in range(2))
        if numbered:
            one = NEEDLE.format(f"{one} {rng.randrange(10**6)}-0", rng.randrange(10**6, 10**7))
        hay.append(one if numbered else f"The {one} stood beside the {other}.")
        words -= len(hay[-1].split())
    return hay
