"""The reader's own files, which README.md names: text, chats, pairs, tasks, a reward, a published model.

Their first lines are those that README.md shows below its commands.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

from tests.docs.doc_commands import blocks
from tests.lm.evals import tiny_models


def write_inputs(folder: Path, page: str = "README.md") -> None:
    """Write all of them into the folder in which the commands run."""
    for n, text in enumerate(text for text in topics.values() if len(text) > 4000):
        (folder / "books" / f"shelf{n % 2}").mkdir(parents=True, exist_ok=True)
        (folder / "books" / f"shelf{n % 2}" / f"{n}.txt").write_text(text)
    asked = [f"Where is key {n}?" for n in range(80)]
    shown = shown_lines(page)
    given = {
        "chats.jsonl": [
            {"messages": [_said("user", text), _said("assistant", f"Under mat {n}.")]} for n, text in enumerate(asked)
        ],
        "pairs.jsonl": [{"prompt": text, "chosen": "Under the mat.", "rejected": "No."} for text in asked],
        "tasks.jsonl": [{"prompt": text} for text in asked],
    }
    for name, rows in given.items():
        (folder / name).write_text("".join(f"{line}\n" for line in [*shown[name], *map(json.dumps, rows)]))
    (folder / "my_rewards.py").write_text("".join(shown["my_rewards.py"]) + "\n")
    (folder / "made").mkdir()
    shutil.copytree(tiny_models.published(folder / "made")[1], folder / "smollm2")


def shown_lines(page: str) -> dict[str, list[str]]:
    """Return by file the lines that stand in comments below the command, or beside the name, that reads it."""
    shown: dict[str, list[str]] = {}
    for block in blocks(page):
        name = ""
        for line in block.text.splitlines() if block.kind == "commands" else ():
            name = (_names(line) or [name])[-1]
            if not line.startswith("#"):
                continue
            if row := re.search(r"\{.*\}", line):
                json.loads(row[0])
                shown.setdefault(name, []).append(row[0])
            elif code := re.match(r"# (def .*)", line):
                shown.setdefault("my_rewards.py", []).append(code[1])
    return shown


def _names(line: str) -> Iterable[str]:
    return re.findall(r"[\w-]+\.jsonl\b", line)


def _said(role: str, content: str) -> dict:
    return {"role": role, "content": content}
