"""Check commands of the documentation without running them: their flags and keys, files, targets of make, extras of pip.

`problems` is what a test calls. Run as a program, it parses lines of arguments as the verbs do, each in a child process of its
own, because flags can only be parsed once: JSON lists from standard input, a JSON list of messages or null to standard output.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from lm.cli import config_files
from lm.errors import UserError
from tests.docs.doc_commands import PROGRAMS, REPOSITORY
from tests.verbs import runs

VERBS = {"curate.py": "curate", "train.py": "train", "align.py": "align", "evaluate.py": "evaluate", "serve.py": "serve"}
MODULES = {"lm.sweep": "train"}  # which take --config too
OWN = re.compile(r"…|KEY=VALUE|\.key=value|^[A-Z_]+$")  # what the reader fills in
NUMBER = re.compile(r"^(--config\.[\w.]+=)N$")


def problems(parts: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each simple command that is wrong: an unknown program, flag, key, file, target or extra."""
    found, to_parse = [], []
    for words in dict.fromkeys(map(tuple, parts)):
        words = [word for word in words if not OWN.search(word)]
        if words and words[0] == "python":
            words = words[1:]
        elif words and words[0] not in VERBS:
            found += [f"{' '.join(words)}: {why}" for why in _of_program(words)]
            continue
        if not words:
            continue
        if words[0] in VERBS:
            to_parse.append(_arguments(words[0], VERBS[words[0]], words[1:]))
        elif words == ["-m"]:  # of a module with … in its name
            continue
        elif words[0] == "-m":
            found += [f"python {' '.join(words)}: {why}" for why in _of_module(words[1], words[2:])]
            if words[1] in MODULES:
                own = [w for w in words[2:] if w.startswith(("--config", "--workdir"))]
                to_parse.append(_arguments("train.py", MODULES[words[1]], own))
        elif words[0] == "-c":
            ast.parse(words[1])
        elif not words[0].startswith(("runs/", "my_")) and not (REPOSITORY / words[0]).is_file():
            found.append(f"python {' '.join(words)}: no file {words[0]}")
    return found + [message for message in _parsed(to_parse) if message]


def _of_program(words: Sequence[str]) -> list[str]:
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        done = subprocess.run(["make", "-n", *targets], cwd=REPOSITORY, capture_output=True, text=True)
        return [done.stderr.strip()] if done.returncode else []
    if words[0] == "pip":
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
        known = project["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
        extras = [name for word in words if (match := re.search(r"\[(.+)\]$", word)) for name in match[1].split(",")]
        files = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-r"]
        return [f"no extra {name}" for name in extras if name not in known] + [
            f"no file {name}" for name in files if not (REPOSITORY / name).is_file()
        ]
    return [] if words[0] in PROGRAMS else ["a program that tests/docs neither runs nor lists"]


def _of_module(module: str, words: Sequence[str]) -> list[str]:
    """Flags of a module stand in its source as words of their own."""
    base = REPOSITORY / module.replace(".", "/")
    file = base / "__main__.py" if base.is_dir() else base.with_suffix(".py")
    if module.split(".")[0] not in ("lm", "data", "benchmarks"):
        return []
    if not file.is_file():
        return [f"no module {module}"]
    source = file.read_text()
    flags = [re.match(r"--(?:no)?([\w-]+)", word) for word in words if not word.startswith("--config")]
    names = [flag[1] for flag in flags if flag and flag[1] != "workdir" and flag[1] != "help"]
    return [f"no flag --{name} in {module}" for name in names if not re.search(rf"['\"(](?:--)?{re.escape(name)}\b", source)]


def _arguments(script: str, verb: str, words: Sequence[str]) -> list[str]:
    """The arguments of a verb that can be parsed: with a config and a workdir, and values for what the reader fills in."""
    words = [NUMBER.sub(r"\g<1>1", word) for word in words]
    config = next((word.removeprefix("--config=") for word in words if word.startswith("--config=")), "")
    try:
        config = config_files.find(config.replace("METHOD", "sft"), verb)
    except UserError:  # the reader's own
        config = f"configs/{verb}/default.py"
    words = [word for word in words if not word.startswith("--config=")]
    if not any(word.startswith("--workdir") for word in words):
        words.append("--workdir=DIR")
    return [script, f"--config={config}", *words]


def _parsed(lines: Sequence[Sequence[str]]) -> list[str | None]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.command_checks"],
        input=json.dumps(lines),
        cwd=REPOSITORY,
        env=runs.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _parse(arguments: list[str]) -> str | None:
    from absl import flags

    from lm import cli
    from lm.errors import UserError

    sys.argv = list(arguments)
    cli.define_flags()
    if arguments[0] == "train.py":
        cli.define_choice("describe", ("table", "json"), "")
        flags.DEFINE_integer("plan_tries", 3, "")
    if arguments[0] in ("train.py", "serve.py"):
        flags.DEFINE_string("plan", None, "")
    try:
        cli.parse(sys.argv, needs_workdir=False)
    except UserError as error:
        return f"{' '.join(arguments)}: {error}"
    return None


def main() -> None:
    import lm.cli  # noqa: F401 (before the children, which then need not)

    messages = []
    for arguments in json.load(sys.stdin):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            os.write(writer, json.dumps(_parse(arguments)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            messages.append(json.loads(file.read() or b'"ended without a message"'))
        os.waitpid(child, 0)
    json.dump(messages, sys.stdout)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
