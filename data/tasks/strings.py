"""Questions about the letters of made-up words."""

import random
from collections.abc import Iterator

from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
QUESTIONS = {
    "reverse": ("Write {} backwards.", "Reverse the word {}."),
    "sort": ("Sort the letters of {}.", "Write the letters of {} in alphabetical order."),
    "upper": ("Write {} in capitals.", "Put {} into capital letters."),
    "first": ("What is the first letter of {}?", "Which letter does {} begin with?"),
    "last": ("What is the last letter of {}?", "Which letter does {} end with?"),
    "count": ("How many letters are in {}?", "How long is the word {}?"),
}
ANSWERS = {
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "upper": str.upper,
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "count": lambda word: str(len(word)),
}


def made_up_word(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables)) + rng.choice(("", *CONSONANTS))


def strings(split: str, seed: int, syllables: int = 3, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Write tamolu backwards." -> "ulomat"; also sorted, capitals, first or last letter, length.

    Words have 2 to `syllables` syllables. A word is held out in all questions. `rejected` is the right answer to another
    question.
    """
    if not 2 <= syllables <= 10:
        raise UserError(f"strings: syllables={syllables} must be in 2…10")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        name, word = rng.choice(list(QUESTIONS)), made_up_word(rng, rng.randint(2, syllables))
        answers = {other: function(word) for other, function in ANSWERS.items()}
        wrong = [answer for answer in answers.values() if answer != answers[name]]
        prompt = rng.choice(QUESTIONS[name]).format(word)
        return held_out(word), exercise("strings", prompt, answers[name], rng.choice(wrong), operation=name)

    return records(draw, split, seed, valid)
