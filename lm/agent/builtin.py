"""The built-in tools: a calculator, Python in the sandbox, the files of a folder (lm/agent/files.py), and a personal store.

The store is searched by words (BM25), since its vectors belong to the model that it remembers. What is found may hold the words
of a stranger, such as a letter, so it is untrusted data like a file.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from data.tasks.arithmetic import CALCULATOR
from lm.agent.files import LIST, READ, SEARCH, WRITE, file_tools
from lm.agent.tools import AgentTool, answering, schema
from lm.align.rl.tools import PYTHON, TOOLS
from lm.errors import UserError
from lm.personal.index import Index, Passage
from lm.personal.items import note
from lm.personal.store import Store, open_store

PASSAGES = 5  # of the store, that a search finds at most
SEARCH_MEMORY = schema("search_memory", "Finds passages of the user's notes, files and exchanges.", ("text",), text="string")
ADD_NOTE = schema("add_note", "Keeps a note for the user.", ("text",), text="string")
FILES = tuple(schema["function"]["name"] for schema in (LIST, SEARCH, READ, WRITE))
MEMORY = tuple(schema["function"]["name"] for schema in (SEARCH_MEMORY, ADD_NOTE))
GROUPS = {"files": FILES[:3], "memory": MEMORY[:1]}  # those that only read


def _computing(schema: dict, risk: str) -> AgentTool:
    """Return a tool of rollouts as one of an agent."""
    run = TOOLS[schema["function"]["name"]].run
    return AgentTool(schema, lambda arguments, seconds: run([arguments])[0], risk, trusted=True)


COMPUTING = {"calculator": _computing(CALCULATOR, "reads"), "python": _computing(PYTHON, "runs")}


def open_tools(names: Sequence[str], folder: str = "", home: str = "", passphrase_file: str = "") -> list[AgentTool]:
    """Return the built-in tools of these names, or of GROUPS, without duplicates.

    folder: the one that tools of files are confined to. home: the personal store, which passphrase_file opens, or what
    lm/personal/key.py asks for without it. Raises: UserError for an unknown name, or a folder or store that is missing.
    """
    known = (*COMPUTING, "files", *FILES, "memory", *MEMORY)
    if unknown := next((name for name in names if name not in known), None):
        raise UserError(f"--tools: no tool {unknown!r}; there are {', '.join(known)}")
    asked = dict.fromkeys(tool for name in names for tool in GROUPS.get(name, (name,)))
    made = dict(COMPUTING)
    for group, tools, flag, value, what in (
        ("files", FILES, "folder", folder, "folder"),
        ("memory", MEMORY, "home", home, "store of lm.personal"),
    ):
        wanted = [name for name in asked if name in tools]
        if wanted and not value:
            raise UserError(f"--{flag} is missing: name the {what} for {wanted[0]}")
        if value and not wanted:
            raise UserError(f"--{flag}={value}: no tool uses it; add {group} to --tools")
    if folder:
        if not Path(folder).is_dir():
            raise UserError(f"--folder={folder}: no such folder; name one that exists")
        made |= {tool.name: tool for tool in file_tools(Path(folder))}
    if home:
        store = open_store(Path(home).expanduser().absolute(), passphrase_file)
        made |= {tool.name: tool for tool in memory_tools(store)}
    return [made[name] for name in asked]


def memory_tools(store: Store) -> list[AgentTool]:
    """Return search_memory (risk: reads) and add_note (writes) of an open store, which others may change meanwhile."""
    found: tuple[list[str], Index] | None = None

    def search(text: str) -> str:
        nonlocal found
        if not text.strip():
            raise UserError("the text to search for is empty")
        if found is None or found[0] != store.ids():  # what was forgotten meanwhile is not found
            items = store.items()
            found = [item.id for item in items], Index(items)
        return "\n".join(map(_told, found[1].search(text, PASSAGES))) or "(nothing is found)"

    def keep(text: str) -> str:
        return "kept the note" if store.add([note(text)]) else "the note was there already"

    return [AgentTool(SEARCH_MEMORY, answering(search), "reads"), AgentTool(ADD_NOTE, answering(keep), "writes")]


def _told(passage: Passage) -> str:
    item = passage.item
    day = time.strftime("%Y-%m-%d", time.localtime(item.time))
    return f"[{' '.join(filter(None, (item.id, day, item.kind, item.name)))}] {passage.text}"
