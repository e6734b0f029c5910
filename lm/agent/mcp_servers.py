"""Tools of MCP servers (Model Context Protocol), which are started as programs and asked over their standard streams.

A server declares what its tools do in annotations; without one, the protocol's default counts: a tool may write, and may reach
the world outside. Its answers are untrusted. It gets no variable of this process's environment but those that a program needs
to start, such as PATH.
"""

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from lm.agent.tools import AgentTool, shortened
from lm.align.rl.tools import ERROR, Answer
from lm.errors import UserError

START = 60.0  # seconds in which a server must have told its tools


@contextlib.contextmanager
def open_server(command: str, risks: Mapping[str, str] | None = None) -> Iterator[list[AgentTool]]:
    """Start a server and yield its tools; the server ends with the block.

    command: as on a shell, such as "python -m mcp_server_time". risks: name of a tool -> its risk, in place of its annotations.
    Raises: UserError if `mcp` is not installed, or if the server cannot be started or does not answer.
    """
    try:
        from anyio.from_thread import start_blocking_portal
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client
    except ImportError:
        raise UserError(f"--mcp={command!r} needs mcp: pip install -r requirements-agent.txt") from None
    try:
        program, *arguments = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--mcp={command!r} is no command: {error}") from None
    if shutil.which(program) is None:
        raise UserError(f"--mcp={command!r}: there is no program {program}; give a command that starts a server")
    with contextlib.ExitStack() as stack:
        quiet = stack.enter_context(open(os.devnull, "w"))
        portal = stack.enter_context(start_blocking_portal())
        server = stdio_client(StdioServerParameters(command=program, args=arguments), errlog=quiet)
        try:
            client = stack.enter_context(portal.wrap_async_context_manager(Client(server, read_timeout_seconds=START)))
            listed = portal.call(client.list_tools).tools
        except Exception as error:
            raise UserError(f"--mcp={command!r}: the server does not answer ({_reason(error)}); try the command") from None

        def tool(described) -> AgentTool:
            function = {"name": described.name, "description": described.description or ""}
            function["parameters"] = described.input_schema or {"type": "object", "properties": {}}

            def run(given: dict[str, Any], seconds: float) -> Answer:
                async def call():
                    return await client.call_tool(described.name, given, read_timeout_seconds=max(0.001, seconds))

                try:
                    return _answer(portal.call(call))
                except Exception as error:
                    return Answer(f"{ERROR}{_reason(error)}"[:2000], True)

            risk = (risks or {}).get(described.name) or risk_of(described.annotations)
            return AgentTool({"type": "function", "function": function}, run, risk)

        yield [tool(described) for described in listed]


def risk_of(annotations) -> str:
    """Return the risk of a tool with these annotations of the protocol; None: it has none.

    A tool that reaches an open world sends, whether or not it only reads there: its arguments leave this machine.
    """
    if annotations is None or annotations.open_world_hint is not False:
        return "sends"
    return "reads" if annotations.read_only_hint else "writes"


def _answer(result) -> Answer:
    parts = []
    for part in result.content:
        text = getattr(part, "text", None) or getattr(getattr(part, "resource", None), "text", None)
        parts.append(text if isinstance(text, str) else f"({part.type})")
    text = "\n".join(parts)
    if not text and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False)
    text = shortened(text) or "(no output)"
    return Answer(f"{ERROR}{text}" if result.is_error else text, bool(result.is_error))


def _reason(error: BaseException) -> str:
    """Return the innermost reason of an error that a task group may have wrapped, on one line."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
