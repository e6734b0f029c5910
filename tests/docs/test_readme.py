"""The README is short, says what the project is and is not, and shows a report. Its figures are those of the benchmarks."""

import re
from pathlib import Path

from tests.verbs.runs import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FIGURE = re.compile(r"[−+]?\d[\d,.]*\s?[×%]")
LINKED = re.compile(r"\[([^\]]+)\]\((docs/benchmarks\.md)#([\w-]+)\)")


def section(file: Path, anchor: str) -> str:
    """Return the text of a heading of the second level, by its anchor."""
    parts = re.split(r"^## (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {name.lower().replace(" ", "-"): text for name, text in zip(parts[1::2], parts[2::2])}
    return found[anchor]


def test_it_is_short_and_begins_with_what_for_whom_and_how():
    lines = README.splitlines()
    assert len(lines) <= 125
    first = "\n".join(lines[:16])
    for wanted in ("language model", "For you", "Not for you", "make demo"):
        assert wanted in first


def test_every_figure_stands_in_the_section_it_links_to():
    rows = [line for line in README.splitlines() if LINKED.search(line) and line.startswith("|")]
    assert len(rows) == 5
    for row in rows:
        for _, file, anchor in LINKED.findall(row):
            there = section(REPOSITORY / file, anchor)
            figures = FIGURE.findall(row.split("|")[-2])
            assert figures
            for figure in figures:
                assert re.search(rf"(?<![\d.]){re.escape(figure)}", there), f"{figure} of the README is not in {file}#{anchor}"


def test_every_figure_of_the_benchmarks_has_a_command():
    """Each row of the tables by stage names what measures it."""
    text = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8").split("## Choices")[0]
    tables = re.findall(r"^\| what \| command \| figure \|\n\|[-| ]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 30
    for row in rows:
        _, what, command, figure, _ = row.split("|")
        assert "`" in command or "the same" in command, what


def test_its_pictures_exist_and_are_small():
    pictures = re.findall(r"!\[[^\]]{20,}\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert 10_000 < (REPOSITORY / picture).stat().st_size < 1_000_000
