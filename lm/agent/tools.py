"""Tools of an agent: what they are called with, what they may do (their risk), and whether their answers can be trusted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.infer.calls import ERROR, Answer, shortened

# What a tool does beyond computing. reads: it looks at the user's data. writes: it changes something. runs: it executes code.
# sends: it may pass its arguments on to others, so that the network counts as that.
RISKS = ("reads", "writes", "runs", "sends")


class AgentTool(NamedTuple):
    """A tool that an agent may call.

    schema: its description in OpenAI's format. run: takes the arguments of a call and the seconds left, returns the answer; it
    raises nothing that a model's arguments cause. risk: one of RISKS. trusted: its answers depend on nothing but its arguments,
    so no stranger can have written them. origin: the flag that named it, for errors.
    """

    schema: Mapping[str, Any]
    run: Callable[[dict[str, Any], float], Answer]
    risk: str
    trusted: bool = False
    origin: str = "--tools"

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


def schema(name: str, description: str, required: Sequence[str] = (), **properties: str) -> dict[str, Any]:
    """Return a schema in OpenAI's format. properties: name of an argument -> its JSON type."""
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(required),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def check_tools(tools: Sequence[AgentTool]) -> None:
    """Raise UserError if two tools have the same name, or a tool has no risk of RISKS."""
    known: dict[str, AgentTool] = {}
    for tool in tools:
        if tool.name in known:
            other = known[tool.name].origin
            raise UserError(f"{tool.origin} has a tool {tool.name!r}, and so has {other}: leave one of them out")
        if tool.risk not in RISKS:
            raise UserError(f"tool {tool.name}: its risk {tool.risk!r} is none of {', '.join(RISKS)}")
        known[tool.name] = tool


def answering(run: Callable[..., str]) -> Callable[[dict[str, Any], float], Answer]:
    """Return `AgentTool.run` of a function that takes the arguments of a call by name. Its errors become failed answers."""

    def answer(arguments: dict[str, Any], seconds: float) -> Answer:
        try:
            return Answer(shortened(run(**arguments)))
        except (UserError, OSError, ValueError) as error:
            return Answer(f"{ERROR}{getattr(error, 'strerror', None) or error}", True)

    return answer
