"""Tools of MCP servers (Model Context Protocol), which are started as programs and asked over their standard streams.

A server declares what its tools do in annotations; without one, the protocol's default counts: a tool may write, and may reach
the world outside. Its answers are untrusted. It gets no variable of this process's environment but those that a program needs
to start, such as PATH. lm/agent/relay.py stands between, which shortens endless lines.
"""

import contextlib
import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import pydantic

from lm.agent.tools import AgentTool
from lm.errors import UserError
from lm.files.untrusted import short, shown
from lm.infer.calls import ERROR, Answer, shortened

START = 60.0  # seconds in which a server must have told its tools
OTHER = "use another version of the server, or leave it out"
MAX_PAGES, MAX_TOOLS = 100, 1000  # of a server's list
RELAY = (sys.executable, "-I", "-S", str(Path(__file__).with_name("relay.py")))
LAST = 4000  # bytes of what a server writes on its stderr that are kept
NAME = re.compile(r"\S{1,128}")  # of a tool


@contextlib.contextmanager
def open_server(command: str, risks: Mapping[str, str] | None = None) -> Iterator[list[AgentTool]]:
    """Start a server and yield its tools; the server ends with the block.

    command: as on a shell, such as "python -m mcp_server_time". risks: name of a tool -> its risk, in place of its annotations.
    Raises: UserError if `mcp` is not installed, if the server cannot be started or does not answer, or if its list of tools is
    wrong or endless.
    """
    try:
        from anyio.from_thread import start_blocking_portal
        from mcp import StdioServerParameters
    except ImportError:
        raise UserError(f"--mcp={command!r} needs mcp: pip install -r requirements/agent.txt") from None
    try:
        program, *arguments = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--mcp={command!r} is no command: {error}") from None
    if shutil.which(program) is None:
        raise UserError(f"--mcp={command!r}: there is no program {program}; give a command that starts a server")
    log = logging.getLogger("mcp")  # it prints a traceback for each line that is no message
    log.handlers, log.propagate = [_Unread()], False
    first, *others = (*RELAY, program, *arguments)
    parameters = StdioServerParameters(command=first, args=others, encoding_error_handler="replace")
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        errors, last_line = stack.enter_context(_stderr())
        session = portal.wrap_async_context_manager(_session(parameters, errors))
        try:
            client, listed = session.__enter__()
        except Exception as error:
            errors.close()
            raise UserError(f"--mcp={command!r}: {_why_not(error, last_line())}") from None
        stack.callback(_close, session)

        def tool(described) -> AgentTool:
            function = {"name": described.name, "description": described.description or ""}
            function["parameters"] = described.input_schema or {"type": "object", "properties": {}}

            def run(given: dict[str, Any], seconds: float) -> Answer:
                async def call():
                    return await client.call_tool(described.name, given, read_timeout_seconds=max(0.001, seconds))

                try:
                    return _answer(portal.call(call))
                except Exception as error:
                    return Answer(f"{ERROR}{_reason(_innermost(error))}", True)

            risk = (risks or {}).get(described.name) or risk_of(described.annotations)
            return AgentTool({"type": "function", "function": function}, run, risk, origin=f"--mcp={command!r}")

        yield [tool(described) for described in listed]


@contextlib.asynccontextmanager
async def _session(parameters, errors: TextIO) -> AsyncIterator[tuple[Any, list]]:
    """Yield (client, its tools) of a server that is started. Raises: UserError, TimeoutError, and errors of `mcp` in groups."""
    import anyio
    from mcp import Client
    from mcp.client.stdio import stdio_client

    with anyio.fail_after(START) as start:
        async with Client(stdio_client(parameters, errlog=errors), read_timeout_seconds=START) as client:
            listed = await _listed(client)
            start.deadline = math.inf
            yield client, listed


@contextlib.contextmanager
def _stderr() -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """Yield (a file for the error stream of a server, a function that returns the last line that was written there)."""
    read, write = os.pipe()
    kept = bytearray()

    def drain() -> None:
        with open(read, "rb", buffering=0) as file:
            while some := file.read(1 << 16):
                kept.extend(some)
                del kept[:-LAST]

    def last_line() -> str:
        thread.join(1.0)  # a grandchild may keep the stream open
        return next((line for line in reversed(kept.decode("utf-8", "replace").splitlines()) if line.strip()), "")

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with open(write, "w") as file:
        yield file, last_line


class _Unread(logging.Handler):
    """Tells of the first line of a server that is no message. The run goes on without such lines."""

    is_told = False

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if isinstance(error, pydantic.ValidationError) and not self.is_told:
            self.is_told = True
            line = short(error.errors()[0]["input"])
            print(f"agent: an MCP server wrote what is no message, and is left out: {line}", file=sys.stderr, flush=True)


def _close(session) -> None:
    """End a session without the error of its block, which its task groups would wrap. A server may be dead already."""
    with contextlib.suppress(Exception):
        session.__exit__(None, None, None)


async def _listed(client) -> list:
    """Return the tools of all pages of a server's list. Raises: UserError if it is too long, or a tool is wrong."""
    found, cursor, cursors = [], None, set()
    while True:
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor in cursors or len(cursors) >= MAX_PAGES or len(found) > MAX_TOOLS:
            count = f"{len(found)} tools on {len(cursors) + 1} pages"
            raise UserError(f"the server's list of tools is too long or has no end: {count} so far; {OTHER}")
        if not cursor:
            break
        cursors.add(cursor)
    for tool in found:
        _check(tool)
    return found


def _check(tool) -> None:
    """Raise UserError if the name or the schema of a tool is invalid."""
    from jsonschema.validators import validator_for

    if not NAME.fullmatch(tool.name) or shown(tool.name) != tool.name:
        raise UserError(f"the server has a tool named {short(tool.name)}, not in 1 to 128 visible characters; {OTHER}")
    try:
        validator_for(tool.input_schema).check_schema(tool.input_schema)
    except Exception as error:  # besides SchemaError, whatever a hostile schema makes of the validator
        reason = getattr(error, "message", None) or type(error).__name__
        raise UserError(f"the server's tool {tool.name!r} has a bad schema ({short(reason)}); {OTHER}") from None


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
    whole = len(text)
    text = shortened(text) or "(no output)"
    if whole > len(text):
        text = f"(the answer has {whole} characters; its middle is left out)\n{text}"
    return Answer(f"{ERROR}{text}" if result.is_error else text, bool(result.is_error))


def _innermost(error: BaseException) -> BaseException:
    """Return the error that task groups may have wrapped."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


def _reason(error: BaseException) -> str:
    """Return an error on one line."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return shown(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")[:300]
    return shown(" ".join(str(error).split()) or type(error).__name__)[:300]


def _why_not(error: BaseException, last_line: str) -> str:
    """Return why a server does not start, and the cure. last_line: of its stderr."""
    error = _innermost(error)
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, pydantic.ValidationError):
        return f"the server answers what the protocol does not allow ({_reason(error)}); {OTHER}"
    why = f"in {START:g} seconds" if isinstance(error, TimeoutError) else f"({_reason(error)})"
    cure = f"it wrote {short(last_line)}" if last_line else "run the command itself to see why"
    return f"the server does not answer {why}; {cure}"
