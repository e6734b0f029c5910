"""The built-in tools: a calculator, Python in the sandbox, the files of a folder, and a personal store."""

from collections.abc import Sequence
from pathlib import Path

from data.tasks.arithmetic import CALCULATOR
from lm.agent.files import LIST, READ, SEARCH, WRITE, file_tools
from lm.agent.memory import ADD_NOTE, SEARCH_MEMORY, memory_tools
from lm.agent.tools import AgentTool
from lm.align.rl.tools import PYTHON, TOOLS
from lm.errors import UserError
from lm.personal.store import open_store

FILES = tuple(schema["function"]["name"] for schema in (LIST, SEARCH, READ, WRITE))
MEMORY = tuple(schema["function"]["name"] for schema in (SEARCH_MEMORY, ADD_NOTE))
GROUPS = {"files": FILES[:3], "memory": MEMORY[:1]}  # those that only read


def _calculator() -> AgentTool:
    tool = TOOLS[CALCULATOR["function"]["name"]]
    return AgentTool(CALCULATOR, lambda arguments, seconds: tool.run([arguments])[0], "reads", trusted=True)


def _python() -> AgentTool:
    tool = TOOLS[PYTHON["function"]["name"]]
    return AgentTool(PYTHON, lambda arguments, seconds: tool.run([arguments])[0], "runs", trusted=True)


COMPUTING = {"calculator": _calculator, "python": _python}


def open_tools(names: Sequence[str], folder: str = "", home: str = "", passphrase_file: str = "") -> list[AgentTool]:
    """Return the built-in tools of these names, or of GROUPS, without duplicates.

    folder: the one that tools of files are confined to. home: the personal store, which passphrase_file opens, or what
    lm/personal/key.py asks for without it. Raises: UserError for an unknown name, or a folder or store that is missing.
    """
    known = (*COMPUTING, "files", *FILES, "memory", *MEMORY)
    asked: list[str] = []
    for name in names:
        if name not in known:
            raise UserError(f"--tools: no tool {name!r}; there are {', '.join(known)}")
        asked += GROUPS.get(name, (name,))
    made: dict[str, AgentTool] = {}
    if _needs(FILES, asked, folder, "folder", "name the folder that {} is confined to", "files to --tools, or write_file"):
        if not Path(folder).is_dir():
            raise UserError(f"--folder={folder}: no such folder; name one that exists")
        made |= {tool.name: tool for tool in file_tools(Path(folder))}
    if _needs(MEMORY, asked, home, "home", "name the store of lm.personal for {}", "memory to --tools, or add_note"):
        store = open_store(Path(home).expanduser().absolute(), passphrase_file)
        made |= {tool.name: tool for tool in memory_tools(store)}
    return [COMPUTING[name]() if name in COMPUTING else made[name] for name in dict.fromkeys(asked)]


def _needs(tools: Sequence[str], asked: Sequence[str], given: str, flag: str, missing: str, unused: str) -> bool:
    """Return whether one of these tools is asked for. Raises: UserError if its flag is missing, or given without need."""
    wanted = [name for name in asked if name in tools]
    if wanted and not given:
        raise UserError(f"--{flag} is missing: {missing.format(wanted[0])}")
    if given and not wanted:
        raise UserError(f"--{flag}={given}: no tool uses it; add {unused}")
    return bool(wanted)
