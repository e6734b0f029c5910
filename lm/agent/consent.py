"""Who may call which tool: risks that run without asking, grants of single calls, and the question to the user.

Without somebody to ask, the answer is no.
"""

import dataclasses
import fnmatch
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lm.agent.guard import Guard
from lm.agent.tools import RISKS, AgentTool
from lm.errors import UserError

Verdict = Literal["allowed", "granted", "consented", "denied", "refused"]
RUNS = ("allowed", "granted", "consented")  # the verdicts with which a call runs


class Grant(NamedTuple):
    """Calls of a tool that run without asking, whatever was read: each of these arguments must match its pattern."""

    tool: str
    patterns: dict[str, str]

    def matches(self, name: str, arguments: Mapping[str, Any]) -> bool:
        return name == self.tool and all(
            isinstance(value := arguments.get(key), str)
            and ".." not in value.split("/")
            and fnmatch.fnmatchcase(value, pattern)
            for key, pattern in self.patterns.items()
        )

    def text(self) -> str:
        return " ".join([self.tool, *(f"{key}={pattern}" for key, pattern in self.patterns.items())])


@dataclasses.dataclass(frozen=True)
class Consent:
    """allowed: risks that run without asking. grants: calls that do. ask: asks the user, by a text; None: nobody is there."""

    allowed: frozenset[str] = frozenset({"reads"})
    grants: tuple[Grant, ...] = ()
    ask: Callable[[str], bool] | None = None


def permission(tool: AgentTool, arguments: Mapping[str, Any], consent: Consent, guard: Guard | None) -> tuple[Verdict, str]:
    """Return whether a call runs, and by what; and why not. guard: None switches the guard off: only the risk counts."""
    if guard is not None and (reason := guard.refusal(tool.risk, arguments)):
        return "refused", reason
    tainted = guard is not None and guard.tainted(tool.risk)
    if tool.risk in consent.allowed and not tainted:
        return "allowed", ""
    if any(grant.matches(tool.name, arguments) for grant in consent.grants):
        return "granted", ""
    if consent.ask is not None:
        call = f"{tool.name}({json.dumps(arguments, ensure_ascii=False)})"
        after = f", after text from {', '.join(dict.fromkeys(guard.read))}" if guard is not None and tainted else ""
        agreed = consent.ask(f"The agent wants to call {call}. This {tool.risk} something{after}.")
        return ("consented", "") if agreed else ("denied", "the user said no")
    if tool.risk in consent.allowed:
        return "denied", f"untrusted text was read, and nobody is there to confirm what {tool.risk} something"
    return "denied", f"a call that {tool.risk} something needs consent, and nobody is there to ask"


def parse_risks(names: Sequence[str], flag: str = "--allow") -> frozenset[str]:
    """Return risks by name. Raises: UserError for an unknown one."""
    for name in names:
        if name not in RISKS:
            raise UserError(f"{flag}: {name!r} is no risk; there are {', '.join(RISKS)}")
    return frozenset(names)


def parse_grant(text: str, tools: Sequence[AgentTool]) -> Grant:
    """Return the grant "TOOL ARGUMENT=PATTERN …", as in "write_file path=notes/*" or "write_file 'path=my notes/*'".

    Raises: UserError if quotes are not closed, if there is no such tool or argument, or if nothing is said about the arguments
    of a risky tool.
    """
    try:
        name, *parts = shlex.split(text) or [""]
    except ValueError as error:
        raise UserError(f"--grant={text!r}: {error}; put quotes around a part with spaces, as in 'path=my notes/*'") from None
    tool = next((tool for tool in tools if tool.name == name), None)
    if tool is None:
        raise UserError(f"--grant={text!r}: no tool {name!r}; there are {', '.join(tool.name for tool in tools)}")
    known = ((tool.schema["function"].get("parameters") or {}).get("properties") or {}).keys()
    patterns = {}
    for part in parts:
        key, equals, pattern = part.partition("=")
        if not equals or not pattern:
            raise UserError(f"--grant={text!r}: {part!r} must be ARGUMENT=PATTERN, such as path=notes/* or 'path=my notes/*'")
        if key not in known:
            raise UserError(f"--grant={text!r}: {name} has no argument {key!r}, only {', '.join(known)}")
        patterns[key] = pattern
    if not patterns and known:
        raise UserError(f"--grant={text!r} says nothing about the arguments: write {name} {next(iter(known))}=PATTERN")
    return Grant(name, patterns)
