"""Facts of a small fictional world (who lives where, and does what), with questions in several phrasings."""

import random
from collections.abc import Iterator

from data.tasks.sequences import made_up_words
from data.tasks.splits import exercise, number, records, texts
from lm.errors import UserError

OCCUPATIONS = ("baker", "smith", "teacher", "farmer", "painter", "sailor", "weaver", "doctor", "miller", "singer")
ANIMALS = ("cat", "dog", "goat", "horse", "hen", "fox", "owl", "hare")
QUESTIONS, STATEMENTS = texts("small_world").values()  # by the name of the fact


def world(number_of_people: int) -> list[dict[str, str]]:
    """Return the inhabitants: {"person", "town", "occupation", "animal"}; occupations are unique within a town."""
    rng = random.Random("world 0")
    towns = [word.capitalize() for word in made_up_words(rng, 2, max(2, number_of_people // 4))]
    names = [
        word.capitalize() for word in made_up_words(rng, 2, number_of_people + len(towns)) if word.capitalize() not in towns
    ]
    homes = rng.sample([(town, work) for town in towns for work in OCCUPATIONS], number_of_people)
    return [
        {"person": name, "town": town, "occupation": work, "animal": rng.choice(ANIMALS)}
        for name, (town, work) in zip(names, homes)
    ]


def small_world(split: str, seed: int, people: int = 24, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Where does Mira live?" -> "Tolum". `rejected` is the answer for another person.

    One of the four phrasings of each fact's question is held out, a different one per fact. So valid asks for facts of train,
    in phrasings that train uses for other facts.
    people: number of people. Both splits and all seeds share the world.
    """
    if not 8 <= people <= 1000:
        raise UserError(f"small_world: people={people} must be in 8…1000")
    inhabitants = world(people)
    values = {asked: sorted({who[asked] for who in inhabitants}) for asked in QUESTIONS}

    def draw(rng: random.Random) -> tuple[bool, dict]:
        who, asked = rng.choice(inhabitants), rng.choice(list(QUESTIONS))
        phrasing = rng.randrange(len(QUESTIONS[asked]))
        prompt, rejected = QUESTIONS[asked][phrasing].format(**who), [value for value in values[asked] if value != who[asked]]
        record = exercise("small_world", prompt, who[asked], rng.choice(rejected), asked=asked)
        return phrasing == number(f"{who['person']} {asked}") % len(QUESTIONS[asked]), record

    return records(draw, split, seed, valid)
