"""The ending of a curation says which files were not read, or not to their end, and what of them is lost."""

import json

import pytest

from configs.curate import default
from data.recipe.run import prepare, run
from lm.errors import UserError
from lm.reports.curate import sentences, verdict, write


def row(path: str, documents: int = 0, where: str = "", reason: str = "damaged gzip", place=None, count: int = 1) -> dict:
    return {"path": path, "documents": documents, "where": where, "reason": reason, "place": place, "count": count}


def test_nothing_is_said_if_all_was_read():
    assert sentences([]) == []
    assert verdict({"all": [5, 9], "kept": [5, 9]}, [], []).startswith("5 of 5 documents were kept (100.0 %)")


def test_a_file_that_was_read_in_part_is_named_with_its_place():
    rows = [row("a.jsonl", 3, "line 7", "not json", count=30), row("b.warc.gz", 5, "record 4", place=[10_240, 20_480])]
    assert sentences(rows) == [
        "2 files were read in part: b.warc.gz, record 4, bytes 10,240 to 20,480 (damaged gzip); a.jsonl, line 7 (not json) and "
        "29 other faults."
    ]
    assert sentences([row("c.gz", 1, "line 3", "truncated gzip", [40, 40])]) == [
        "1 file was read in part: c.gz, line 3, byte 40, where the file ends (truncated gzip)."
    ]
    assert verdict({"all": [5, 9], "kept": [5, 9]}, [], rows).startswith("5 of 5 documents that could be read were kept")


def test_files_without_a_document_are_named():
    rows = [row(f"{k}.gz", reason="binary") for k in range(5)]
    assert sentences(rows) == ["5 files gave no document: 0.gz (binary); 1.gz (binary); 2.gz (binary); and 2 more."]


def test_an_input_that_nobody_can_read_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.warc.gz").write_bytes(b"no gzip at all")
    (tmp_path / "in" / "b.jsonl").write_bytes(b"")
    config, out = default.get_config(), tmp_path / "run"
    config.input, config.stages, config.rules, config.processes = str(tmp_path / "in"), "", {}, 1
    prepared = prepare(config.to_dict())
    found = run(config.to_dict(), out, prepared)
    with pytest.raises(
        UserError, match="nothing could be read: damaged gzip, no documents; docs/curate.md .*report.html lists"
    ):
        write(out, config, found, prepared)
    report = json.loads((out / "report.json").read_text())
    assert report["next"] == [] and "2 files gave no document: " in report["verdict"][1]
    assert f"<bdi>{tmp_path / 'in' / 'a.warc.gz'}</bdi>" in (out / "report.html").read_text()
