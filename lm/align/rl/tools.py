"""What answers a policy in a rollout: tools, whose failed calls are told to it and counted, or an environment."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data.chat.harmony import CALL
from data.chat.messages import Messages, make_message
from data.chat.template import encode_chat, end_of_turn
from data.tasks.arithmetic import CALCULATOR
from data.tasks.expressions import calculate
from lm.errors import UserError
from lm.infer.calls import ERROR, Answer, mistake, shortened
from lm.infer.environments import Make, open_environment
from lm.sandbox.run import Result, run_many

PYTHON = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs a Python program, from nothing, and answers what it prints and the value of its last line.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}
SECONDS, MEMORY_MIB = 5.0, 256  # limits of a program


class Tool(NamedTuple):
    """schema: description for the model in OpenAI's format. run: takes the arguments of many calls, returns their answers."""

    schema: dict[str, Any]
    run: Callable[[list[dict[str, Any]]], list[Answer]]

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


def _calculator(calls: list[dict[str, Any]]) -> list[Answer]:
    def answer(expression: str) -> Answer:
        try:
            return Answer(calculate(expression))
        except ValueError as error:
            return Answer(f"{ERROR}{error}", True)

    return [answer(call["expression"]) for call in calls]


def _python(calls: list[dict[str, Any]]) -> list[Answer]:
    results = run_many([call["code"] for call in calls], timeout=SECONDS, memory_mib=MEMORY_MIB)
    return [Answer(shortened(_output_text(result)), result.outcome != "ok") for result in results]


def _output_text(result: Result) -> str:
    parts = [result.stdout, result.value]
    if result.outcome != "ok":
        parts[1:] = [f"{ERROR}{result.outcome}", result.stderr]
    return "\n".join(part.rstrip("\n") for part in parts if part) or "(no output)"


TOOLS = {tool.name: tool for tool in (Tool(CALCULATOR, _calculator), Tool(PYTHON, _python))}


def open_tools(names: Sequence[str]) -> tuple[Tool, ...]:
    """Return the tools of these names, without duplicates. Raises: UserError for an unknown name."""
    for name in names:
        if name not in TOOLS:
            raise UserError(f"rollout.tools: no tool {name!r}; there are {', '.join(TOOLS)}")
    return tuple(TOOLS[name] for name in dict.fromkeys(names))


def run_calls(tools: Sequence[Tool], calls: Sequence[Sequence[Mapping[str, Any] | str]]) -> list[list[Answer]]:
    """Run the calls of many rollouts, batched by tool, and return their answers in the same structure.

    calls: per rollout, its calls in order: {"name", "arguments"}, or the error text of `parse_turn`. All hosts get the answers
    of the first, because programs may not be deterministic.
    """
    if not any(calls):
        return [[] for _ in calls]
    from lm.parallel.hosts import from_first  # here, because JAX comes with it

    return from_first(lambda: _run_calls(tools, calls))


def _run_calls(tools: Sequence[Tool], calls: Sequence[Sequence[Mapping[str, Any] | str]]) -> list[list[Answer]]:
    named = {tool.name: tool for tool in tools}
    answers: list[list[Answer]] = [[Answer("")] * len(row) for row in calls]
    todo: dict[str, list[tuple[int, int]]] = {name: [] for name in named}
    for i, row in enumerate(calls):
        for j, one in enumerate(row):
            wrong = one if isinstance(one, str) else mistake(one, named)
            if wrong:
                answers[i][j] = Answer(shortened(f"{ERROR}{wrong}"), True)
            else:
                todo[one["name"]].append((i, j))
    for name, places in todo.items():
        if places:
            given = [dict(calls[i][j]["arguments"]) for i, j in places]
            for (i, j), answer in zip(places, named[name].run(given), strict=True):
                answers[i][j] = answer
    return answers


class Surroundings(NamedTuple):
    """What answers the turns of a policy: tools, or else an environment, of which each rollout makes its own."""

    tools: Sequence[Tool] = ()
    environment: Make | None = None

    @property
    def schemas(self) -> list[dict[str, Any]] | None:
        """The schemas of the calls that a policy can make."""
        return [tool.schema for tool in self.tools] or getattr(self.environment, "tools", None)


def open_surroundings(rollout) -> Surroundings:
    """Return the tools and the environment of config.rollout. Raises: UserError for an unknown one."""
    return Surroundings(open_tools(rollout.tools), open_environment(rollout.environment))


def check_turns(tokenizer, surroundings: Surroundings, template: str | None = None) -> None:
    """Raise UserError if the template cannot add the answers of a policy's surroundings to its turns."""
    try:
        if surroundings.schemas:
            answer_ids(tokenizer, ["a"], template)
        if surroundings.environment is not None:
            user_ids(tokenizer, "a", template)
    except UserError as error:
        raise UserError(f"rollout.max_turns: {error}; set it to 1, or another chat_template") from None


def answer_ids(tokenizer, answers: Sequence[str], template: str | None = None, called: Sequence[str] = ()) -> list[int]:
    """Return the ids that follow the end symbol of a turn with tool calls: the answers and the opening of the next turn.

    called: names of the tools, as far as they are known; harmony and other formats write them. The text of an answer never
    becomes a control symbol; see data/chat/template.py.
    Raises: UserError if the template does not support tool answers, or changes earlier turns when an answer is added.
    """
    answers = [answers] if isinstance(answers, str) else list(answers)
    ids = [f"call{n:05d}" for n in range(len(answers))]  # some templates require ids of nine characters
    names = [*called, *["tool"] * len(answers)][: len(answers)]
    calls = [{"id": i, "type": "function", "function": {"name": name, "arguments": {}}} for i, name in zip(ids, names)]
    turn = [make_message("user", "a"), make_message("assistant", "") | {"tool_calls": calls}]
    replies = [{"role": "tool", "content": text, "tool_call_id": i, "name": name} for i, name, text in zip(ids, names, answers)]
    try:
        return _ids_after(tokenizer, turn, replies, template, "a tool has answered it, so it does not support tools")
    except UserError:
        if len(answers) < 2:
            raise
        return answer_ids(tokenizer, ["\n".join(answers)], template, names[:1])  # the template allows one call at a time


def user_ids(tokenizer, text: str, template: str | None = None) -> list[int]:
    """Return the ids that follow the end symbol of a turn: a message of the user and the opening of the next turn."""
    turn, reply = [make_message("user", "a"), make_message("assistant", "b")], [make_message("user", text)]
    return _ids_after(tokenizer, turn, reply, template, "the user has answered it, so it does not support environments")


def _ids_after(tokenizer, turn: Messages, replies: Messages, template: str | None, why: str) -> list[int]:
    """Return the ids after the end symbol of `turn`. Raises: UserError if the template changes the turn; why: what follows."""
    whole = encode_chat(tokenizer, turn + replies, template=template, add_generation_prompt=True).ids
    before = encode_chat(tokenizer, turn, template=template).ids
    ends = end_of_turn(tokenizer, template), tokenizer.controls.get(CALL)  # harmony ends a call otherwise than a text
    ended = max((n for n, i in enumerate(before, 1) if i in ends), default=0)
    if not ended or whole[:ended] != before[:ended]:
        raise UserError(f"chat: the template changes a turn after {why}")
    return whole[ended:]
