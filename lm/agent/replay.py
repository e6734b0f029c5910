"""Replay a trace: run the loop again from the record alone. No model and no tool runs, and the result is the same.

With other rules, a replay tells what they would have decided, such as whether the guard would have stopped a call.
"""

from typing import Any

from lm.agent.budget import Budget
from lm.agent.consent import RUNS, Consent, Grant
from lm.agent.loop import Rules, run
from lm.agent.models import Said
from lm.agent.tools import AgentTool
from lm.agent.trace import Trace
from lm.align.rl.tools import Answer


def replayed(trace: Trace, **changes: Any) -> Trace:
    """Run the loop again with the recorded turns, answers, decisions of the user and times.

    changes: other rules, such as guard=False. A call that the record did not run, and that now may run, is not run either: its
    answer says so.
    """
    rules, clock = trace.rules, Clock()
    turns, records = iter(trace.turns), iter(trace.calls)
    now: dict[str, Any] = {}

    def model(messages, schemas, tokens, seconds) -> Said:
        turn = next(turns, None)
        if turn is None:
            raise KeyboardInterrupt  # where the recorded run was interrupted, or its rules ended it
        clock.now += turn["seconds"]
        return Said(turn["content"], turn["asked"], turn["wrong"], turn["tokens"], turn["finish"])

    def answer(arguments: dict[str, Any], seconds: float) -> Answer:
        record = now["call"]
        clock.now += record["seconds"]
        if record["outcome"] not in RUNS:
            return Answer("(the record has no answer, because this call was not run)", True)
        return Answer(record["text"], record.get("failed", False))

    def tell(kind: str, text: str) -> None:
        if kind == "call":
            now["call"] = next(records, None)
            if now["call"] is None:
                raise KeyboardInterrupt

    def ask(question) -> bool:
        return now["call"]["outcome"] == "consented"

    tools = [AgentTool(tool["schema"], answer, tool["risk"], tool["trusted"]) for tool in trace.tools]
    grants = tuple(Grant(grant["tool"], grant["patterns"]) for grant in rules["grants"])
    consent = Consent(frozenset(rules["allowed"]), grants, ask if rules["asks"] else None)
    kept = {key: rules[key] for key in ("guard", "mark", "plan", "system")}
    again = Rules(**({"budget": Budget(**rules["budget"]), "consent": consent} | kept | changes))
    return run(model, tools, trace.task, again, name=trace.model, tell=tell, clock=clock)


class Clock:
    """A clock that stands still unless it is told to go on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def differences(trace: Trace, other: Trace) -> list[str]:
    """Return how two traces differ in what was said, called and decided; [] if they are the same run."""
    found = []
    for n, (one, two) in enumerate(zip(trace.messages, other.messages)):
        if one != two:
            found.append(f"message {n + 1} ({one['role']}) differs")
    for n, (one, two) in enumerate(zip(trace.calls, other.calls)):
        if (one["outcome"], one["reason"]) != (two["outcome"], two["reason"]):
            found.append(f"call {n + 1}, {one['name']}: {one['outcome']}, now {two['outcome']}")
    for what in ("finish", "answer", "tokens"):
        if getattr(trace, what) != getattr(other, what):
            found.append(f"{what}: {getattr(trace, what)!r}, now {getattr(other, what)!r}")
    if len(trace.messages) != len(other.messages):
        found.append(f"{len(trace.messages)} messages, now {len(other.messages)}")
    return found
