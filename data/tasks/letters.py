"""Operations on a few letters, written apart ("b c a") so that each is a token: small enough to learn within minutes.

`instructions` shows what supervised tuning does: an operation and a form are asked for in words. `mixed_operations` shows what
reinforcement learning does: with demonstrations="random" a tuned model has every skill, and heeds no instruction.
"""

import random
import string
from collections.abc import Callable, Iterator

from data.tasks.splits import held_out, records
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
    """Different letters, of the first `alphabet`. To three and more of them all operations do different things."""
    return rng.sample(string.ascii_lowercase[:alphabet], length)


def _check(task: str, length: int, alphabet: int) -> None:
    if not 3 <= length < alphabet <= 26:
        raise UserError(f"{task}: needs 3 ≤ length < alphabet ≤ 26, not length={length}, alphabet={alphabet}")


def instructions(split: str, seed: int, length: int = 3, alphabet: int = 12, valid: int = 500) -> Iterator[dict]:
    """ "Take b c a: reverse in brackets" -> "[ a c b ]": five operations in five forms.

    Letters are held out in any order, operation and form. `answer` is the whole completion; `format` a regular expression for
    its form. `rejected` does the right thing in another form.
    """
    _check("instructions", length, alphabet)

    def draw(rng: random.Random) -> tuple[bool, dict]:
        letters, name, form = some_letters(rng, length, alphabet), rng.choice(list(OPERATIONS)), rng.choice(list(FORMS))
        other = rng.choice([one for one in FORMS if one != form])
        done = " ".join(OPERATIONS[name](letters))
        completion = FORMS[form].format(done)
        record = {
            "prompt": f"Take {' '.join(letters)}: {name} in {form}",
            "completion": completion,
            "rejected": FORMS[other].format(done),
            "answer": completion,
            "format": FORMATS[form],
            "task": "instructions",
            "operation": name,
            "form": form,
        }
        return held_out(" ".join(sorted(letters))), record

    return records(draw, split, seed, valid)


def mixed_operations(
    split: str, seed: int, length: int = 3, alphabet: int = 12, demonstrations: str = "right", valid: int = 500
) -> Iterator[dict]:
    """ "Take b c a: reverse" -> "the reverse is a c b": one of five operations. Letters are held out in any order, from all.

    demonstrations: what `completion` shows. "right": the operation that the prompt names; "random": any of the five, so that
    who imitates them is right once in five. `answer` is right in either case; `rejected` is another operation's.
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
        record = {
            "prompt": f"Take {' '.join(letters)}: {name}",
            "completion": done[shown],
            "rejected": done[wrong],
            "answer": done[name],
            "task": "mixed_operations",
            "operation": name,
        }
        return held_out(" ".join(sorted(letters))), record

    return records(draw, split, seed, valid)
