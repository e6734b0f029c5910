"""lm.chat: on a terminal, which a pseudo-terminal stands for, and in a pipe."""

import collections
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

import lm
from data.chat.conversations import examples_of
from data.chat.records import read_records
from lm.convert.to_workdir import write_workdir
from tests.lm.evals import tiny_models
from tests.verbs import runs

CTRL_C, CTRL_D = "\x03", "\x04"
GREEDY = "--temperature=0"
LIMIT = 8


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """The workdir of a random model that never ends an answer if it is greedy."""
    return tiny_models.published(tmp_path_factory.mktemp("chatty"))[0]


class Terminal:
    """lm.chat on a pseudo-terminal."""

    def __init__(self, *flags: str, **variables: str):
        master, slave = pty.openpty()
        variables = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | variables
        with open(slave, "r+b", buffering=0) as end:
            self.process = runs.launch([sys.executable, "-m", "lm.chat", *flags], runs.environment(**variables), end, end, end)
        self.master, self.raw = master, b""

    def wait_for(self, marker: str) -> str:
        """Return what was shown up to the marker, without escape sequences; fails at the deadline or the end."""
        end = time.monotonic() + runs.DEADLINE
        while marker not in self._shown():
            ready = select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]
            assert ready, f"no {marker!r} in {self._shown()[-2000:]!r}"
            try:
                self.raw += os.read(self.master, 1 << 16)
            except OSError:  # the other end is closed
                raise AssertionError(f"ended before {marker!r}: {self._shown()[-2000:]!r}") from None
        before, _, after = self._shown().partition(marker)
        self.raw = after.encode()
        return before

    def _shown(self) -> str:
        text = self.raw.decode("utf-8", "replace").replace("\r", "")
        return re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])", "", text)

    def say(self, text: str) -> None:
        """Type a line, once there is a prompt."""
        self.wait_for(">")
        self.press(text + "\r")

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def leave(self) -> int:
        self.wait_for(">")
        self.press(CTRL_D)
        return self.process.wait(timeout=runs.DEADLINE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def expected(checkpoint, *messages, count: int = LIMIT) -> str:
    model, tokenizer = lm.load(checkpoint)
    return lm.chat(model, tokenizer, list(messages), max_new_tokens=count, temperature=0)["content"]


def test_a_session_on_the_terminal(chatty, tmp_path):
    file, system = tmp_path / "saved.jsonl", message("system", "be brief")
    first = expected(chatty, message("user", "abc def"))
    second = expected(chatty, system, message("user", "ghi"))
    third = expected(chatty, system, message("user", "ghi"), message("assistant", second), message("user", "abc"))
    assert len({first, second, third}) == 3
    flags = (f"--checkpoint={chatty}", GREEDY, f"--max_new_tokens={LIMIT}")
    with Terminal(*flags, XDG_CACHE_HOME=str(tmp_path)) as terminal:
        terminal.say("abc def")
        shown = terminal.wait_for(f"{LIMIT} tokens, ")
        assert shown.endswith(f"\n{first}\n")
        assert re.fullmatch(r"[\d.]+ tokens/s, ", terminal.wait_for("first after"))
        for command, answer in (
            ("/undo", "removed the last message and its answer"),
            ("/undo", "there is nothing to remove"),
            (f"/save {file}", "there is no answer to save"),
            ("/system", "there is no system message"),
            ("/system be brief", "a new conversation, with this system message"),
        ):
            terminal.say(command)
            terminal.wait_for(answer)
        terminal.say("ghi")
        assert terminal.wait_for(f"{LIMIT} tokens, ").endswith(f"\n{second}\n")
        terminal.say("abc")
        assert terminal.wait_for(f"{LIMIT} tokens, ").endswith(f"\n{third}\n")
        for command, answer in (
            ("/undo", "removed"),
            (f"/save {file}", f"saved to {file}"),
            (f"/save {file}", "exists; name a new file"),
            (f"/save {tmp_path}", ".jsonl"),
            ("/reset", "a new conversation, with the same system message"),
            ("/system", "system message: be brief"),
            (f"/save {tmp_path / 'other.jsonl'}", "there is no answer to save"),
            ("/sav", "did you mean /save?"),
            ("/help", "/save FILE"),
        ):
            terminal.say(command)
            terminal.wait_for(answer)
        terminal.wait_for(">")
        terminal.press(CTRL_C)
        terminal.wait_for("Ctrl-D leaves")
        assert terminal.leave() == 0
    messages = [system, message("user", "ghi"), message("assistant", second)]
    assert runs.lines(file) == [{"messages": messages}]
    [example] = examples_of(read_records(str(file)), "conversation", collections.Counter())
    assert example.messages == messages
    history = tmp_path / "lmcraft" / "chat_history"
    assert "+abc def\n" in history.read_text() and history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(tmp_path):
    """The answer would take minutes."""
    workdir, file = tmp_path / "run", tmp_path / "saved.jsonl"
    workdir.mkdir()
    made = tiny_models.model(vocab_size=tiny_models.tokenizer(workdir).vocab_size, max_positions=1 << 16).config
    write_workdir(workdir, made, tiny_models.parameters(made))
    begin = expected(workdir, message("user", "abc"), count=12)
    flags = (f"--checkpoint={workdir}", GREEDY, "--max_new_tokens=65000")
    with Terminal(*flags, XDG_CACHE_HOME=str(tmp_path)) as terminal:
        terminal.say("abc")
        terminal.wait_for(begin)
        terminal.press(CTRL_C)
        count = int(re.search(r"(\d+) tokens, [^\n]*$", terminal.wait_for(", stopped"))[1])
        assert 12 <= count < 65000
        terminal.say(f"/save {file}")
        terminal.wait_for("saved to")
        assert terminal.leave() == 0
    [record] = runs.lines(file)
    question, answer = record["messages"]
    assert question == message("user", "abc") and answer["role"] == "assistant" and answer["content"].startswith(begin)


def piped(text: str, *flags: str) -> subprocess.CompletedProcess:
    return runs.run([sys.executable, "-m", "lm.chat", *flags], stdin=text)


def test_a_pipe(chatty, tmp_path):
    file = tmp_path / "saved.jsonl"
    flags = (f"--checkpoint={chatty}", f"--max_new_tokens={LIMIT}", "--temperature=1", "--system=be brief", "--seed=2")
    text = f"abc\n\n/undo\nabc\n/save {file}\n/sytem\n/exit\nnever\n"
    done, other = piped(text, *flags), piped("abc", *flags[:-1], "--seed=1")
    assert done.returncode == other.returncode == 0 and "\x1b" not in done.stdout + done.stderr
    first, second = done.stdout.splitlines()
    assert first != second  # each answer has a seed of its own
    assert other.stdout not in ("", first + "\n")
    saved = [message("system", "be brief"), message("user", "abc"), message("assistant", second)]
    assert json.loads(file.read_text()) == {"messages": saved}
    loading, compiling, ready, *said = done.stderr.splitlines(keepends=True)
    assert (loading, compiling) == (f"chat.py: loading {chatty}…\n", "chat.py: compiling…\n")
    whole, *parts = map(float, re.findall(r"([\d.]+) s\b", ready))
    assert len(parts) == 2 and abs(whole - sum(parts)) < 0.2
    assert "".join(said) == (
        "chat.py: removed the last message and its answer\n"
        f"chat.py: saved to {file}\n"
        "chat.py: no command /sytem; did you mean /system? /help lists them\n"
    )
    file.unlink()
    assert piped(text, *flags).stdout == done.stdout


def test_mistakes(chatty, tmp_path):
    known = f"--checkpoint={chatty}"
    for flags, words in (
        ((), "--checkpoint is missing"),
        ((f"--checkpoint={tmp_path / 'none'}",), "none: no such folder"),
        ((known, "--max_new_tokens=0"), "max_new_tokens"),
        ((known, "--top_p=0"), "--top_p=0"),
        ((known, "--dtype=int8"), "dtype"),
        ((known, "--sytem=a"), "sytem"),
        ((known, "hello"), "unexpected argument 'hello'"),
    ):
        done = piped("abc\n", *flags)
        assert done.returncode == 2 and done.stdout == ""
        assert words in done.stderr and done.stderr.count("\n") == 1
    usage = piped("", "--help")
    assert usage.returncode == 0 and all(word in usage.stdout for word in ("/undo", "--dtype", "--max_new_tokens"))
