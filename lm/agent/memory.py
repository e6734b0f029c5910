"""The personal store of lm.personal as tools: search its passages, and keep a note in it.

The search is by words (BM25), since the vectors of the store belong to the model that it remembers. What is found may hold the
words of a stranger, such as a letter, so it is untrusted data like a file.
"""

import time

from lm.agent.models import on_this_machine
from lm.agent.tools import AgentTool, answering, schema
from lm.errors import UserError
from lm.personal.index import Index, Passage
from lm.personal.items import note
from lm.personal.store import Store

PASSAGES = 5  # that a search finds at most
SEARCH_MEMORY = schema("search_memory", "Finds passages of the user's notes, files and exchanges.", ("text",), text="string")
ADD_NOTE = schema("add_note", "Keeps a note for the user.", ("text",), text="string")


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
        return "\n".join(_told(one.passage) for one in found[1].search(text, PASSAGES)) or "(nothing is found)"

    def keep(text: str) -> str:
        return "kept the note" if store.add([note(text)]) else "the note was there already"

    return [AgentTool(SEARCH_MEMORY, answering(search), "reads"), AgentTool(ADD_NOTE, answering(keep), "writes")]


def check_private(url: str) -> None:
    """Raise UserError if the model at `url` is not on this machine: it would get the passages that a search finds."""
    if not on_this_machine(url):
        raise UserError(f"--url={url} would get your notes from --home: serve the model on this machine, or give --checkpoint")


def _told(passage: Passage) -> str:
    item = passage.item
    day = time.strftime("%Y-%m-%d", time.localtime(item.time))
    return f"[{' '.join(filter(None, (item.id, day, item.kind, item.name)))}] {passage.text}"
