"""Every kind of source is read as written, twice the same, and every mistake is one line that says where."""

import ast
import gzip
import json
import os
import subprocess
import sys
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data.sources import open_sources, python_installation, reading
from data.text import split
from lm.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def texts(input, **options) -> list[str]:
    [source] = open_sources(input, **options)
    documents = list(source.read())
    assert list(source.read()) == documents, "a second reading differs"
    assert len({document.id for document in documents}) == len(documents)
    return [document.text for document in documents]


def fails(input, *parts, **options):
    with pytest.raises(UserError) as error:
        texts(input, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    for part in parts:
        assert part in message, message


# Files.


def test_a_folder_is_one_source_of_all_its_readable_files(tmp_path):
    for path in ("My Corpus/b.txt", "My Corpus/deep/er/a.md", "My Corpus/c.py", "My Corpus/.git/x.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"text of {path}\n")
    (tmp_path / "My Corpus/picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "My Corpus/empty.txt").write_text(" \n")
    [source] = open_sources("My Corpus")
    assert source.name == "my_corpus"
    assert [(d.id, d.origin) for d in source.read()] == [
        ("b.txt", "My Corpus/b.txt"),
        ("c.py", "My Corpus/c.py"),
        ("deep/er/a.md", "My Corpus/deep/er/a.md"),
    ]
    assert texts("My Corpus/") == texts("./My Corpus") == texts(str(tmp_path / "My Corpus"))
    assert len(texts("My Corpus/**/*.md")) == 1
    assert open_sources("My Corpus/**/*.md")[0].name == "my_corpus"
    assert len(texts("My Corpus/b.txt, My Corpus/*/er/*,My Corpus/b.txt")) == 2


def test_plain_text_keeps_its_bytes_but_for_the_mark_at_its_head(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert texts("a.txt") == ["one\r\ntwo\r\n"]


@pytest.mark.parametrize("unit", ["one line\n", "a paragraph\nof two\n\n", "x\r\n\r\n", "ö", "汉"], ids=repr)
@pytest.mark.parametrize("size", [reading.PIECE_BYTES, reading.PIECE_BYTES + 1, 200_000])
def test_long_text_is_cut_in_pieces_that_join_to_the_whole(tmp_path, unit, size):
    whole = unit * (size // len(unit.encode()))
    (tmp_path / "long.txt").write_bytes(b"\xef\xbb\xbf" + whole.encode())
    [source] = open_sources("long.txt")
    documents = list(source.read())
    assert "".join(d.text for d in documents) == whole
    assert all(len(d.text.encode()) <= reading.PIECE_BYTES for d in documents)
    if len(documents) > 1:
        assert [d.id for d in documents] == [f"long.txt#{k}" for k in range(len(documents))]
    if "\n" in unit:
        assert all(d.text.endswith(unit) for d in documents)


def write_lines(path, data: bytes):
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":  # two frames, the first of them cut in the middle of a line
        half = len(data) // 2
        data = b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz"])
def test_json_lines(tmp_path, name):
    rows = [
        {"text": "one\nline \u2028 ü", "id": "first", "url": "http://x", "license": "MIT"},
        {"text": "  "},
        {"text": "two", "id": 7, "source": "book"},
        {"text": "三" * 70_000},
    ]
    write_lines(tmp_path / name, b"\xef\xbb\xbf" + "\n".join(map(json.dumps, rows)).encode() + b"\n\n")
    [source] = open_sources(name)
    assert source.name == "a"
    documents = list(source.read())
    assert [d.text for d in documents] == [rows[i]["text"] for i in (0, 2, 3)]
    assert [(d.id, d.origin, d.licence) for d in documents] == [
        ("first", "http://x", "MIT"),
        (f"{name}:3", "book", None),
        (f"{name}:4", name, None),
    ]


def test_parquet(tmp_path):
    table = pyarrow.table(
        {
            "body": pyarrow.array(["one", None, " ", "zwei ü"] * 800).dictionary_encode(),
            "id": [str(i) for i in range(3200)],
            "url": list(range(3200)),
            "licence": ["CC0-1.0"] * 3200,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=500)
    assert texts("t.parquet", text_key="body") == ["one", "zwei ü"] * 800
    document = next(open_sources("t.parquet", text_key="body")[0].read())
    assert (document.id, document.origin, document.licence) == ("0", "t.parquet", "CC0-1.0")


def test_a_cap_ends_a_source(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abcd"}\n' * 10)
    assert len(texts("a.jsonl", max_bytes=9)) == 3


@pytest.mark.parametrize(
    ("input", "parts"),
    [
        ("corpsu/", ["no file matches data.input='corpsu/'", "nearest: 'corpus'"]),
        ("corpus/englsh/a.txt", ["nearest: 'corpus/english'"]),
        ("corpus/english/*.jsonl", ["no file matches", "*.jsonl"]),
        ("corpus/pictures", ["holds no file that can be read", ".jsonl.zst", ".parquet"]),
        ("corpus/pictures/a.png", ["holds no file that can be read"]),
        ("corpsu", ["neither a path nor a TFDS dataset", "nearest: 'corpus'"]),
        ("lm1bb", ["neither a path nor a TFDS dataset", "nearest: 'lm1b'"]),
        (",", ["no file matches"]),
    ],
)
def test_a_wrong_path_is_told_before_anything_is_read(tmp_path, input, parts):
    (tmp_path / "corpus/english").mkdir(parents=True)
    (tmp_path / "corpus/pictures").mkdir()
    (tmp_path / "corpus/pictures/a.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        open_sources(input)
    assert all(part in str(error.value) for part in parts), error.value


GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("a.txt", b"x" * 70_000 + b"\n\xff", ["a.txt: byte 70001 is not valid UTF-8", "convert"]),
        ("b.txt", b"\xef\xbb\xbfab\x80", ["b.txt: byte 5 is"]),
        ("c.txt", b"\x80" * 70_000, ["c.txt: byte 0 is"]),
        ("a.jsonl", GOOD + b'{"text": "\xff"}\n', ["a.jsonl:2: byte 27 is not valid UTF-8"]),
        ("b.jsonl", GOOD + b'{"text": \n', ["b.jsonl:2: not JSON", "one JSON object a line"]),
        ("c.jsonl", b"[1]\n", ["c.jsonl:1: a JSON list"]),
        ("d.jsonl", GOOD + b'{"body": "x", "n": 1}\n', ["d.jsonl:2: no 'text'", "'body' 'n'", "data.text_key"]),
        ("e.jsonl", b'{"text": null}\n', ["e.jsonl:1: 'text' is NoneType", "data.text_key"]),
        ("f.jsonl", b'{"text": "ok \\ud800"}\n', ["f.jsonl:1: character 3", "surrogate"]),
        ("g.jsonl", b"[" * 100_000, ["g.jsonl:1: not JSON"]),
        ("a.jsonl.gz", gzip.compress(GOOD * 9)[:-9], ["a.jsonl.gz: gzip file ends too early"]),
        ("b.jsonl.gz", GOOD, ["b.jsonl.gz", "gzip"]),
        ("a.jsonl.zst", zstandard.compress(os.urandom(999).hex().encode())[:-9], ["a.jsonl.zst: zstd file ends"]),
        ("b.jsonl.zst", GOOD, ["b.jsonl.zst: damaged zstd file"]),
        ("a.parquet", b"nothing of the kind", ["a.parquet: damaged Parquet file"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_in_a_file_is_told_with_its_place(tmp_path, name, data, parts):
    (tmp_path / name).write_bytes(data)
    fails(name, *parts)


def test_what_is_no_regular_file_is_told_at_once(tmp_path):
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes/a.jsonl")
    os.mkfifo(tmp_path / "pipes/b.jsonl.gz")
    os.mkfifo(tmp_path / "pipes/c.txt")
    os.symlink("/dev/zero", tmp_path / "zero.txt")
    os.symlink("/dev/zero", tmp_path / "zero.parquet")
    os.symlink("loop.txt", tmp_path / "loop.txt")
    for name in ("pipes", "pipes/b.jsonl.gz", "pipes/c.txt", "zero.txt", "zero.parquet"):
        fails(name, "not a regular file", "leave it out of data.input")
    (tmp_path / "loops").mkdir()
    os.rename(tmp_path / "loop.txt", tmp_path / "loops/loop.txt")
    fails("loops", "loop.txt: Too many levels of symbolic links")


def test_a_long_line_is_told_and_never_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(GOOD + b" " * (50 << 20)))
    tracemalloc.start()
    try:
        fails("a.jsonl.gz", "a.jsonl.gz:2: the line has over 1 MiB")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_parquet_without_the_column(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    fails("a.parquet", "a.parquet: no column 'text'", "'body' 'n'", "data.text_key")
    fails("a.parquet", "column 'n' is int64", text_key="n")


def test_half_a_surrogate_pair_beside_the_text_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ok", "url": "\\ud800"}')
    assert next(open_sources("a.jsonl")[0].read()).origin == "?"


# The Python installation.


@pytest.fixture(scope="module")
def installation():
    sources = open_sources(None, max_bytes=400_000)
    return {source.name: (source, list(source.read())) for source in sources}


def test_the_installation_is_three_sources_read_twice_the_same(installation):
    assert list(installation) == ["code", "docstrings", "docs"]
    for source, documents in installation.values():
        assert list(source.read()) == documents
        assert len({d.id for d in documents}) == len(documents) > 5
        assert 400_000 <= sum(len(d.text.encode()) for d in documents) < 1_500_000
        assert all(d.text.strip() and d.origin and not os.path.isabs(d.id) for d in documents)
        assert sum(d.licence is not None for d in documents) > len(documents) / 2
    roots = {d.id.split("/")[0] for _, documents in installation.values() for d in documents}
    assert roots == {"stdlib", "site-packages"}


def test_docstrings_are_those_of_the_code(installation):
    _, code = installation["code"]
    _, docstrings = installation["docstrings"]
    code = {d.id: d for d in code}
    both = [(code[d.id], d) for d in docstrings if d.id in code]
    assert len(both) > 3
    for c, d in both:
        assert c.split_key == d.split_key
        names = {n.name for n in ast.walk(ast.parse(c.text)) if hasattr(n, "name")}
        headings = [line[3:] for line in d.text.splitlines() if line.startswith("## ")]
        assert headings or ast.get_docstring(ast.parse(c.text))
        assert all(h.split(".")[-1] in names for h in headings if h.isidentifier())


def test_docstrings_of_nested_definitions_have_qualified_headings():
    code = '"""Top."""\nif True:\n class A:\n  "An A."\n  async def f(self):\n   """Does f.\n\n     - more\n   Done.\n   """\n'
    assert python_installation._docstrings(None, code) == ("Top.\n\n## A\n\nAn A.\n\n## A.f\n\nDoes f.\n\n  - more\nDone.")


def test_code_and_docstrings_of_a_file_are_in_the_same_split():
    sources = open_sources(None, max_bytes=200_000)[:2]
    found = split.survey(sources, valid_fraction=0.3, seed=0)
    code, docstrings = ({d.id: where for d, where in found.documents(source)} for source in sources)
    assert {"train", "valid"} <= set(code.values())
    shared = code.keys() & docstrings.keys()
    assert len(shared) > 3 and all(code[id] == docstrings[id] for id in shared)


def test_lists_and_tables_are_not_prose():
    assert python_installation._is_prose("This is how the thing works.\n\nIt works well.\n")
    assert not python_installation._is_prose("cat\ndog\nlong word\n" * 5)
    assert not python_installation._is_prose("0.1 0.5 0.7 0.2 11.2\n" * 5)


# TFDS.

PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = {"body": tfds.features.Text(), "title": tfds.features.Text(), "n": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(5):
            yield i, {"body": f"body {i} \\u00fc" if i else " ", "title": b"\\xff", "n": i}

class OnlyTest(TinyText):
    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

for cls in (TinyText, OnlyTest):
    cls(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""

READ = """
import sys
import tensorflow_datasets as tfds
from data.sources import open_sources
from lm.errors import UserError

class CannotPrepare(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"content": tfds.features.Text()}))
    def _split_generators(self, dl_manager):
        raise RuntimeError("no route\\nto host")
    def _generate_examples(self):
        yield

for call in sys.argv[1:]:
    name, _, key = call.partition("=")
    try:
        for source in open_sources(name, text_key=key or "text"):
            for document in source.read():
                print(source.name, document.id, document.origin, document.text, sep="|")
    except UserError as error:
        print("UserError", error)
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def tfds_program(tmp_path_factory):
    """Runs a program in a process of its own: TFDS looks at $TFDS_DATA_DIR when it is imported."""
    folder, elsewhere = tmp_path_factory.mktemp("tfds"), tmp_path_factory.mktemp("elsewhere")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    environment = {**os.environ, "TFDS_DATA_DIR": str(folder), "PYTHONPATH": root}

    def run(program, *args):
        # Elsewhere than the data folder, where a dataset's name is also a path.
        script = elsewhere / "script.py"
        script.write_text(program)
        command = [sys.executable, str(script), *args]
        done = subprocess.run(command, env=environment, cwd=elsewhere, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    run(PREPARE, str(folder))
    return run


@pytest.fixture(scope="module")
def read_tfds(tfds_program):
    """Reads each `name[=text_key]`."""
    return lambda *calls: tfds_program(READ, *calls)


def test_a_tfds_name(read_tfds):
    for name in ("tiny_text", "tiny_text:1.0.0"):
        lines = read_tfds(f"{name}=body")
        assert [line.split("|")[1] for line in lines] == [f"train[{i}]" for i in range(5) if f"train[{i}]" in str(lines)]
        assert {line.split("|")[3] for line in lines} == {f"body {i} ü" for i in range(1, 5)}  # not the blank one
        assert {tuple(line.split("|")[::2]) for line in lines} == {("tiny_text", "tiny_text/1.0.0")}


READ_ARCHIVES = """
import sys
from data.sources import archives

options = archives.Options(text_key="body")
for path, id in archives.units(sys.argv[1], options):
    for document in archives.read(path, id, options):
        print(path, document.id, document.text, sep="|")
"""


def test_a_tfds_name_among_archives(tfds_program):
    lines = tfds_program(READ_ARCHIVES, "tiny_text")
    assert {line.split("|")[2] for line in lines} == {f"body {i} ü" for i in range(1, 5)}
    assert {line.split("|")[0] for line in lines} == {"tfds:tiny_text"}


def test_mistakes_with_tfds_names(read_tfds):
    lines = read_tfds(
        "tiny_text=titel", "tiny_text=title", "tiny_text:9.9.9=body", "only_test=body", "cannot_prepare", "no_such/en"
    )
    expected = [
        ["no text feature 'titel'", "data.text_key", "'body' 'title'", "nearest: 'title'"],
        ["train[0] is not valid UTF-8"],
        ["tiny_text:9.9.9", "cannot be opened"],
        ["no split 'train', only 'test'"],
        ["could not be prepared", "no route to host", "file_format=array_record"],
        ["no file matches data.input='no_such/en'"],
    ]
    lines = [line for line in lines if "Downloading and preparing" not in line]  # TFDS says so by itself
    assert len(lines) == len(expected), lines
    for line, parts in zip(lines, expected):
        assert line.startswith("UserError") and all(part in line for part in parts), line
