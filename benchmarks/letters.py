"""A toy world that a model of half a million parameters learns in minutes, for benchmarks/alignment.py: operations on letters.

Letters are separated by spaces ("b c a"), so that each is one token.
"""

import random
import string

from data.tasks.style import QUALITIES, THINGS

OPERATIONS = {
    "copy": lambda letters: letters,
    "reverse": lambda letters: letters[::-1],
    "swap": lambda letters: [letters[1], letters[0], *letters[2:]],
    "upper": lambda letters: [letter.upper() for letter in letters],
    "turn": lambda letters: letters[1:] + letters[:1],
}
FORMS = {"brackets": "[ {} ]", "quotes": '" {} "', "stars": "* {} *", "bars": "| {} |", "braces": "{{ {} }}"}
FORMATS = {
    "brackets": r"\[ \w( \w)* \]",
    "quotes": r'" \w( \w)* "',
    "stars": r"\* \w( \w)* \*",
    "bars": r"\| \w( \w)* \|",
    "braces": r"\{ \w( \w)* \}",
}
SAID = (
    "The {name} of {letters} is {result}.",
    "By {name}, {letters} becomes {result}.",
    "{letters} after a {name} is {result}.",
)
MARKS = ("The letters {} stand here.", "< {} > stands between signs.", "= {} = is a line.", "{} ; so it goes.")
WORDS = ("The word {} stands before {}.", "A {} is no {}.", "Some say {} and some say {}.", "To {} or to {}.")


def _letters(rng: random.Random) -> list[str]:
    return rng.sample(string.ascii_lowercase[:12], 3)


def instruction(rng: random.Random) -> dict[str, str]:
    """Return a record such as "Take b c a: reverse in brackets" -> "[ a c b ]"; `format` is a pattern of the answer's form."""
    letters, name, form = _letters(rng), rng.choice(list(OPERATIONS)), rng.choice(list(FORMS))
    answer = FORMS[form].format(" ".join(OPERATIONS[name](letters)))
    prompt = f"Take {' '.join(letters)}: {name} in {form}"
    return {"prompt": prompt, "completion": answer, "answer": answer, "format": FORMATS[form]}


def document(rng: random.Random) -> dict[str, str]:
    """Return {"text"}: prose that describes the operations and things, without a question, an instruction or a form."""
    return {"text": " ".join(_sentence(rng) for _ in range(20))}


def _sentence(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        name, letters = rng.choice(list(OPERATIONS)), _letters(rng)
        result = " ".join(OPERATIONS[name](letters))
        return rng.choice(SAID).format(name=name, letters=" ".join(letters), result=result)
    if kind < 0.7:
        return rng.choice(MARKS).format(" ".join(_letters(rng)))
    if kind < 0.8:
        return rng.choice(WORDS).format(*rng.sample([*OPERATIONS, *FORMS], 2))
    return f"The {rng.choice(THINGS)} is {rng.choice(QUALITIES)}."
