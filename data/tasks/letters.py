"""Operations on a few letters, separated by spaces ("b c a") so that each is one token; a model learns them in minutes.

`instructions` demonstrates supervised fine-tuning: the prompt asks for an operation and a form in words. `mixed_operations`
demonstrates reinforcement learning: with demonstrations="random", a fine-tuned model has every skill but follows no
instruction.
"""

import random
import string
from collections.abc import Callable, Iterator

from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

OPERATIONS: dict[str, Callable[[list[str]], list[str]]] = {
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


def some_letters(rng: random.Random, length: int, alphabet: int) -> list[str]:
    """Draw distinct letters from the first `alphabet` letters. With three or more, all operations give different results."""
    return rng.sample(string.ascii_lowercase[:alphabet], length)


def _check(task: str, length: int, alphabet: int) -> None:
    if not 3 <= length < alphabet <= 26:
        raise UserError(f"{task}: needs 3 ≤ length < alphabet ≤ 26, not length={length}, alphabet={alphabet}")


def instructions(split: str, seed: int, length: int = 3, alphabet: int = 12, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Take b c a: reverse in brackets" -> "[ a c b ]": five operations in five forms.

    A set of letters is held out in every order, operation and form. `answer` is the whole completion; `format` is a regular
    expression for its form. `rejected` has the right result in another form.
    """
    _check("instructions", length, alphabet)

    def draw(rng: random.Random) -> tuple[bool, dict]:
        letters, name, form = some_letters(rng, length, alphabet), rng.choice(list(OPERATIONS)), rng.choice(list(FORMS))
        other = rng.choice([one for one in FORMS if one != form])
        done = " ".join(OPERATIONS[name](letters))
        completion = FORMS[form].format(done)
        prompt, columns = f"Take {' '.join(letters)}: {name} in {form}", {"operation": name, "form": form}
        record = exercise("instructions", prompt, completion, FORMS[other].format(done), format=FORMATS[form], **columns)
        return held_out(" ".join(sorted(letters))), record

    return records(draw, split, seed, valid)


def mixed_operations(
    split: str, seed: int, length: int = 3, alphabet: int = 12, demonstrations: str = "right", valid: int = 500
) -> Iterator[dict]:
    """Yield records such as "Take b c a: reverse" -> "the reverse is a c b", with one of five operations.

    A set of letters is held out in every order and operation.
    demonstrations: the operation of `completion`. "right": the one in the prompt. "random": any of the five, so a model that
    imitates them is right in one case of five. `answer` is always right; `rejected` is the result of another operation.
    """
    _check("mixed_operations", length, alphabet)
    if demonstrations not in ("right", "random"):
        raise UserError(f"mixed_operations: demonstrations={demonstrations!r} is neither right nor random")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        letters, names = some_letters(rng, length, alphabet), list(OPERATIONS)
        name = rng.choice(names)
        shown = name if demonstrations == "right" else rng.choice(names)
        wrong = rng.choice([other for other in names if other != name])
        done = {other: f"the {other} is {' '.join(OPERATIONS[other](letters))}" for other in (name, shown, wrong)}
        prompt, columns = f"Take {' '.join(letters)}: {name}", {"answer": done[name], "operation": name}
        return held_out(" ".join(sorted(letters))), exercise("mixed_operations", prompt, done[shown], done[wrong], **columns)

    return records(draw, split, seed, valid)
