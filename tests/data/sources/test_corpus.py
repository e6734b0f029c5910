"""Several sources: those of a curated corpus, without what its recipe dropped, and files with names."""

import json
import shutil

import pytest

from configs.curate import default
from data.recipe.run import run
from data.sources import open_sources, until
from data.sources.source import Document, Quarantined
from data.text.fingerprints import input_files
from lm.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("web", "books"):
        rows = [{"text": f"{name} {k} has some words"} for k in range(5)] + [{"text": "short"}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = default.get_config()
    config.input = f"web={folder}/web.jsonl,books={folder}/books.jsonl"
    config.stages, config.processes = "gopher_quality", 1
    config.rules.gopher_words = (2, 100)
    run(config.to_dict(), folder / "made")
    return folder / "made"


def texts(input) -> dict[str, list[str]]:
    return {source.name: [document.text for document in source.read()] for source in open_sources(str(input))}


def test_its_sources_keep_their_names_and_dropped_documents_stay_out(corpus):
    expected = {name: [f"{name} {k} has some words" for k in range(5)] for name in ("books", "web")}
    assert texts(corpus) == expected
    assert [path for path, *_ in input_files(str(corpus))] == sorted(map(str, (corpus / "documents").iterdir()))


def test_beside_other_files_it_is_one_source_of_what_stays(corpus, tmp_path):
    (tmp_path / "more.txt").write_text("more")
    found = texts(f"old={corpus},new={tmp_path}/more.txt")
    assert sorted(found["old"]) == sorted(f"{name} {k} has some words" for name in ("web", "books") for k in range(5))
    assert found["new"] == ["more"]


def test_one_that_is_not_finished(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "cut")
    (tmp_path / "cut/manifest.json").unlink()
    for input in (tmp_path / "cut", f"old={tmp_path}/cut"):
        with pytest.raises(UserError, match="this corpus is not finished; run its curate.py command again"):
            open_sources(str(input))


def test_one_without_documents(corpus, tmp_path):
    config = default.get_config()
    config.input, config.processes = str(corpus / "documents"), 1
    config.stages, config.rules.gopher_words = "gopher_quality", (50, 100)
    run(config.to_dict(), tmp_path / "made")
    with pytest.raises(UserError, match="no document is left in this corpus"):
        open_sources(str(tmp_path / "made"))


def test_files_of_one_installation_keep_their_split(tmp_path):
    config = default.get_config()
    config.input, config.read.max_bytes, config.processes = "builtin:python", 100_000, 1
    run(config.to_dict(), tmp_path / "made")
    here = {source.name: list(source.read()) for source in open_sources(None, max_bytes=100_000)}
    read = {source.name: list(source.read()) for source in open_sources(str(tmp_path / "made"))}
    assert {name: [one.text for one in some] for name, some in read.items()} == {
        name: [one.text for one in some] for name, some in here.items()
    }
    assert {one.text: one.split_key for some in read.values() for one in some} == {
        one.text: one.split_key for some in here.values() for one in some
    }
    assert all(one.metadata == {"programming_language": "Python"} for one in read["code"])


def test_a_long_list_of_files_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{k:030d}.txt" for k in range(20)]
    for name in names:
        (tmp_path / name).write_text(name)
    assert [text for some in texts(",".join(names)).values() for text in some] == names


def test_what_cannot_be_read_has_no_bytes():
    bad, good = Quarantined("x", "row 1", "no text"), Document("d", "text", "x")
    assert list(until([bad, good, bad, good], 4)) == [bad, good]


def test_names_make_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("a.txt", "b/c.txt", "b/d.txt", "x=y.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
    sources = open_sources("web=a.txt,books=b/c.txt,web=b/d.txt,x=y.txt")
    assert {source.name: [document.text for document in source.read()] for source in sources} == {
        "web": ["a.txt", "b/d.txt"],
        "books": ["b/c.txt"],
        "x_y": ["x=y.txt"],
    }
    with pytest.raises(UserError, match="b/e.txt"):
        open_sources("web=a.txt,books=b/e.txt")
