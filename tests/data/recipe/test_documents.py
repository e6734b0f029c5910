"""Documents of a run by their numbers, over several units and row groups."""

import json
import os

import pytest

from configs.curate import default
from data.recipe import documents, units
from data.recipe.inputs import Unit
from data.recipe.plan import plan
from data.recipe.units import Job

LINES = 3000  # of a long document, so that a batch, which is a row group, holds a few


def text(unit: int, row: int) -> str:
    return "\n".join(f"Line {line} of document {row} in unit {unit} ends here." for line in range(LINES)) + "\nno end mark\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Job, list[Unit]]:
    """Two units of twenty documents, and one that nobody can read."""
    folder, found = tmp_path_factory.mktemp("made"), []
    for unit in range(3):
        path = folder / f"{unit}.jsonl"
        rows = [{"id": f"u{unit}r{row}", "text": text(unit, row), "url": f"https://example.org/{unit}"} for row in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) if unit < 2 else "no json\n")
        found.append(Unit(f"{unit:05d}-name", unit, ((os.fspath(path), f"web/{unit}"),), 1))
    config = default.get_config()
    config.stages = "c4,gopher_quality,pii"
    job = Job(folder / "out", tuple(plan(config.to_dict(), found)))
    for unit in found:
        units.run(job, unit)
    return job, found


def test_documents_have_their_columns_and_texts(made):
    job, found = made
    wanted = [(1 << 32) + 7, 3, 19, (1 << 32) + 8, 3]
    rows = list(documents.read(job, found, wanted, 50))
    assert [one.number for one in rows] == sorted(set(wanted))
    for one in rows:
        unit, row = one.number >> 32, one.number & 0xFFFFFFFF
        whole = text(unit, row)
        assert (one.columns["id"], one.columns["source"], one.columns["url"]) == (
            f"u{unit}r{row}",
            "web",
            f"https://example.org/{unit}",
        )
        assert one.columns["gopher_words"] > LINES and one.columns["pii_email"] == 0 and "text" not in one.columns
        # pii finds nothing, so it left no text of its own.
        assert [(version.stage, version.length) for version in one.texts] == [
            ("read", len(whole)),
            ("c4", len(whole) - len("\nno end mark\n")),
        ]
        assert all(version.start == whole[:50] for version in one.texts)


def test_fewer_stages_give_fewer_columns(made):
    job, found = made
    (one,) = documents.read(Job(job.workdir, job.stages[:1]), found, [5], 10)
    assert "gopher_words" not in one.columns and len(one.texts) == 1


def test_numbers_of_no_document(made):
    job, found = made
    assert list(documents.read(job, found, [20, 2 << 32, 9 << 32], 10)) == []
    assert documents.names(job, found, [19, 20, 2 << 32, (1 << 32) + 4, 9 << 32]) == {19: "u0r19", (1 << 32) + 4: "u1r4"}
