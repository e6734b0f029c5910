"""Products of large numbers, and the declaration of the calculator tool that computes them."""

import random
from collections.abc import Iterator

from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

# The tool's schema in OpenAI's format. lm/align/rl/tools.py runs the calls.
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works out an expression such as 12 * (3 + 4).",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
QUESTIONS = ("What is {} × {}?", "Work out {} * {}.", "Multiply {} by {}.", "What is the product of {} and {}?")


def calculator(split: str, seed: int, digits: int = 5, tool: bool = True, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Multiply 48213 by 90177." -> "4347703701", of two numbers of `digits` digits.

    tool: if true, the record declares the calculator (`tools`), and its `messages` call it and then repeat its result.
    Otherwise `messages` answer directly.
    A product is held out in both orders and all phrasings. `rejected` has one wrong digit.
    """
    if not 1 <= digits <= 15:
        raise UserError(f"calculator: digits={digits} must be in 1…15")
    least = 0 if digits == 1 else 10 ** (digits - 1)

    def draw(rng: random.Random) -> tuple[bool, dict]:
        a, b = rng.randrange(least, 10**digits), rng.randrange(least, 10**digits)
        prompt, answer = rng.choice(QUESTIONS).format(a, b), str(a * b)
        place, other = rng.randrange(len(answer)), rng.randrange(1, 10)
        wrong = answer[:place] + str((int(answer[place]) + other) % 10) + answer[place + 1 :]
        call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": f"{a} * {b}"}}}
        called = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": answer}]
        turns = [*(called if tool else []), {"role": "assistant", "content": answer}]
        record = exercise("calculator", prompt, answer, wrong, messages=[{"role": "user", "content": prompt}, *turns])
        return held_out(f"product {min(a, b)} {max(a, b)}"), record | ({"tools": [CALCULATOR]} if tool else {})

    return records(draw, split, seed, valid)
