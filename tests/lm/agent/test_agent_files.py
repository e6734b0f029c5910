"""Tools of files: what they answer, and that nothing outside of their folder can be read or written."""

import os

import pytest

from lm.agent.builtin import open_tools
from lm.agent.files import MAX_HITS
from lm.infer.calls import MAX


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("one\nTwo three\nfour\n")
    (root / "sub" / "b.md").write_text("three again\n")
    (root / "raw").write_bytes(b"\xff\xfe")
    (root / ".env").write_text("three hidden\n")
    (tmp_path / "outside.txt").write_text("three outside\n")
    (root / "link.txt").symlink_to(tmp_path / "outside.txt")
    (root / "away").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    return root


def asked(folder, name, **arguments):
    (tool,) = (one for one in open_tools(["files", "write_file"], str(folder)) if one.name == name)
    return tool.run(arguments, 1.0)


def test_list_search_and_read(folder):
    assert asked(folder, "list_files").text == "a.txt\nraw\nsub/b.md"
    assert asked(folder, "list_files", pattern="*.md").text == "sub/b.md"
    assert asked(folder, "list_files", pattern="*.py").text == "(no file)"
    assert asked(folder, "search_files", text="THREE").text == "a.txt:2: Two three\nsub/b.md:1: three again"
    assert asked(folder, "search_files", text="five").text == "(no line)"
    assert asked(folder, "read_file", path="a.txt").text == "one\nTwo three\nfour\n"
    assert asked(folder, "read_file", path="./sub/../a.txt", first_line=3).text == "four\n"
    (folder / "many.txt").write_text("same\n" * 99 + "x" * 9000)
    assert asked(folder, "search_files", text="same").text.count("\n") == MAX_HITS
    assert len(asked(folder, "read_file", path="many.txt").text) <= MAX + 3


def test_write(folder):
    answer = asked(folder, "write_file", path="sub/new/c.txt", text="five")
    assert not answer.failed and (folder / "sub/new/c.txt").read_text() == "five"
    assert asked(folder, "write_file", path="a.txt", text="").text == "wrote 0 characters to a.txt"
    assert asked(folder, "write_file", path="sub", text="").failed
    assert [tool.risk for tool in open_tools(["files", "write_file"], str(folder))] == ["reads"] * 3 + ["writes"]


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt",
        "/etc/passwd",
        "link.txt",
        "away/outside.txt",
        ".",
        "",
        "a\0b",
        ".env",
        "sub/../.env",
        "circle",
        "x" * 9000,
    ],
)
def test_nothing_outside_is_reached(folder, path):
    before = {place: sorted(os.listdir(place)) for place in (folder, folder.parent)}
    for answer in (asked(folder, "read_file", path=path), asked(folder, "write_file", path=path, text="x")):
        assert answer.failed and answer.text.startswith("error: ") and "three" not in answer.text
    assert before == {place: sorted(os.listdir(place)) for place in before}
    assert (folder.parent / "outside.txt").read_text() == "three outside\n"


def test_what_cannot_be_read_is_told(folder):
    for path, words in {"raw": "is no text", "none.txt": "there is no file", "sub": "directory"}.items():
        answer = asked(folder, "read_file", path=path)
        assert answer.failed and words in answer.text
    assert asked(folder, "read_file", path="a.txt", first_line=0).failed and asked(folder, "search_files", text=" ").failed
    os.mkfifo(folder / "pipe")  # would wait for ever
    assert asked(folder, "read_file", path="pipe").failed and "pipe" not in asked(folder, "list_files").text
