"""Plain sentences about letters, things and the small world, to pretrain a tiny model before alignment.

The text describes the operations of the tasks in prose ("the reverse of b c a is a c b"), so a base model can learn them. It
contains no question, instruction or answer form of a task, so alignment must teach when to use them.
"""

import random
from collections.abc import Iterator

from data.tasks.formats import QUALITIES, THINGS
from data.tasks.letters import FORMS, OPERATIONS, some_letters
from data.tasks.small_world import STATEMENTS, world
from data.tasks.splits import held_out, records

SAID = (
    "The {name} of {letters} is {result}.",
    "By {name}, {letters} becomes {result}.",
    "{letters} after a {name} is {result}.",
)
MARKS = ("The letters {} stand here.", "< {} > stands between signs.", "= {} = is a line.", "{} ; so it goes.")
WORDS = ("The word {} stands before {}.", "A {} is no {}.", "Some say {} and some say {}.", "To {} or to {}.")


def text(
    split: str, seed: int, sentences: int = 20, length: int = 3, alphabet: int = 12, people: int = 24, valid: int = 100
) -> Iterator[dict]:
    """Yield documents {"text"} of `sentences` sentences. No train sentence has a set of letters that the tasks hold out."""
    inhabitants, words = world(people), [*OPERATIONS, *FORMS]

    def letters(rng: random.Random) -> list[str]:
        while True:
            drawn = some_letters(rng, length, alphabet)
            if held_out(" ".join(sorted(drawn))) == (split == "valid"):
                return drawn

    def sentence(rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.6:
            name, drawn = rng.choice(list(OPERATIONS)), letters(rng)
            result = " ".join(OPERATIONS[name](drawn))
            return rng.choice(SAID).format(name=name, letters=" ".join(drawn), result=result)
        if kind < 0.7:
            return rng.choice(MARKS).format(" ".join(letters(rng)))
        if kind < 0.8:
            return rng.choice(WORDS).format(*rng.sample(words, 2))
        if kind < 0.9:
            return f"The {rng.choice(THINGS)} is {rng.choice(QUALITIES)}."
        return rng.choice(STATEMENTS[rng.choice(list(STATEMENTS))]).format(**rng.choice(inhabitants))

    def draw(rng: random.Random) -> tuple[bool, dict]:
        return split == "valid", {"text": " ".join(sentence(rng) for _ in range(sentences))}

    return records(draw, split, seed, valid)
