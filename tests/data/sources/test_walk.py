"""Globs agree with the standard library where it ends, and walks end where it does not."""

import glob
import os

import pytest

from data.sources import walk
from data.sources.files import open_files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "x/b.txt", "x/y/c.txt", "x/y/.h/d.txt", ".hid/e.txt", "z/b.txt", "z/y/[k].txt", "z/w/q.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


PATTERNS = ("**/*.txt", "**/y/*", "x/**/*.txt", "*/y/**/*.txt", "**/*", "*.txt", "x/**", "./**/b.*", "**/y/**/*.txt", "nope/**")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_globs_find_the_same_files(tree, pattern, absolute):
    pattern = os.path.join(tree, pattern) if absolute else pattern

    def files(paths):
        return sorted({os.path.normpath(path) for path in paths if os.path.isfile(path)})

    assert files(walk.matches(pattern)) == files(glob.glob(pattern, recursive=True))


def test_a_walk_is_ordered_and_ends_in_loops_of_links(tree):
    for folder in ("x", "x/y", "z"):
        os.symlink(tree, tree / folder / "up")
    os.symlink("self", tree / "self")
    os.mkfifo(tree / "pipe")
    once = [path for path, is_folder in walk.entries(str(tree), follow=True) if not is_folder]
    assert len(once) == len(set(once)) == 8 and once == sorted(once)
    assert [os.path.relpath(path, tree) for path in walk.below(str(tree))] == [
        *("a.txt", "pipe", "self", "x/b.txt", "x/y/c.txt", "z/b.txt", "z/w/q.md", "z/y/[k].txt")
    ]


def test_a_folder_may_be_left_out(tree):
    found = walk.entries(str(tree), enter=lambda folder: not folder.endswith("/y"))
    assert sorted(os.path.relpath(path, tree) for path, is_folder in found if not is_folder) == [
        *("a.txt", "x/b.txt", "z/b.txt", "z/w/q.md")
    ]


def test_two_stars_read_a_loop_of_links_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def texts(pattern: str) -> list[str]:
        return [document.text for source in open_files(pattern) for document in source.read()]

    (tmp_path / "c/deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("c/a.txt", "c/deep/b.txt", "c/deep/c.md", "elsewhere/d.txt"):
        (tmp_path / name).write_text(name)
    for k in range(6):
        os.symlink(".", tmp_path / f"c/loop{k}")
    os.symlink("../elsewhere", tmp_path / "c/link")
    assert texts("c/**/*.txt") == ["c/a.txt", "c/deep/b.txt", "elsewhere/d.txt"]
    assert texts("c/**") == ["c/a.txt", "c/deep/b.txt", "c/deep/c.md", "elsewhere/d.txt"]
    assert texts("**/deep/*.txt") == ["c/deep/b.txt"]
    assert texts("c") == ["c/a.txt", "c/deep/b.txt", "c/deep/c.md"]
