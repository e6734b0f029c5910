"""The commands of README.md, of the tutorials and of all other pages do what the pages say.

README.md runs as it stands, on small files and for a few steps. The tutorials run in full, as slow tests. What no test runs is
listed in doc_commands.py with its reason, and checked like all commands of all pages: the flags and keys of the verbs and of
modules, files, targets of make, extras of pip. A program that is unknown there fails.
"""

import ast
import json
import re

import portpicker
import pytest

from tests.docs import command_checks, doc_commands
from tests.docs.doc_inputs import write_inputs
from tests.docs.shorter_commands import shorter
from tests.verbs.conftest import compiled_once, shared  # noqa: F401 (fixtures)

PAGES = doc_commands.pages()
TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/") and re.match(r"\d", page.split("/")[-1])]


def parts_of(page: str) -> list[list[str]]:
    """All simple commands of a page, in blocks and in sentences."""
    lines = [line for block in doc_commands.blocks(page) if block.kind == "commands" for line in doc_commands.commands(block)]
    return [part for line in [*lines, *doc_commands.inline(page)] for part in doc_commands.simple(line)]


def test_every_command_of_every_page_has_flags_that_exist():
    assert command_checks.problems([part for page in PAGES for part in parts_of(page)]) == []


def test_a_wrong_command_is_found():
    wrong = [
        ["python", "train.py", "--config=configs/train/tiny.py", "--config.data.inptu=FILES"],
        ["python", "-m", "lm.generate", "--promt=a"],
        ["make", "dinner"],
        ["pip", "install", "-e", ".[cpu]"],
        ["python", "examples/none.py"],
        ["frobnicate", "--hard"],
    ]
    assert len(command_checks.problems(wrong)) == len(wrong)


def test_python_blocks_are_python():
    for page in PAGES:
        for block in doc_commands.blocks(page):
            if block.kind == "python" or block.title.endswith(".py"):
                ast.parse(block.text, str(block))


@pytest.fixture
def sandbox(tmp_path):
    boxes = []

    def opened(**variables) -> doc_commands.Sandbox:
        boxes.append(doc_commands.Sandbox(tmp_path, portpicker.pick_unused_port(), **variables))
        return boxes[0]

    yield opened
    for box in boxes:
        box.close()


def test_readme(sandbox):
    """All its commands in their order, then its programs, which use what the commands made."""
    box = sandbox()
    write_inputs(box.folder)
    blocks = doc_commands.blocks("README.md")
    before: dict[str, str] = {}  # verb: its last whole command, which … stands for
    for command in (line for block in blocks if block.kind == "commands" for line in doc_commands.commands(block)):
        if doc_commands.not_run(command):
            continue
        verb, _, more = command.partition(" … ")
        if more:
            command = f"{before[verb]} {more}"
        elif command.startswith("python"):
            before[" ".join(command.split()[:2])] = command.split("  #")[0]
        for known in re.findall(r"--config\.compare=(\S+)", command):
            same = re.search(r"--workdir=(\S+)", command)[1]
            box.run(f"mkdir -p {known} && cp -r {same}/. {known}")
        box.run(shorter(command))
    for block in blocks:
        if block.kind == "python":
            given = "import numpy as np\ntokens_BT = np.ones((1, 8), int)\n" if "tokens_BT" in block.text else ""
            box.python(given + block.text)


def test_scripts_of_the_tutorials(sandbox):
    """The files that their here-documents write, and the scripts that need no model."""
    box = sandbox()
    for page in TUTORIALS:
        for block in doc_commands.blocks(page):
            for command in doc_commands.commands(block) if block.kind == "commands" else ():
                if command.startswith(("cat >", "mkdir")) or re.match(r"python (runs/tutorial/(?!ask|users)|-c)", command):
                    box.run(command)
    rows = [json.loads(line) for line in (box.folder / "runs/tutorial/chats.jsonl").read_text().splitlines()]
    assert len(rows) == 1000 and [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]
