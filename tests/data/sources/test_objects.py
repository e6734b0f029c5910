"""Text in a bucket gives the documents that the same files on a disk give, and its changes are seen in a listing."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.chat import records
from data.sources import objects, open_sources
from data.sources.reading import read_file
from data.text.fingerprints import input_files, ready_dataset
from lm.errors import UserError
from tests import emulators


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    files = {
        "a.txt": "one\n" * 30_000,
        "deep/b.md": "two",
        "deep/c.jsonl": '{"text": "three"}\n{"text": "four"}\n',
        "d.bin": "x",
    }
    for name, content in (files | {".hidden/e.txt": "five"}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    pq.write_table(pa.table({"text": ["six", "seven"]}), folder / "deep" / "f.parquet")
    return folder


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(request, folder):
    with getattr(emulators, request.param)() as bucket:
        for path in folder.rglob("*"):
            if path.is_file():
                bucket.put(f"text/{path.relative_to(folder)}", path.read_bytes())
        yield bucket


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    for name, value in {**server.variables, "XDG_CACHE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    server.system.__class__.clear_instance_cache()
    return server


def documents(input: str) -> list[list[tuple[str, str]]]:
    return [[(one.id, one.text) for one in source.read()] for source in open_sources(input)]


@pytest.mark.parametrize("what", ["", "/", "/deep", "/deep/*", "/**/*.md", "/d*", "/a.txt", "/deep/[cf].*"])
def test_the_same_documents_as_from_a_disk(bucket, folder, what):
    found = documents(f"{bucket.url}/text{what}")
    assert found == documents(f"{folder}{what}") and found[0]


def test_parts_with_names(bucket, folder):
    assert documents(f"x={bucket.url}/text/deep,{bucket.url}/text/a.txt") == documents(f"x={folder}/deep,{folder}/a.txt")
    names = [source.name for source in open_sources(f"{bucket.url}/text/deep,y={bucket.url}/text/a.txt")]
    assert names == ["deep", "y"]


def test_records(bucket):
    found = list(records.read_records(f"{bucket.url}/text/deep/*.jsonl"))
    assert [one.values["text"] for one in found] == ["three", "four"]
    assert found[0].where == f"{bucket.url}/text/deep/c.jsonl:1"


def test_changes_are_seen_without_reading(bucket):
    bucket.put("changing/a.txt", b"one")
    before = input_files(f"{bucket.url}/changing")
    assert [path for path, *_ in before] == [f"{bucket.url}/changing/a.txt"] and before == input_files(f"{bucket.url}/changing")
    bucket.put("changing/a.txt", b"two")
    after = input_files(f"{bucket.url}/changing")
    assert after[0][:2] == before[0][:2] and after != before
    assert json.loads(json.dumps(after)) == after


def test_a_corpus_and_a_dataset(bucket, tmp_path):
    """As curate.py writes them: only what its recipe keeps is read."""
    rows = {"id": ["1", "2"], "text": ["kept", "also"], "source": ["web", "books"]}
    for name in ("documents", "dropped", "stages"):
        (tmp_path / "corpus" / name).mkdir(parents=True)
        pq.write_table(pa.table(rows), tmp_path / "corpus" / name / "0.parquet")
        bucket.put(f"corpus/{name}/0.parquet", (tmp_path / "corpus" / name / "0.parquet").read_bytes())
    with pytest.raises(UserError, match="not finished"):
        open_sources(f"{bucket.url}/corpus")
    bucket.put("corpus/manifest.json", b'{"recipe": {}}')
    (tmp_path / "corpus" / "manifest.json").write_text('{"recipe": {}}')
    found = documents(f"{bucket.url}/corpus")
    assert found == documents(str(tmp_path / "corpus")) and [len(one) for one in found] == [1, 1]
    assert ready_dataset(f"{bucket.url}/corpus") is None
    bucket.put("corpus/dataset/dataset.json", b"{}")
    bucket.put("corpus/dataset/packed_text/web/rows", b"rows")
    assert (ready_dataset(f"{bucket.url}/corpus/dataset") / "packed_text" / "web" / "rows").read_bytes() == b"rows"


def test_what_cannot_be_read_is_one_line(bucket, monkeypatch):
    with pytest.raises(UserError, match=r"^data.input='.*/text/\*\.pdf': no object there can be read"):
        open_sources(f"{bucket.url}/text/*.pdf")
    with pytest.raises(UserError, match=f"^{bucket.url[:5]}no-such-bucket"):
        open_sources(f"{bucket.url[:5]}no-such-bucket/text")
    with pytest.raises(UserError, match=f"^{bucket.url}/text/gone.txt: "):
        list(read_file(f"{bucket.url}/text/gone.txt", "gone"))
    assert objects.listed(f"{bucket.url}/nothing") == []
