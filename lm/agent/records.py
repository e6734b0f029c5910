"""Traces, the records of an agent's work: show them, or export them as training data.

    python -m lm.agent.records show traces.jsonl
    python -m lm.agent.records export traces.jsonl --out=conversations.jsonl [--all]

`python -m lm.agent --traces=FILE` writes them, one JSON object a run: the rules, the tools, every turn of the model, every call
with the decision about it and its answer, and the whole conversation. export writes the runs that came to an answer as
conversations for align.py --config=configs/align/sft.py; --all writes every run.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.chat.messages import Messages
from lm import cli
from lm.agent.consent import RUNS
from lm.agent.models import Said
from lm.agent.tools import AgentTool
from lm.errors import UserError
from lm.files import saving
from lm.files.untrusted import content, shown

FINISHES = ("answer", "steps", "tokens", "seconds", "interrupted")
VERSION = 1


@dataclasses.dataclass
class Trace:
    """tools: per tool {"schema", "risk", "trusted"}. turns: per turn of the model {"content", "tokens", "seconds", "finish",
    "plan", "asked": [calls as the model wrote them], "calls": [{"name", "arguments", "outcome", "reason", "text", "untrusted",
    "seconds"}], "errors"}. outcome: a verdict of lm/agent/consent.py, or "invalid". finish: one of FINISHES."""

    task: str
    model: str
    rules: dict[str, Any]
    tools: list[dict[str, Any]]
    turns: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    messages: Messages = dataclasses.field(default_factory=list)
    plan: str = ""
    answer: str = ""
    finish: str = ""
    tokens: int = 0
    seconds: float = 0.0
    version: int = VERSION

    @classmethod
    def begun(cls, task: str, tools: Sequence[AgentTool], rules: Any, model: str) -> "Trace":
        """Return the trace of a run that begins. rules: of lm/agent/loop.py."""
        consent = rules.consent
        settings = {
            "budget": dataclasses.asdict(rules.budget),
            "allowed": sorted(consent.allowed),
            "grants": [{"tool": grant.tool, "patterns": grant.patterns} for grant in consent.grants],
            "asks": consent.ask is not None,
            **{key: getattr(rules, key) for key in ("guard", "mark", "plan", "system")},
        }
        described = [{"schema": dict(tool.schema), "risk": tool.risk, "trusted": tool.trusted} for tool in tools]
        return cls(task, model, settings, described)

    def add_turn(self, said: Said, seconds: float, plan: bool = False) -> dict[str, Any]:
        """Append a turn of the model and return its record, which takes the calls."""
        turn = {"content": said.content, "tokens": said.tokens, "seconds": seconds, "finish": said.finish, "plan": plan}
        turn |= {"asked": [dict(call) for call in said.calls], "wrong": list(said.errors), "calls": [], "errors": []}
        self.turns.append(turn)
        return turn

    @property
    def calls(self) -> list[dict[str, Any]]:
        """All calls, in order."""
        return [call for turn in self.turns for call in turn["calls"]]

    @property
    def ran(self) -> list[dict[str, Any]]:
        """The calls that were run, in order."""
        return [call for call in self.calls if call["outcome"] in RUNS]


def append(path: Path, trace: Trace) -> None:
    """Add a trace to a JSONL file as one line. A line that a crash cut is ended first, so that it costs only itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(dataclasses.asdict(trace), ensure_ascii=True).encode() + b"\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Trace]:
    """Return the traces of a file; lines that a crash cut are left out. Raises: UserError if it is no file of traces."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a file that --traces has written")
    found, names = [], {field.name for field in dataclasses.fields(Trace)}
    for number, line in enumerate(content(path, None).decode("utf-8", "replace").splitlines(), start=1):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if not isinstance(values, dict) or values.get("version") != VERSION or not {"task", "turns", "rules"} <= values.keys():
            raise UserError(f"{path}: line {number} is no trace of an agent; name a file that --traces has written")
        found.append(Trace(**{key: value for key, value in values.items() if key in names}))
    return found


def conversations(traces: Iterable[Trace], ended: bool = True) -> Iterator[dict[str, Any]]:
    """Yield conversations {"messages", "tools"} that align.py --config=configs/align/sft.py reads.

    ended: only of runs that came to an answer and in which every call was run.
    """
    for trace in traces:
        if ended and (trace.finish != "answer" or len(trace.ran) < len(trace.calls)):
            continue
        yield {"messages": trace.messages, "tools": [tool["schema"] for tool in trace.tools]}


def told(trace: Trace) -> str:
    """Return a trace as text for people."""
    lines = [f"task: {shown(trace.task)}", f"model: {shown(trace.model)}"]
    lines += [f"plan: {shown(trace.plan)}"] if trace.plan else []
    for n, turn in enumerate(trace.turns, start=1):
        said = shown(turn["content"].strip())
        lines.append(f"{n}. ({turn['tokens']} tokens, {turn['seconds']:.2f} s) {said}".rstrip())
        lines += [_told_call(call) for call in turn["calls"]]
        lines += [f"   wrong call: {shown(error)}" for error in turn["errors"]]
    return "\n".join(
        [*lines, f"finish: {trace.finish}, {trace.tokens} tokens, {trace.seconds:.1f} s", f"answer: {shown(trace.answer)}"]
    )


def _told_call(call: Mapping[str, Any]) -> str:
    why = f" ({call['reason']})" if call["reason"] else ""
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    return f"   {shown(call['name'])}({shown(arguments)}): {call['outcome']}{why} -> {shown(call['text'])[:200]}"


def main() -> None:
    parser = cli.ArgumentParser(
        prog="python -m lm.agent.records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("show", "export"))
    parser.add_argument("traces", type=Path)
    parser.add_argument("--out", type=Path, help="export: the file to write")
    parser.add_argument("--all", action="store_true", help="export: also runs without an answer or with calls that did not run")
    given = parser.parse_args()
    traces = read(given.traces)
    if given.what == "show":
        print("\n\n".join(map(told, traces)))
        return
    if given.out is None or given.out.suffix != ".jsonl":
        raise UserError(f"--out={given.out or ''} must name a file that ends in .jsonl")
    rows = list(conversations(traces, ended=not given.all))
    if not rows:
        raise UserError(f"of {len(traces)} runs none came to an answer with all its calls run; --all exports them too")
    saving.write_lines(given.out, rows)
    print(f"{len(rows)} of {len(traces)} runs are in {given.out}")


if __name__ == "__main__":
    with cli.guard():
        main()
