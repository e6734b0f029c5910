"""The loop of an agent: plan, call a tool, observe its answer, and so on up to an answer, under a budget."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.chat.messages import Messages, make_message
from lm.agent.consent import RUNS, Consent, permission
from lm.agent.guard import Guard, marked
from lm.agent.models import Model, Said
from lm.agent.records import Trace
from lm.agent.tools import AgentTool, check_tools
from lm.errors import UserError
from lm.infer.calls import ERROR, Answer, mistake

PLAN = "First write a plan in a few lines: which tools you will call, and in which order. Call none yet."
GO = "Carry out the plan."
BLOCKED = "not run: "


@dataclasses.dataclass(frozen=True)
class Budget:
    """steps: turns of the model. tokens: those that it writes. seconds: of the whole run, with its tools."""

    steps: int = 16
    tokens: int = 4096
    seconds: float = 300.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise UserError(f"--{name}={value} must be above 0")


class Meter:
    """What is spent of a budget. clock: returns seconds; the time between two calls of it counts."""

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic):
        self.budget, self.clock = budget, clock
        self.steps = self.tokens = 0
        self._begin = clock()

    def seconds(self) -> float:
        return self.clock() - self._begin

    def seconds_left(self) -> float:
        return max(0.0, self.budget.seconds - self.seconds())

    def tokens_left(self) -> int:
        return max(0, self.budget.tokens - self.tokens)

    def spend(self, tokens: int) -> None:
        self.steps += 1
        self.tokens += tokens

    def spent(self) -> str:
        """Return what is used up: "steps", "tokens", "seconds" or ""."""
        if self.steps >= self.budget.steps:
            return "steps"
        if not self.tokens_left():
            return "tokens"
        return "" if self.seconds_left() else "seconds"


@dataclasses.dataclass(frozen=True)
class Rules:
    """How an agent works.

    guard: whether lm/agent/guard.py checks calls. mark: whether untrusted answers are marked as data. plan: whether the model
    first writes a plan. system: the system message; "": none.
    """

    budget: Budget = Budget()
    consent: Consent = Consent()
    guard: bool = True
    mark: bool = True
    plan: bool = False
    system: str = ""


def run(
    model: Model,
    tools: Sequence[AgentTool],
    task: str,
    rules: Rules = Rules(),
    *,
    name: str = "",
    tell: Callable[[str, str], None] = lambda kind, text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Trace:
    """Let a model work on a task, and return the trace of all that happened, up to Ctrl-C ("interrupted").

    Errors of calls and of tools are told to the model. A call that is not permitted is answered with the reason.
    name: of the model, for the trace. tell: gets each event as it happens: its kind (plan, thought, call, answer, blocked) and
    text. clock: as in Meter.
    Raises: UserError if two tools share a name, or if the model cannot be asked.
    """
    check_tools(tools)
    guard = Guard([task, rules.system, *(grant.text() for grant in rules.consent.grants)]) if rules.guard else None
    messages = [make_message("system", rules.system)] if rules.system else []
    messages.append(make_message("user", task))
    trace = Trace.begun(task, tools, rules, name)
    work = _Work(model, tools, rules, guard, Meter(rules.budget, clock), trace, messages, tell)
    try:
        if rules.plan:
            work.plan()
        trace.finish = work.finish()
    except KeyboardInterrupt:
        trace.finish = "interrupted"
    trace.messages, trace.tokens, trace.seconds = messages, work.meter.tokens, work.meter.seconds()
    return trace


@dataclasses.dataclass
class _Work:
    """A run that goes on."""

    model: Model
    tools: Sequence[AgentTool]
    rules: Rules
    guard: Guard | None
    meter: Meter
    trace: Trace
    messages: Messages
    tell: Callable[[str, str], None]

    def plan(self) -> None:
        """Ask for a plan. Its turn counts as a step; it has no tools, so that it cannot call any."""
        said, seconds = self.ask([*self.messages, make_message("user", PLAN)], ())
        plan = self.trace.plan = said.content.strip()
        self.trace.add_turn(said, seconds, plan=True)
        self.tell("plan", plan)
        self.messages += [make_message("user", PLAN), make_message("assistant", plan), make_message("user", GO)]

    def finish(self) -> str:
        """Work until the model answers or the budget is spent. Return how it ended: "answer" or what is used up."""
        schemas = [tool.schema for tool in self.tools]
        while not (spent := self.meter.spent()):
            said, seconds = self.ask(self.messages, schemas)
            turn = self.trace.add_turn(said, seconds)
            if said.finish == "timeout":
                return "seconds"
            if said.finish == "length" and not self.meter.tokens_left():
                return "tokens"
            message = make_message("assistant", said.content)
            if not said.calls and not said.errors:
                self.messages.append(message)
                self.trace.answer = said.content.strip()
                self.tell("answer", self.trace.answer)
                return "answer"
            if said.content.strip():
                self.tell("thought", said.content.strip())
            functions = [{"type": "function", "function": dict(call)} for call in said.calls]
            self.messages.append(message | ({"tool_calls": functions} if functions else {}))
            for call in said.calls:
                if not self.meter.seconds_left():
                    return "seconds"
                self.messages.append(make_message("tool", self.call(call, turn)) | {"name": call["name"]})
            if self.guard is not None:  # after the turn: the model had not read the answers when it wrote its other calls
                for call in turn["calls"]:
                    if call["untrusted"]:
                        self.guard.observe(call["name"], call["text"])
            for error in said.errors:
                turn["errors"].append(error)
                self.messages.append(make_message("tool", f"{ERROR}{error}"))
        return spent

    def ask(self, messages: Messages, schemas: Sequence[Mapping]) -> tuple[Said, float]:
        """Return the model's next turn, and the seconds that it took."""
        begin = self.meter.seconds()
        said = self.model(messages, schemas, self.meter.tokens_left(), self.meter.seconds_left())
        self.meter.spend(said.tokens)
        return said, self.meter.seconds() - begin

    def call(self, call: Mapping[str, Any], turn: dict) -> str:
        """Run one call if it is permitted, record it in its turn, and return the text that the model gets."""
        name, arguments = call["name"], call["arguments"]
        named = {tool.name: tool for tool in self.tools}
        self.tell("call", f"{name}({json.dumps(arguments, ensure_ascii=False)})")
        begin = self.meter.seconds()
        record = {"name": name, "arguments": arguments, "outcome": "invalid", "reason": "", "untrusted": False}
        if wrong := mistake(call, named):
            answer = Answer(f"{ERROR}{wrong}", True)
        else:
            tool = named[name]
            verdict, reason = permission(tool, arguments, self.rules.consent, self.guard)
            record |= {"outcome": verdict, "reason": reason}
            if verdict in RUNS:
                answer = tool.run(dict(arguments), self.meter.seconds_left())
                record |= {"untrusted": not tool.trusted, "failed": answer.failed}
            else:
                answer = Answer(f"{BLOCKED}{reason}", True)
        turn["calls"].append(record | {"text": answer.text, "seconds": self.meter.seconds() - begin})
        self.tell("blocked" if answer.text.startswith(BLOCKED) else "observation", answer.text)
        return marked(name, answer.text) if self.rules.mark and record["untrusted"] else answer.text
