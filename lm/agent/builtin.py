"""The built-in tools: a calculator, Python in the sandbox, and the files of a folder."""

from collections.abc import Sequence
from pathlib import Path

from data.tasks.calculator import CALCULATOR
from lm.agent.files import LIST, READ, SEARCH, WRITE, file_tools
from lm.agent.tools import AgentTool
from lm.align.rl.tools import PYTHON, TOOLS
from lm.errors import UserError

FILES = tuple(schema["function"]["name"] for schema in (LIST, SEARCH, READ, WRITE))


def _calculator() -> AgentTool:
    tool = TOOLS[CALCULATOR["function"]["name"]]
    return AgentTool(CALCULATOR, lambda arguments, seconds: tool.run([arguments])[0], "reads", trusted=True)


def _python() -> AgentTool:
    tool = TOOLS[PYTHON["function"]["name"]]
    return AgentTool(PYTHON, lambda arguments, seconds: tool.run([arguments])[0], "runs", trusted=True)


COMPUTING = {"calculator": _calculator, "python": _python}


def open_tools(names: Sequence[str], folder: str = "") -> list[AgentTool]:
    """Return the built-in tools of these names, without duplicates. files: those of lm/agent/files.py that only read.

    folder: the one that tools of files are confined to. Raises: UserError for an unknown name, or a folder that is missing.
    """
    known = (*COMPUTING, "files", *FILES)
    asked: list[str] = []
    for name in names:
        if name not in known:
            raise UserError(f"--tools: no tool {name!r}; there are {', '.join(known)}")
        asked += FILES[:3] if name == "files" else (name,)
    of_files: dict[str, AgentTool] = {}
    if wanted := [name for name in asked if name in FILES]:
        if not folder:
            raise UserError(f"--folder is missing: name the folder that {wanted[0]} is confined to")
        if not Path(folder).is_dir():
            raise UserError(f"--folder={folder}: no such folder; name one that exists")
        of_files = {tool.name: tool for tool in file_tools(Path(folder))}
    elif folder:
        raise UserError(f"--folder={folder}: no tool uses it; add files to --tools, or write_file")
    return [COMPUTING[name]() if name in COMPUTING else of_files[name] for name in dict.fromkeys(asked)]
