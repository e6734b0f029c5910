"""Sums and differences of whole numbers."""

import random
from collections.abc import Iterator

from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

SIGNS = {"addition": "+", "subtraction": "-"}
QUESTIONS = ("What is {}?", "Work out {}.", "{} =")


def arithmetic(
    split: str, seed: int, digits: int = 2, operations: str = "addition,subtraction", valid: int = 500
) -> Iterator[dict]:
    """Yield records such as "What is 48 + 17?" -> "65", of two numbers of `digits` digits.

    A sum is held out in both orders and all phrasings. Differences are never negative. `rejected` is close to the answer: off
    by 1 or 10, or with two digits swapped.
    """
    if not 1 <= digits <= 15:
        raise UserError(f"arithmetic: digits={digits} must be in 1…15")
    chosen = [name for name in operations.split(",") if name]
    if not chosen or not set(chosen) <= set(SIGNS):
        raise UserError(f"arithmetic: operations={operations!r} must be some of {','.join(SIGNS)}")
    least = 0 if digits == 1 else 10 ** (digits - 1)

    def draw(rng: random.Random) -> tuple[bool, dict]:
        name = rng.choice(chosen)
        a, b = rng.randrange(least, 10**digits), rng.randrange(least, 10**digits)
        low, high = sorted((a, b))
        if name == "subtraction":
            a, b = high, low
        answer = a + b if name == "addition" else a - b
        prompt = rng.choice(QUESTIONS).format(f"{a} {SIGNS[name]} {b}")
        return held_out(f"{name} {low} {high}"), exercise("arithmetic", prompt, str(answer), str(_near(answer, rng)))

    return records(draw, split, seed, valid)


def _near(answer: int, rng: random.Random) -> int:
    text = list(str(answer))
    i = rng.randrange(len(text))
    text[i - 1], text[i] = text[i], text[i - 1]
    wrong = [n for n in (answer + 1, answer - 1, answer + 10, answer - 10, int("".join(text))) if n >= 0 and n != answer]
    return rng.choice(wrong)
