"""Small programming tasks with hidden tests, in the form of HumanEval (Chen et al. 2021, "Evaluating large language models
trained on code").

A task is a few operations on a list of numbers or words, one after another. The prompt describes them and shows two examples.
The reference solution is composed of the same operations, and it gives the answers of the tests.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data.tasks.splits import exercise, held_out, records
from data.tasks.style import QUALITIES, THINGS
from lm.errors import UserError

HIDDEN, SHOWN = 20, 2  # inputs of the hidden tests, and examples in the prompt
DIFFERENT = 6  # least number of different answers in the hidden tests
LIST = {  # what an operation does, and its code; {k} is a number that is drawn
    "reverse the order": "values[::-1]",
    "keep only the first of equal values": "list(dict.fromkeys(values))",
    "keep every second value, beginning with the first": "values[::2]",
    "leave out the first {k} values": "values[{k}:]",
    "keep only the last {k} values": "values[-{k}:]",
}
OPERATIONS = {  # by the types that they take and give
    ("list[int]", "list[int]"): LIST
    | {
        "keep only the even numbers": "[n for n in values if n % 2 == 0]",
        "keep only the odd numbers": "[n for n in values if n % 2 == 1]",
        "keep only the numbers greater than {k}": "[n for n in values if n > {k}]",
        "keep only the numbers less than {k}": "[n for n in values if n < {k}]",
        "add {k} to each number": "[n + {k} for n in values]",
        "multiply each number by {k}": "[n * {k} for n in values]",
        "square each number": "[n * n for n in values]",
        "change the sign of each number": "[-n for n in values]",
        "replace each number by its absolute value": "[abs(n) for n in values]",
        "replace the numbers greater than {k} by {k}": "[min(n, {k}) for n in values]",
        "replace each number by its remainder modulo {k}, as Python's % gives it": "[n % {k} for n in values]",
        "replace each number by the sum of it and all before it": "[sum(values[: i + 1]) for i in range(len(values))]",
        "subtract from each number the one before it, and leave out the first": "[b - a for a, b in zip(values, values[1:])]",
        "multiply each number by its position, counted from 1": "[i * n for i, n in enumerate(values, 1)]",
        "sort in ascending order": "sorted(values)",
        "sort in descending order": "sorted(values, reverse=True)",
    },
    ("list[int]", "int"): {
        "return the sum": "sum(values)",
        "return the largest number, or 0 for none": "max(values, default=0)",
        "return the smallest number, or 0 for none": "min(values, default=0)",
        "return the largest minus the smallest number, or 0 for none": "max(values, default=0) - min(values, default=0)",
        "return how many different numbers there are": "len(set(values))",
    },
    ("list[int]", "str"): {"return the numbers as one text, with a - between them": "'-'.join(str(n) for n in values)"},
    ("list[str]", "list[str]"): LIST
    | {
        "keep only the words of more than {k} letters": "[word for word in values if len(word) > {k}]",
        "keep only the words with an e": "[word for word in values if 'e' in word.lower()]",
        "keep only the first {k} letters of each word": "[word[:{k}] for word in values]",
        "write each word in capitals": "[word.upper() for word in values]",
        "write each word backwards": "[word[::-1] for word in values]",
        "write each word twice, without a space": "[word + word for word in values]",
        "move the first letter of each word to its end": "[word[1:] + word[:1] for word in values]",
        "sort in alphabetical order": "sorted(values)",
        "sort by length, with words of equal length in the order they had": "sorted(values, key=len)",
    },
    ("list[str]", "list[int]"): {
        "replace each word by its length": "[len(word) for word in values]",
        "replace each word by the number of vowels in it": "[sum(c in 'aeiou' for c in word.lower()) for word in values]",
    },
    ("list[str]", "int"): {"return the number of letters in all words": "sum(len(word) for word in values)"},
    ("list[str]", "str"): {
        "return the words as one text, with spaces between them": "' '.join(values)",
        "return the first letters of the words as one text": "''.join(word[:1] for word in values)",
        "return the first of the longest words, or '' if there is none": "max(values, key=len, default='')",
    },
}
PROMPT = '''def solve(values: {takes}) -> {gives}:
    """{steps}. The list `values` itself must not change.

{examples}
    """
'''
TEST = """class ArgumentChanged(AssertionError):
    pass


CASES = [
{cases}
]


def check(candidate):
    for given, expected in CASES:
        values = list(given)
        assert candidate(values) == expected
        if values != given:
            raise ArgumentChanged
"""


class Operation(NamedTuple):
    takes: str
    gives: str
    words: str
    code: str


def programs(split: str, seed: int, operations: str = "2,3,4", valid: int = 200) -> Iterator[dict]:
    """Yield records in the form of HumanEval's file: prompt, test, entry_point and canonical_solution.

    operations: how many an item has, numbers with commas between them; each record has one, column `depth`. `visible_test`
    tests the examples of the prompt alone. `test` has other inputs, among them the empty list. `completion` is the whole
    function, because chat templates trim the indentation of a body. `rejected` lacks an operation.

    The key of a composition is what it does to fixed lists, with the same {k} throughout. So a held-out composition is not in
    training with other numbers, nor in another order that does the same. No operation is idle: without it hidden tests fail.
    """
    lengths = [int(length) if length.isdecimal() else 0 for length in operations.split(",")]
    fixed = {takes: _inputs(random.Random("programs"), takes) for takes in ("list[int]", "list[str]")}
    if not 2 <= min(lengths) <= max(lengths) <= 6:
        raise UserError(f"programs: operations={operations!r} must be numbers in 2…6, with commas between them")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        record: dict[str, Any] = {}
        while not record:
            drawn = _composition(rng, length := rng.choice(lengths))
            key = repr(_answers(_filled(drawn, [3] * length), fixed[drawn[0].takes]))
            if (out := held_out(key)) != (split == "valid"):
                return out, {}
            record = _record(rng, _filled(drawn, [rng.randint(2, 5) for _ in range(length)]))
        return out, record

    return records(draw, split, seed, valid)


def _composition(rng: random.Random, length: int) -> list[Operation]:
    """Draw so many different operations, each of which takes what the one before it gives. One at least is not of LIST, which
    would say the same of numbers and of words."""
    known = [Operation(*types, *one) for types, some in OPERATIONS.items() for one in some.items()]
    drawn: list[Operation] = []
    given = rng.choice(("list[int]", "list[str]"))
    while len(drawn) < length:
        last = len(drawn) == length - 1
        fit = [one for one in known if one.takes == given and one not in drawn and (last or one.gives.startswith("list"))]
        drawn.append(rng.choice(fit))
        given = drawn[-1].gives
    return drawn if any(one.words not in LIST for one in drawn) else _composition(rng, length)


def _filled(drawn: Sequence[Operation], numbers: Sequence[int]) -> list[Operation]:
    return [one._replace(words=one.words.format(k=k), code=one.code.format(k=k)) for one, k in zip(drawn, numbers)]


def _record(rng: random.Random, steps: Sequence[Operation]) -> dict[str, Any]:
    """Return the record of a composition; {} if it has an idle operation, or nearly always the same answer."""
    takes, gives = steps[0].takes, steps[-1].gives
    hidden, shown = _inputs(rng, takes), [_list(rng, takes, rng.randint(4, 7)) for _ in range(SHOWN)]
    answers, visible = _answers(steps, hidden), _answers(steps, shown)
    shorter = [[*steps[:i], *steps[i + 1 :]] for i, one in enumerate(steps) if one.takes == one.gives]
    idle = any(_answers(some, hidden) == answers for some in shorter)
    if not shorter or idle or len({*map(repr, answers)}) < DIFFERENT or visible[0] == visible[1] or not all(visible):
        return {}
    text = ", then ".join(one.words for one in steps)
    if gives.startswith("list"):
        text += ", and return the result"
    examples = "\n".join(f"    >>> solve({given!r})\n    {answer!r}" for given, answer in zip(shown, visible))
    prompt = PROMPT.format(takes=takes, gives=gives, steps=text[0].upper() + text[1:], examples=examples)
    tests = [
        TEST.format(cases="\n".join(f"    {pair!r}," for pair in zip(*cases)))
        for cases in ((hidden, answers), (shown, visible))
    ]
    right, wrong = (f"def solve(values: {takes}) -> {gives}:\n{_body(some)}" for some in (steps, rng.choice(shorter)))
    columns = {"canonical_solution": _body(steps), "test": tests[0], "visible_test": tests[1], "entry_point": "solve"}
    return exercise("programs", prompt, right, wrong, depth=f"{len(steps)} operations", **columns)


def _body(steps: Sequence[Operation]) -> str:
    """Return the lines of a function of `values`."""
    *lines, last = (one.code for one in steps)
    return "".join(f"    values = {line}\n" for line in lines) + f"    return {last}\n"


def _answers(steps: Sequence[Operation], inputs: Sequence[list]) -> list[Any]:
    """Return what the operations make of each input; no operation changes its input."""
    names: dict[str, Any] = {}
    exec(f"def solve(values):\n{_body(steps)}", names)
    return [names["solve"](values) for values in inputs]


def _inputs(rng: random.Random, takes: str) -> list[list]:
    """Return the inputs of hidden tests: none, one value, equal ones, a long list, and others."""
    one = _list(rng, takes, 1)
    edges = [[], one, [0] if takes == "list[int]" else [""], one * 5, _list(rng, takes, 80)]
    if takes == "list[int]":
        edges += [[-n for n in range(1, 8)], [*range(12, 0, -1)], [10**9, -(10**9), 7]]
    return edges + [_list(rng, takes, rng.randint(2, 12)) for _ in range(HIDDEN - len(edges))]


def _list(rng: random.Random, takes: str, length: int) -> list:
    """Return random values, some of which are equal."""
    words = [*THINGS, *QUALITIES, *(quality + thing for quality, thing in zip(QUALITIES, THINGS))]
    some = [rng.randint(-9, 20) if takes == "list[int]" else rng.choice(words) for _ in range(length)]
    return [rng.choice(some) if rng.random() < 0.2 else value for value in some]
