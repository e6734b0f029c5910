"""The blocks and commands of the documentation, and a copy of the repository to run them in.

How an author marks a block, by the word after the fence:

    ```bash        commands, run in their order; an indented block whose first word could be a program is the same
    ```python      a program
    ```diff        a change of files of the repository, for `git apply`
    ```text, ```yaml, …   something to read
    any of them after a line that is only `FILE`:   the content of that file

Words in capitals (DIR, FILES), [options], KEY=VALUE and … are places for the reader's own.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import portpicker
from markdown_it import MarkdownIt

from tests.verbs import runs
from tests.verbs.forks import Fork, can_fork

REPOSITORY = runs.REPOSITORY
PROGRAMS = frozenset(
    "cat cp curl cut docker echo export git grep head hf llama-cli lm_eval ls make mkdir ollama openssl pip printf python "
    "sed sha256sum sleep source tail vllm".split()
)
FILE = re.compile(r"`([\w./-]+)`:")
PROGRAM = re.compile(r"[a-z][\w./-]*")
COPIED = ("benchmarks", "configs", "data", "examples", "lm")
ASSIGNMENTS = re.compile(r"(?:[A-Z][A-Z0-9_]*=\S* )*")
ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")
HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
OPTIONAL = re.compile(r"\[(--[^]]*)\]")
SEPARATORS = (";", "&", "&&", "|", "||", "(", ")")


class Block(NamedTuple):
    """line: its first line in the page, from 1. kind: commands, python, diff, file, or the language of what is only read."""

    page: str
    line: int
    kind: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """README.md and all pages of docs/, as paths in the repository."""
    return ["README.md", *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md"))]


def blocks(page: str) -> list[Block]:
    found, before = [], ""
    for token in MarkdownIt("commonmark").parse((REPOSITORY / page).read_text()):
        if token.type == "inline":
            before = token.content
        elif token.type in ("fence", "code_block"):
            language, title = token.info.split(" ")[0], FILE.fullmatch(before)
            if language in ("bash", "sh") or (token.type == "code_block" and PROGRAM.fullmatch(_program(token.content))):
                kind = "commands"
            else:
                kind = "file" if title else language
            found.append(Block(page, token.map[0] + 1, kind, title[1] if title else "", token.content))
            before = ""
    return found


def _program(text: str) -> str:
    words = text.removeprefix("$ ").split()
    return next((word for word in words if not ASSIGNMENT.match(word)), "")


def inline(page: str) -> list[str]:
    """The commands that stand in the middle of a sentence or of a table, such as `python -m lm.sweep`."""
    tokens = MarkdownIt("commonmark").enable("table").parse((REPOSITORY / page).read_text())
    spans = [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]
    return [span for span in spans if re.match(r"(python|make|pip|hf) |(curate|train|align|evaluate|serve)\.py --", span)]


def commands(block: Block) -> list[str]:
    """The commands of a block as a shell reads them: with continued lines, and with the lines of a here-document."""
    lines = block.text.splitlines()
    if lines[0].startswith("$ "):  # a command and what it prints
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found: list[str] = []
    rest = iter(lines)
    for line in rest:
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" ") and found:  # further [options] of the line before
            found[-1] += " " + line.strip()
            continue
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + next(rest).strip()
        if document := HEREDOC.search(line):
            for more in rest:
                line += "\n" + more
                if more.strip() == document[2]:
                    break
        while not document and _is_open(line):
            line += "\n" + next(rest)
        found.append(line)
    return found


def _is_open(line: str) -> bool:
    """Return whether a quotation goes on in the next line."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return False


def simple(command: str) -> list[list[str]]:
    """The words of each simple command of a line: of `A=1 python x.py | tail -n 1` ["python", "x.py"] and ["tail", …]."""
    lexer = shlex.shlex(OPTIONAL.sub(r"\1", HEREDOC.split(command)[0]), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word in SEPARATORS:
            parts.append([])
        elif parts[-1] or not ASSIGNMENT.match(word):
            parts[-1].append(word)
    return [part for part in parts if part]


class Sandbox:
    """A copy of the repository in which commands of a page run one after another; the repository itself is not written."""

    def __init__(self, folder: Path, port: int, **variables: str):
        self.folder, self.port, self.server = folder, port, None
        self.changed = False  # whether its code differs from the repository's
        folder.mkdir(exist_ok=True)
        for path in REPOSITORY.iterdir():
            if path.name in COPIED:
                shutil.copytree(path, folder / path.name)
            elif path.is_file() and path.name != ".git":
                shutil.copy(path, folder)
        mine = {name: value for name, value in runs.environment(**variables).items() if name != "PYTHONPATH"}
        self.environment = mine | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}",
            "GIT_CEILING_DIRECTORIES": str(folder.parent),
        }

    def run(self, command: str) -> str:
        """Run a command with bash, and return what it prints.

        A server is started and stays until the next one, or the end; clients find it at the port of this sandbox.
        A variable that is exported stays too.
        """
        command = self._with_port(command)
        if command.startswith("export "):
            name, _, value = shlex.split(command)[1].partition("=")
            self.environment[name] = value
            return ""
        if is_server(command):
            return self._serve([*shlex.split(command, comments=True), f"--config.port={self.port}"])
        code, said = self._forked(command) or self._in_bash(command)
        assert code == 0, f"{command}\n{said[-4000:]}"
        return said

    def _forked(self, command: str) -> tuple[int, str] | None:
        """Return the exit code and the output of one plain call of a verb or a module of lm; None for all else."""
        words = shlex.split(command, comments=True)
        if self.changed or [words] != simple(command) or words[0] != "python":
            return None
        words[0] = sys.executable
        if not can_fork(words, self.environment):
            return None
        with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as said:
            streams = [nothing.fileno(), said.fileno(), said.fileno()]
            code = Fork(words, self.environment, streams, self.folder).wait(runs.DEADLINE)
            said.seek(0)
            return code, said.read().decode(errors="replace")

    def _in_bash(self, command: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=runs.DEADLINE,
        )
        return done.returncode, done.stdout.decode(errors="replace")

    def _serve(self, words: list[str]) -> str:
        self.close()
        self.server = subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said = ""
        for line in self.server.stdout:
            said += line
            if " answers at " in line:
                return said
        raise AssertionError(f"{shlex.join(words)}\n{said[-4000:]}")

    def _with_port(self, text: str) -> str:
        return re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", rf"\1:{self.port}", text)

    def python(self, code: str) -> str:
        (self.folder / "block.py").write_text(self._with_port(code))
        return self.run("PYTHONPATH=. python block.py")

    def block(self, block: Block) -> str:
        """Run all that a block says."""
        if block.kind == "commands":
            return "".join(self.run(command) for command in commands(block) if not_run(command) is None)
        if block.kind == "python":
            return self.python(block.text)
        self.changed |= block.kind in ("diff", "file")
        if block.kind == "diff":
            for change in re.split(r"^(?=--- )", block.text, flags=re.MULTILINE)[1:]:
                (self.folder / "change.diff").write_text(change)
                self.run("git apply --recount change.diff")
        if block.kind == "file":
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        return ""

    def close(self) -> None:
        """Stop the server, as Ctrl-C does."""
        if self.server is not None:
            self.server.terminate()
            self.server.stdout.read()
            assert self.server.wait(runs.DEADLINE) == 0
            self.server = None


@contextlib.contextmanager
def opened(folder: Path, **variables: str) -> Iterator[Sandbox]:
    """A sandbox in a new folder, whose server is stopped at the end."""
    box = Sandbox(folder, portpicker.pick_unused_port(), **variables)
    try:
        yield box
        box.close()
    finally:
        if box.server is not None:
            box.server.kill()


def is_server(command: str) -> bool:
    return " serve.py " in f" {command}" and "config.batch" not in command


# What no test runs, and why. Each is checked as far as it can be: tests/docs/test_commands.py.
NOT_RUN = {
    r"make (assistant|chat|demo|docs|lint|serve|setup|speedrun|test|test-slow|bench)\b": "installs packages, or takes long",
    r"pip install\b": "installs packages",
    r"source \.venv/bin/activate": "the tests run in an environment of their own",
    r"ollama |llama-cli |vllm |docker |curl localhost:8000/v2/": "programs that the tests do not install",
    r"hf download|lm_eval ": "needs a network, or a server of its own",
}


def not_run(command: str) -> str | None:
    """Return why no test runs a command, or None."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)
