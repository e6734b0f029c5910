"""Operations on short sequences: the letters of made-up words, and lists of numbers."""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
OF_WORDS = {
    "reverse": ("Write {} backwards.", "Reverse the word {}."),
    "sort": ("Sort the letters of {}.", "Write the letters of {} in alphabetical order."),
    "upper": ("Write {} in capitals.", "Put {} into capital letters."),
    "first": ("What is the first letter of {}?", "Which letter does {} begin with?"),
    "last": ("What is the last letter of {}?", "Which letter does {} end with?"),
    "count": ("How many letters are in {}?", "How long is the word {}?"),
}
WORD_ANSWERS: dict[str, Callable[[str], str]] = {
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "upper": str.upper,
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "count": lambda word: str(len(word)),
}
OF_LISTS = {
    "max": ("What is the largest of {}?", "Give the maximum of {}."),
    "min": ("What is the smallest of {}?", "Give the minimum of {}."),
    "sort": ("Sort {} from small to large.", "Put {} in ascending order."),
    "reverse": ("Write {} in reverse order.", "Reverse the list {}."),
    "sum": ("What is the sum of {}?", "Add up {}."),
}
LIST_ANSWERS: dict[str, Callable[[list[int]], str]] = {
    "max": lambda numbers: str(max(numbers)),
    "min": lambda numbers: str(min(numbers)),
    "sum": lambda numbers: str(sum(numbers)),
    "sort": lambda numbers: _written(sorted(numbers)),
    "reverse": lambda numbers: _written(numbers[::-1]),
}


def made_up_word(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables)) + rng.choice(("", *CONSONANTS))


def made_up_words(rng: random.Random, syllables: int, count: int) -> list[str]:
    """Return so many different words."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[made_up_word(rng, syllables)] = None
    return list(words)


def strings(split: str, seed: int, syllables: int = 3, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Write tamolu backwards." -> "ulomat"; also sorted, capitals, first or last letter, length.

    Words have 2 to `syllables` syllables. A word is held out in all questions. `rejected` is the right answer to another
    question.
    """
    if not 2 <= syllables <= 10:
        raise UserError(f"strings: syllables={syllables} must be in 2…10")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        name, word = rng.choice(list(OF_WORDS)), made_up_word(rng, rng.randint(2, syllables))
        return held_out(word), _exercise("strings", rng, name, OF_WORDS, word, {k: f(word) for k, f in WORD_ANSWERS.items()})

    return records(draw, split, seed, valid)


def lists(split: str, seed: int, length: int = 4, largest: int = 99, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "What is the largest of 4, 17, 3?" -> "17"; also the smallest, sorted, reversed, sum.

    Lists have 2 to `length` distinct numbers in 0…`largest`. A set of numbers is held out in every order and question.
    `rejected` is the right answer to another question.
    """
    if not 2 <= length <= largest <= 10**6:
        raise UserError(f"lists: needs 2 ≤ length ≤ largest ≤ 10⁶, not length={length}, largest={largest}")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        name, numbers = rng.choice(list(OF_LISTS)), rng.sample(range(largest + 1), rng.randint(2, length))
        answers = {k: f(numbers) for k, f in LIST_ANSWERS.items()}
        return held_out(_written(sorted(numbers))), _exercise("lists", rng, name, OF_LISTS, _written(numbers), answers)

    return records(draw, split, seed, valid)


def _exercise(
    task: str, rng: random.Random, name: str, questions: Mapping[str, tuple[str, ...]], subject: str, answers: Mapping[str, str]
) -> dict[str, Any]:
    """Return the record of the operation `name`; `rejected` is the answer of another one."""
    wrong = [answer for answer in answers.values() if answer != answers[name]]
    prompt = rng.choice(questions[name]).format(subject)
    return exercise(task, prompt, answers[name], rng.choice(wrong), operation=name)


def _written(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
