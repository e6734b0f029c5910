"""Sums, differences and products of whole numbers, and the declaration of the calculator tool for the products."""

import random
from collections.abc import Iterator

from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

SIGNS = {"addition": "+", "subtraction": "-"}
QUESTIONS = ("What is {}?", "Work out {}.", "{} =")
PRODUCTS = ("What is {} × {}?", "Work out {} * {}.", "Multiply {} by {}.", "What is the product of {} and {}?")
# The tool's schema in OpenAI's format. lm/align/rl/tools.py runs the calls.
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works out an expression such as 12 * (3 + 4).",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


def arithmetic(split: str, seed: int, digits: int = 2, valid: int = 500, thoughts: bool = False) -> Iterator[dict]:
    """Yield records such as "What is 48 + 17?" -> "65", of two numbers of `digits` digits.

    thoughts: the answer in `messages` has a thought (`reasoning_content`), which goes through the digits: "8+7+0=15 4+1+1=6".
    A sum is held out in both orders and all phrasings. Differences are never negative. `rejected` is close to the answer: off
    by 1 or 10, or with two digits swapped.
    """
    least = _least("arithmetic", digits)

    def draw(rng: random.Random) -> tuple[bool, dict]:
        name = rng.choice(list(SIGNS))
        a, b = rng.randrange(least, 10**digits), rng.randrange(least, 10**digits)
        low, high = sorted((a, b))
        if name == "subtraction":
            a, b = high, low
        answer = a + b if name == "addition" else a - b
        prompt = rng.choice(QUESTIONS).format(f"{a} {SIGNS[name]} {b}")
        record = exercise("arithmetic", prompt, str(answer), str(_near(answer, rng)))
        if thoughts:
            answered = {"role": "assistant", "content": str(answer), "reasoning_content": _by_digits(a, b, SIGNS[name])}
            record["messages"] = [{"role": "user", "content": prompt}, answered]
        return held_out(f"{name} {low} {high}"), record

    return records(draw, split, seed, valid)


def calculator(split: str, seed: int, digits: int = 5, tool: bool = True, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Multiply 48213 by 90177." -> "4347703701", of two numbers of `digits` digits.

    tool: if true, the record declares the calculator (`tools`), and its `messages` call it and then repeat its result.
    Otherwise `messages` answer directly.
    A product is held out in both orders and all phrasings. `rejected` has one wrong digit.
    """
    least = _least("calculator", digits)

    def draw(rng: random.Random) -> tuple[bool, dict]:
        a, b = rng.randrange(least, 10**digits), rng.randrange(least, 10**digits)
        prompt, answer = rng.choice(PRODUCTS).format(a, b), str(a * b)
        place, other = rng.randrange(len(answer)), rng.randrange(1, 10)
        wrong = answer[:place] + str((int(answer[place]) + other) % 10) + answer[place + 1 :]
        call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": f"{a} * {b}"}}}
        called = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": answer}]
        turns = [*(called if tool else []), {"role": "assistant", "content": answer}]
        record = exercise("calculator", prompt, answer, wrong, messages=[{"role": "user", "content": prompt}, *turns])
        return held_out(f"product {min(a, b)} {max(a, b)}"), record | ({"tools": [CALCULATOR]} if tool else {})

    return records(draw, split, seed, valid)


def _by_digits(a: int, b: int, sign: str) -> str:
    """Return the digits' sums or differences from the last one on, each with what it carries or borrows."""
    lines, carried, is_sum = [], 0, sign == "+"
    for n in range(len(str(max(a, b)))):
        x, y = a // 10**n % 10, b // 10**n % 10
        carries = x + y + carried > 9 if is_sum else x < y + carried
        x += 0 if is_sum else 10 * carries
        lines.append(f"{x}{sign}{y}{sign}{carried}={x + y + carried if is_sum else x - y - carried}")
        carried = int(carries)
    return " ".join(lines)


def _least(task: str, digits: int) -> int:
    """Return the least number of so many digits."""
    if not 1 <= digits <= 15:
        raise UserError(f"{task}: digits={digits} must be in 1…15")
    return 0 if digits == 1 else 10 ** (digits - 1)


def _near(answer: int, rng: random.Random) -> int:
    text = list(str(answer))
    i = rng.randrange(len(text))
    text[i - 1], text[i] = text[i], text[i - 1]
    wrong = [n for n in (answer + 1, answer - 1, answer + 10, answer - 10, int("".join(text))) if n >= 0 and n != answer]
    return rng.choice(wrong)
