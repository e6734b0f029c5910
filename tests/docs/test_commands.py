"""The commands of README.md work, and those of all other pages have flags that exist.

README.md runs as it stands, on small files and for a few steps; the tutorials run in test_tutorials.py, docs/extend.md in
test_extend.py. What no test runs is listed in doc_commands.py (NOT_RUN) with its reason. All commands of all pages are checked:
flags and keys of verbs and modules, files, targets of make, extras of pip. An unknown program fails.
"""

import ast
import importlib
import importlib.util
import json
import re

import pytest

from tests.docs import command_checks, doc_commands
from tests.docs.doc_inputs import write_inputs
from tests.docs.shorter_commands import shorter
from tests.verbs.conftest import shared  # noqa: F401 (fixtures)

PAGES = doc_commands.pages()
TUTORIALS = sorted(
    (page for page in PAGES if re.match(r"docs/tutorials/\d", page)), key=lambda page: int(re.findall(r"\d+", page)[0])
)


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


def test_python_blocks_import_what_is_there():
    for block in (block for page in PAGES for block in doc_commands.blocks(page)):
        if block.kind != "python" and not block.title.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(block.text, str(block))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("lm", "data", "configs"):
                for name in node.names if block.page != "docs/extend.md" else ():  # which adds some, and runs
                    found = importlib.import_module(node.module)
                    assert hasattr(found, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}"), str(block)


@pytest.fixture
def sandbox(tmp_path):
    with doc_commands.opened(tmp_path / "clone") as box:
        yield box


def test_readme(sandbox):
    """All its commands in their order, then its programs, which use what the commands made."""
    write_inputs(sandbox.folder)
    found = doc_commands.blocks("README.md")
    for command in (line for block in found if block.kind == "commands" for line in doc_commands.commands(block)):
        if doc_commands.not_run(command) is None:
            sandbox.run(shorter(command))
    for block in found:
        if block.kind == "python":
            sandbox.block(block)


def test_commands_shown_with_their_output_print_it(sandbox):
    """Blocks that begin with `$ `."""
    for page in PAGES:
        for block in doc_commands.blocks(page):
            if block.text.startswith("$ "):
                said = [line.split() for command in doc_commands.commands(block) for line in sandbox.run(command).splitlines()]
                for line in block.text.splitlines():
                    assert line.startswith("$ ") or not line.strip() or line.split() in said, f"{block}: {line}"


def test_scripts_of_the_tutorials(sandbox):
    """The files that their here-documents write, and the scripts that need no model."""
    for page in TUTORIALS:
        for block in doc_commands.blocks(page):
            for command in doc_commands.commands(block) if block.kind == "commands" else ():
                if re.match(r"cat >|mkdir|python -c|(PYTHONPATH=. )?python runs/tutorial/(?!ask|users|mixed)", command):
                    sandbox.run(command)
    rows = [json.loads(line) for line in (sandbox.folder / "runs/tutorial/chats.jsonl").read_text().splitlines()]
    assert len(rows) == 1000 and [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]
