"""Questions about a small stockroom that need three look-ups in tables and one calculation.

The tables depend on the number of the stockroom. They are in the record of a question, not in its prompt; `Stockroom`
answers the calls. All questions about a stockroom are in the same split.
"""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from data.tasks.actions import ERROR, parsed_call
from data.tasks.answers import final_answer, same_answer
from data.tasks.arithmetic import CALCULATOR
from data.tasks.expressions import calculate
from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Returns the entry of a key in a table: keeps, stock, price or sold.",
        "parameters": {
            "type": "object",
            "properties": {"table": {"type": "string"}, "key": {"type": "string"}},
            "required": ["table", "key"],
        },
    },
}
STOCKROOM_TOOLS = [LOOK_UP, CALCULATOR]
PEOPLE = ("Ana", "Ben", "Eva", "Kim", "Leo", "Mia", "Tom", "Zoe")
GOODS = ("tin", "rope", "salt", "soap", "tea", "wool", "corn", "silk")
NUMBERS = {"stock": (40, 99), "price": (2, 9), "sold": (20, 39)}  # ranges of the tables' entries
# Questions with the two tables to look up, and the sign between their entries.
QUESTIONS = {
    "What is all that {} keeps worth?": ("stock", "price", "*"),
    "What did the goods of {} bring?": ("sold", "price", "*"),
    "How many goods of {} are left?": ("stock", "sold", "-"),
}
UNKNOWN = "unknown"
ADDS = 0.4  # share of the hasty demonstrations that add
NEEDED, MAX = 4, 8  # calls that an answer needs, and of a demonstration at most

Tables = Mapping[str, Mapping[str, str]]


def look_up(tables: Tables, table: str, key: str) -> str:
    """Return the entry of `key` in a table. Raises: ValueError if there is no such table or key."""
    if table not in tables:
        raise ValueError(f"there is no table {table!r}, only {', '.join(tables)}")
    if key not in tables[table]:
        raise ValueError(f"table {table} has no key {key!r}")
    return tables[table][key]


class Stockroom:
    """The environment of the task.

    An episode: calls of look_up and calculator, and at last an answer, which ends it. Its reward is 1 if it is right.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict]:
        """Begin with the question of a record. options: a record."""
        self._record = options or {}
        prompt = self._record["prompt"]
        return prompt if isinstance(prompt, str) else prompt[-1]["content"], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """Take a call, {"name": …, "arguments": {…}}, or any other text as the answer."""
        call = parsed_call(action)
        if call is None:
            right = same_answer(final_answer(action), final_answer(self._record["answer"]))
            return "", float(right), True, False, {}
        try:
            return self._answered(call["name"], call["arguments"]), 0.0, False, False, {}
        except (TypeError, ValueError) as error:
            return f"{ERROR}{error}", 0.0, False, False, {}

    def _answered(self, name: str, arguments: dict[str, Any]) -> str:
        if name == "look_up":
            return look_up(self._record["tables"], **arguments)
        if name == "calculator":
            return calculate(**arguments)
        raise ValueError(f"there is no tool {name!r}, only look_up, calculator")


def worked_out(first: str, sign: str, second: str) -> str:
    a, b = int(first), int(second)
    return str({"*": a * b, "-": a - b, "+": a + b}[sign])


def stockroom(split: str, seed: int, haste: float = 0.0, skill: float = 1.0, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Stockroom 4821: What is all that Kim keeps worth?" -> "584", with their tables.

    The right way is to look up what Kim keeps, how much of it is there and its price, and to multiply. `messages` go this way
    unless told otherwise: with probability `haste` the assistant answers after 0 to 3 calls with the last it saw, which is too
    early, or it adds instead of the right calculation; and each call is the right one with probability `skill`, otherwise any.
    Such demonstrations teach how calls are written, and not which ones to make. `answer` is always right.
    """
    if not 0 <= haste <= 1 or not 0 < skill <= 1:
        raise UserError(f"stockroom: haste={haste} must be in [0, 1] and skill={skill} in (0, 1]")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        number = rng.randrange(1000, 10000)
        tables = tables_of(number)
        person, question = rng.choice([*tables["keeps"]]), rng.choice([*QUESTIONS])
        (first, second, sign), one = QUESTIONS[question], tables["keeps"][person]
        answer = worked_out(tables[first][one], sign, tables[second][one])
        prompt = f"Stockroom {number}: {question.format(person)}"
        record = exercise("stockroom", prompt, answer, str(int(answer) + rng.choice((-1, 1, 10))), tables=tables)
        turns = _worker(rng, tables, person, QUESTIONS[question], haste, skill)
        return held_out(f"stockroom {number}"), record | {"messages": [{"role": "user", "content": prompt}, *turns]}

    return records(draw, split, seed, valid)


def stockroom_text(split: str, seed: int, valid: int = 500) -> Iterator[dict]:
    """Yield records {"text"}: hasty demonstrations as plain text, schemas of tools, and numbers that are repeated."""
    rng = random.Random(f"stockroom_text {split} {seed}")
    for n, record in enumerate(stockroom(split, seed, haste=0.5, skill=0.5, valid=valid)):
        lines = [json.dumps(tool) for tool in STOCKROOM_TOOLS] if n % 16 == 0 else []
        practice = [turn for _ in range(2) for turn in _repeated(rng)]
        for message in [*record["messages"], *practice]:
            calls = [json.dumps(call["function"]) for call in message.get("tool_calls", ())]
            lines.append(f"{message['role']}: {' '.join((message['content'], *calls)).strip()}")
        yield {"text": "\n".join(lines)}


def _repeated(rng: random.Random) -> list[dict[str, Any]]:
    """Return turns in which numbers that stand before are written again: any two in a calculation, and then its result."""
    numbers = [str(rng.randint(2, 99)) for _ in range(rng.randint(2, 3))]
    long = str(rng.randrange(10 ** rng.randint(3, 9)))
    (a, b), sign = rng.sample(numbers, 2), rng.choice("*-+")
    result = worked_out(a, sign, b)
    told = [{"role": "tool", "content": text} for text in (*numbers, result)]
    call = _call("calculator", {"expression": f"{a} {sign} {b}"})
    said = [{"role": role, "content": text} for role, text in (("assistant", result), ("tool", long), ("assistant", long))]
    return [*told[:-1], call, told[-1], *said]


def tables_of(number: int) -> dict[str, dict[str, str]]:
    """Return the tables of a stockroom: who keeps what, and the stock, the price and the sold pieces of each good."""
    rng = random.Random(f"stockroom {number}")
    people, goods = rng.sample(PEOPLE, 3), rng.sample(GOODS, 3)
    entries = {name: {one: str(rng.randint(*span)) for one in goods} for name, span in NUMBERS.items()}
    return {"keeps": dict(zip(people, goods)), **entries}


def _worker(rng: random.Random, tables: Tables, person: str, wanted, haste: float, skill: float) -> list[dict[str, Any]]:
    """Return the turns of a worker, and the answers to its calls."""
    (first, second, sign), known, turns, names = wanted, {}, [], [person]
    seen, result = UNKNOWN, None
    hasty = rng.random() < haste
    adds = hasty and rng.random() < ADDS
    for _ in range(rng.randrange(NEEDED) if hasty and not adds else MAX):
        if result is not None:
            break
        if rng.random() < skill:
            name, arguments = _right(known, person, first, second, "+" if adds else sign)
        else:
            name, arguments = _any(rng, names, list(known.values()))
        turns.append(_call(name, arguments))
        if name == "look_up":
            try:
                seen = look_up(tables, **arguments)
                known |= {(arguments["table"], arguments["key"]): seen}
                names += [seen] * (arguments["table"] == "keeps" and seen not in names)
            except ValueError as error:
                turns.append({"role": "tool", "content": f"error: {error}"})
                continue
        else:
            a, sign_, b = arguments["expression"].split()
            seen = worked_out(a, sign_, b)
            one = known.get(("keeps", person))
            if (a, sign_, b) == (known.get((first, one)), "+" if adds else sign, known.get((second, one))):
                result = seen
        turns.append({"role": "tool", "content": seen})
    return [*turns, {"role": "assistant", "content": seen}]


def _right(known: dict, person: str, first: str, second: str, sign: str) -> tuple[str, dict[str, str]]:
    if (one := known.get(("keeps", person))) is None:
        return "look_up", {"table": "keeps", "key": person}
    for table in (first, second):
        if (table, one) not in known:
            return "look_up", {"table": table, "key": one}
    return "calculator", {"expression": f"{known[first, one]} {sign} {known[second, one]}"}


def _any(rng: random.Random, names: list[str], values: list[str]) -> tuple[str, dict[str, str]]:
    numbers = [value for value in values if value.isdecimal()]
    if len(numbers) > 1 and rng.random() < 0.5:
        a, b = rng.sample(numbers, 2)
        return "calculator", {"expression": f"{a} {rng.choice('*-+')} {b}"}
    return "look_up", {"table": rng.choice(["keeps", *NUMBERS]), "key": rng.choice(names)}


def _call(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}
