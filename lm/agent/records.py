"""Show, replay or export the traces of `python -m lm.agent --traces=FILE`.

    python -m lm.agent.records show traces.jsonl
    python -m lm.agent.records replay traces.jsonl [--guard=off]
    python -m lm.agent.records export traces.jsonl --out=conversations.jsonl [--all]

replay runs no model and no tool, and says whether anything differs from the record: exit code 1 if so. export writes the runs
that came to an answer as conversations for align.py --config=configs/align/sft.py; --all writes every run.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from lm import cli
from lm.agent.consent import RUNS, Consent, Grant
from lm.agent.loop import Budget, Rules, run
from lm.agent.models import Said
from lm.agent.tools import AgentTool
from lm.agent.trace import Trace, conversations, read, told
from lm.align.rl.tools import Answer
from lm.errors import UserError
from lm.files import saving

GUARD = {"on": {"guard": True}, "off": {"guard": False}, "": {}}


def main() -> None:
    parser = cli.ArgumentParser(
        prog="python -m lm.agent.records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("show", "replay", "export"))
    parser.add_argument("traces", type=Path)
    parser.add_argument("--out", type=Path, help="export: the file to write")
    parser.add_argument("--all", action="store_true", help="export: also runs without an answer or with calls that did not run")
    parser.add_argument("--guard", choices=("on", "off"), default="", help="replay: with the guard switched so")
    given = parser.parse_args()
    traces = read(given.traces)
    if given.what == "show":
        print("\n\n".join(map(told, traces)))
    elif given.what == "export":
        _export(traces, given.out, given.all)
    else:
        sys.exit(_replay(traces, GUARD[given.guard]))


def _export(traces, out: Path | None, every: bool) -> None:
    if out is None or out.suffix != ".jsonl":
        raise UserError(f"--out={out or ''} must name a file that ends in .jsonl")
    rows = list(conversations(traces, ended=not every))
    if not rows:
        raise UserError(f"of {len(traces)} runs none came to an answer with all its calls run; --all exports them too")
    saving.write_lines(out, rows)
    print(f"{len(rows)} of {len(traces)} runs are in {out}")


def _replay(traces, changes: dict) -> int:
    wrong = 0
    for n, trace in enumerate(traces, start=1):
        found = differences(trace, replayed(trace, **changes))
        wrong += bool(found)
        print(f"run {n}: " + ("; ".join(found) or "the same"))
    return int(bool(wrong) and not changes)


def replayed(trace: Trace, **changes: Any) -> Trace:
    """Run the loop again with the recorded turns, answers, decisions of the user and times.

    changes: other rules, such as guard=False. A call that the record did not run, and that now may run, is not run either: its
    answer says so.
    """
    rules = trace.rules
    turns, records = iter(trace.turns), iter(trace.calls)
    now: dict[str, Any] = {"seconds": 0.0}  # and the "call" that the loop is at

    def model(messages, schemas, tokens, seconds) -> Said:
        turn = next(turns, None)
        if turn is None:
            raise KeyboardInterrupt  # where the recorded run was interrupted, or its rules ended it
        now["seconds"] += turn["seconds"]
        return Said(turn["content"], turn["asked"], turn["wrong"], turn["tokens"], turn["finish"])

    def answer(arguments: dict[str, Any], seconds: float) -> Answer:
        record = now["call"]
        now["seconds"] += record["seconds"]
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
    return run(model, tools, trace.task, again, name=trace.model, tell=tell, clock=lambda: now["seconds"])


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


if __name__ == "__main__":
    with cli.guard():
        main()
