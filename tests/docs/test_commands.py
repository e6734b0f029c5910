"""The commands of README.md, of the tutorials and of all other pages do what the pages say.

README.md runs as it stands, on small files and for a few steps. The tutorials run in full, as slow tests. What no test runs is
listed in doc_commands.py with its reason, and checked like all commands of all pages: the flags and keys of the verbs and of
modules, files, targets of make, extras of pip. A program that is unknown there fails.
"""

import ast
import json
import re
import shlex

import portpicker
import pytest

from tests.docs import command_checks, doc_commands
from tests.docs.doc_inputs import write_inputs
from tests.verbs.conftest import compiled_once, shared  # noqa: F401 (fixtures)

PAGES = doc_commands.pages()
TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/") and re.match(r"\d", page.split("/")[-1])]
TINY = {
    "batch_size": 8,
    "sequence_length": 64,
    "dtype": "float32",
    "valid_batches": 1,
    "model.vocab_size": 512,
    "model.num_layers": 1,
    "model.embed_dim": 32,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.head_dim": 16,
    "model.mlp_dim": 64,
    "samples": "()",
}
ALIGNED = {
    "steps": 2,
    "batch_size": 8,
    "sequence_length": 256,
    "valid_batches": 1,
    "num_samples": 1,
    "data.max_examples": 40,
    "rollout.max_new_tokens": 4,
    "rollout.max_prompt_tokens": 200,
}
SAFETY = {"safety.limit": 2, "safety.train_families": "direct", "safety.held_out_families": "rot13", "sequence_length": 512}
SAFETY |= {"safety.sft.steps": 1, "safety.dpo.steps": 1, "safety.sft.batch_size": 4, "safety.dpo.batch_size": 4}


def shortened(words: list[str]) -> list[str]:
    """Further arguments that make a command of a verb short: none of a key that the page sets itself."""
    verb = next((word for word in words if word in command_checks.VERBS), "")
    keys: dict = {}
    if verb == "train.py" and not any(word.startswith("--describe") for word in words):
        keys = {"steps": 3, **TINY}
    elif verb == "align.py":
        keys = ALIGNED | (SAFETY if any("safety" in word for word in words) else {})
    elif verb == "evaluate.py":
        keys = {"limit": 2, "num_fewshot": 0, "max_length": 256}
    elif verb == "serve.py":
        keys = {"blocks": 64, "rows": 4}
    given = {word.removeprefix("--config.").split("=")[0] for word in words}
    return [f"--config.{key}={value}" for key, value in keys.items() if key not in given]


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
    before: dict[str, list[str]] = {}  # verb: the words of its last whole command, which … stands for
    for command in (line for block in blocks if block.kind == "commands" for line in doc_commands.commands(block)):
        if doc_commands.not_run(command):
            continue
        parts = doc_commands.simple(command)
        if len(parts) > 1:
            box.run(command)
            continue
        words, prefix = parts[0], doc_commands.ASSIGNMENTS.match(command)[0]
        if "…" in words:
            at = words.index("…")
            words = [*before[words[1]], *words[at + 1 :]]
        elif len(words) > 1:
            before[words[1]] = words
        for known in re.findall(r"--config\.compare=(\S+)", command):
            box.run(f"mkdir -p {known} && cp -r {option(words, 'workdir')}/. {known}")
        box.run(prefix + shlex.join([*words, *shortened(words)]))
    for block in blocks:
        if block.kind == "python":
            given = "import numpy as np\ntokens_BT = np.ones((1, 8), int)\n" if "tokens_BT" in block.text else ""
            box.python(given + block.text)


def option(words: list[str], name: str) -> str:
    return next(word.split("=", 1)[1] for word in words if word.startswith(f"--{name}="))


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
