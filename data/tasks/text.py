"""Plain sentences about letters, things and the small world, to pretrain a tiny model on before it is aligned.

What the aligned model must do is said here in prose ("turned round, b c a d is d a c b"), so that a base model can know how;
no question, instruction or answer form of a task stands in it, so that it cannot know when.
"""

import random
from collections.abc import Iterator

from data.tasks.formats import QUALITIES, THINGS
from data.tasks.letters import FORMS, OPERATIONS, some_letters
from data.tasks.small_world import STATEMENTS, world
from data.tasks.splits import held_out, records

SAID = {
    "copy": ("Once more {0} makes {1}.", "{0}, and again {1}.", "The same as {0} is {1}."),
    "reverse": ("Turned round, {0} is {1}.", "{0} backwards is {1}.", "From the end, {0} reads {1}."),
    "swap": ("With its first two crossed, {0} becomes {1}.", "{0} with second before first is {1}.", "Crossed, {0} is {1}."),
    "upper": ("Written large, {0} is {1}.", "{0} is small and {1} is large.", "Shouted, {0} is {1}."),
    "turn": ("Moved by one, {0} is {1}.", "{0} rolls on to {1}.", "When its first goes last, {0} is {1}."),
}
MARKS = ("The sign ( {} ) holds letters.", "< {} > stands between signs.", "= {} = is a line.", "{} ; so it goes.")
WORDS = ("The word {} stands before {}.", "A {} is no {}.", "Some say {} and some say {}.", "To {} or to {}.")


def text(
    split: str, seed: int, sentences: int = 20, length: int = 3, alphabet: int = 12, people: int = 24, valid: int = 100
) -> Iterator[dict]:  # fmt: skip
    """Documents {"text": so many sentences}. Letters that the tasks hold out stand together in no sentence of train."""
    inhabitants, words = world(people), [*OPERATIONS, *FORMS]

    def letters(rng: random.Random) -> list[str]:
        while True:
            drawn = some_letters(rng, length, alphabet)
            if held_out(" ".join(sorted(drawn))) == (split == "valid"):
                return drawn

    def sentence(rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.6:
            name, drawn = rng.choice(list(SAID)), letters(rng)
            return rng.choice(SAID[name]).format(" ".join(drawn), " ".join(OPERATIONS[name](drawn)))
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
