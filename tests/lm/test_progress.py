"""Progress without a terminal: plain lines, at once and every five seconds, whatever is shown in them."""

import io
import os
import pty
import termios

import pytest

from lm.progress import Lines, progress, shown


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def lines(file: io.StringIO) -> list[str]:
    text = file.getvalue()
    assert all(c.isprintable() or c == "\n" for c in text) and (not text or text.endswith("\n"))
    return text.splitlines()


def test_a_line_at_once_then_every_five_seconds_and_at_the_end():
    file, clock = io.StringIO(), Clock()
    with progress("train", 40, file=file, clock=clock) as bar:
        for _ in range(35):
            clock.now += 1
            bar.set_postfix_str("loss 3.1")
            bar.update(1)
    assert lines(file) == [
        *(f"train: {n}/40, loss 3.1, 1/s, 00:{40 - n:02} left" for n in range(1, 35, 5)),
        "train: 35/40, loss 3.1, 1/s, 00:05 left",
    ]


def test_a_run_that_goes_on_has_the_rate_of_now():
    file, clock = io.StringIO(), Clock()
    bar = progress("train", 1000, done=900, file=file, clock=clock)
    clock.now += 20
    bar.update(10)
    bar.close()
    assert lines(file) == ["train: 910/1000, 0.5/s, 03:00 left"]


def test_compiling_is_said_before_it_is_done():
    file, clock = io.StringIO(), Clock()
    bar = progress("likelihoods", 8, unit=" requests", file=file, clock=clock)
    bar.compiling()
    assert lines(file) == ["likelihoods: 0/8 requests, compiling…"]
    clock.now += 4
    bar.update(8)
    bar.close()
    assert lines(file)[1:] == ["likelihoods: 8/8 requests, 2 requests/s"]


def test_short_work_that_need_not_be_told_is_silent():
    file, clock = io.StringIO(), Clock()
    for seconds in (1, 30):
        with progress("read", 2e9, unit="B", soon=False, file=file, clock=clock) as bar:
            clock.now += seconds
            bar.update(1.5e9)
    assert lines(file) == ["read: 1.50G/2.00GB, 50.0MB/s, 00:10 left"]


def test_text_from_outside_cannot_move_the_cursor(capsys):
    file = io.StringIO()
    with progress("survey", file=file, clock=Clock()) as bar:
        bar.write("what a model\rsays\x1b[2J\nin two lines")
        bar.set_postfix_str("a\r\x1b[2Jb\nc")
        bar.update(3)
    assert lines(file) == ["survey: 3, a  [2Jb c"]
    assert capsys.readouterr().out == "what a model says [2J\nin two lines\n"


@pytest.mark.parametrize("enabled", [True, False])
def test_items_are_counted(enabled):
    file = io.StringIO()
    assert list(shown(iter("abc"), "records", file=file, clock=Clock(), enabled=enabled)) == ["a", "b", "c"]
    assert lines(file) == (["records: 1", "records: 3"] if enabled else [])


def test_a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as file, progress("train", 4, file=file) as bar:
        assert not isinstance(bar, Lines)
        bar.compiling()
        bar.update(4)
    said = "".join(iter(lambda: _read(ours), ""))
    os.close(ours)
    assert "\r" in said and "compiling…" in said and "4/4" in said


def _read(terminal: int) -> str:
    """What comes next from a terminal, "" at its end, which Linux tells by an error."""
    try:
        return os.read(terminal, 10_000).decode(errors="replace")
    except OSError:
        return ""
