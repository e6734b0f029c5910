"""The tour can be read in an evening, and stands alone: its length, its lines, and what it imports."""

import ast
import re
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "tour").glob("*.py"))
STANDS_ON = {"jax", "flax", "optax", "numpy", "sentencepiece", "orbax", "tour"}
STANDARD = {"ast", "collections", "dataclasses", "functools", "hashlib", "http", "io", "itertools", "json", "pathlib", "queue"}
STANDARD |= {"re", "sysconfig", "threading", "time", "typing", "urllib"}


def test_it_has_at_most_1500_lines():
    assert sum(len(file.read_text().splitlines()) for file in FILES) <= 1500


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_short_and_imports_neither_lm_nor_data(file):
    lines = file.read_text().splitlines()
    assert len(lines) <= 220 and max(map(len, lines)) <= 120
    nodes = list(ast.walk(ast.parse(file.read_text())))
    modules = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} <= STANDS_ON | STANDARD


def test_the_lines_of_the_reading_order_stand_in_their_files():
    notes = (FILES[0].parent / "README.md").read_text().split("\n### ")[1:]
    lines = {re.search(r"\]\((\w+\.py)\)", note)[1]: re.findall(r"\*\*The line\*\* `(.+)`", note) for note in notes}
    assert not [name for name, found in lines.items() if len(found) != (name != "__main__.py")]
    for name, found in lines.items():
        assert not [line for line in found if line not in (FILES[0].parent / name).read_text()]


def test_the_reading_order_has_every_file():
    text = (FILES[0].parent / "README.md").read_text()
    assert not [file.name for file in FILES if file.name != "__init__.py" and f"]({file.name})" not in text]
