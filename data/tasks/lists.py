"""Questions about short lists of numbers."""

import random
from collections.abc import Iterator

from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

QUESTIONS = {
    "max": ("What is the largest of {}?", "Give the maximum of {}."),
    "min": ("What is the smallest of {}?", "Give the minimum of {}."),
    "sort": ("Sort {} from small to large.", "Put {} in ascending order."),
    "reverse": ("Write {} in reverse order.", "Reverse the list {}."),
    "sum": ("What is the sum of {}?", "Add up {}."),
}


def lists(split: str, seed: int, length: int = 4, largest: int = 99, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "What is the largest of 4, 17, 3?" -> "17"; also the smallest, sorted, reversed, sum.

    Lists have 2 to `length` distinct numbers in 0…`largest`. A set of numbers is held out in every order and question.
    `rejected` is the right answer to another question.
    """
    if not 2 <= length <= largest <= 10**6:
        raise UserError(f"lists: needs 2 ≤ length ≤ largest ≤ 10⁶, not length={length}, largest={largest}")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        name, numbers = rng.choice(list(QUESTIONS)), rng.sample(range(largest + 1), rng.randint(2, length))
        answers = {
            "max": str(max(numbers)),
            "min": str(min(numbers)),
            "sum": str(sum(numbers)),
            "sort": _written(sorted(numbers)),
            "reverse": _written(numbers[::-1]),
        }
        wrong = [answer for answer in answers.values() if answer != answers[name]]
        prompt = rng.choice(QUESTIONS[name]).format(_written(numbers))
        record = exercise("lists", prompt, answers[name], rng.choice(wrong), operation=name)
        return held_out(_written(sorted(numbers))), record

    return records(draw, split, seed, valid)


def _written(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
