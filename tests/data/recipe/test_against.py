"""A new crawl against the corpora of earlier runs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from configs.curate import default
from data.recipe import inputs
from data.recipe.run import run
from lm.errors import UserError
from tests.data.dedup.corpus import edited, prose
from tests.data.recipe.test_run import files_of, rows_of
from tests.slow import all_but

INF = float("inf")
EXACT = {"stages": "exact_duplicates", "rules.duplicate_keep": (1, 1)}
NEAR = {"stages": "near_duplicates", "rules.near_duplicate_keep": (1, 1)}


def write(path: Path, texts: list[str], lines_a_file: int = 25) -> Path:
    """Write texts as JSON lines, several files, and return their folder. Ids are unique over all folders."""
    path.mkdir()
    for at in range(0, len(texts), lines_a_file):
        rows = [{"id": f"{path.name}{n}", "text": texts[n]} for n in range(at, min(at + lines_a_file, len(texts)))]
        (path / f"{at:05d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def curate(workdir: Path, *inputs: Path, against: tuple[Path, ...] = (), **keys) -> set[str]:
    """Run a recipe and return the ids of the documents that stay."""
    config = default.get_config()
    config.input, config.against = ",".join(map(str, inputs)), ",".join(map(str, against))
    config.processes, config.audit = 1, False
    for name in [name for name in keys if name.startswith("rules.")]:
        config.rules[name.removeprefix("rules.")] = keys.pop(name)
    config.update_from_flattened_dict(keys)
    run(config.to_dict(), workdir)
    return {row["id"] for row in rows_of(workdir, "documents")}


@pytest.fixture(autouse=True)
def several_units(monkeypatch):
    monkeypatch.setattr(inputs, "UNIT_BYTES", 40_000)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> list[Path]:
    """Three corpora. Each repeats documents of its own and of those before it, as they are and with few edits."""
    folder, texts = tmp_path_factory.mktemp("corpora"), prose()
    a = texts[:60] + texts[:10] + [edited(text, 0.01, 1) for text in texts[10:20]]
    b = texts[50:100] + texts[95:100] + [edited(text, 0.01, 2) for text in texts[20:30] + texts[90:95]]
    c = texts[:5] + texts[60:65] + texts[100:130] + [edited(text, 0.01, 3) for text in texts[30:35] + texts[70:75]]
    return [write(folder / name, texts) for name, texts in (("a", a), ("b", b), ("c", c))]


BOTH = EXACT | NEAR | {"stages": "exact_duplicates,near_duplicates"}


@pytest.mark.parametrize("recipe", all_but([BOTH], [EXACT, NEAR, BOTH]))
def test_runs_against_each_other_keep_what_one_run_keeps(corpora, tmp_path, recipe):
    together, found, workdirs = curate(tmp_path / "all", *corpora, **recipe), [], ()
    for corpus in corpora:
        workdir = tmp_path / corpus.name
        found.append(curate(workdir, corpus, against=workdirs, **recipe))
        workdirs += (workdir,)
    assert set.union(*found) == together and sum(map(len, found)) == len(together)
    assert [len(one) for one in found] != [len(curate(tmp_path / f"{c.name}-alone", c, **recipe)) for c in corpora]


def test_pieces_are_cut_as_in_one_run(tmp_path):
    lines = [f"Line number {k} of a page, with some words behind it." for k in range(40)]
    a = write(tmp_path / "a", ["\n".join(lines[k : k + 6]) for k in range(0, 24, 4)])
    b = write(tmp_path / "b", ["\n".join(lines[k : k + 6]) for k in range(20, 34, 3)])
    recipe = {"stages": "repeated_pieces", "repeated_pieces.kind": "line"}
    curate(tmp_path / "all", a, b, **recipe)
    curate(tmp_path / "one", a, **recipe)
    curate(tmp_path / "two", b, against=(tmp_path / "one",), **recipe)
    together = {row["id"]: row["text"] for row in rows_of(tmp_path / "all", "documents")}
    found = {row["id"]: row["text"] for name in ("one", "two") for row in rows_of(tmp_path / name, "documents")}
    assert found == together and sum(map(len, found.values())) < 33 * len(lines[0]) * 2


def test_the_earlier_document_is_named(corpora, tmp_path):
    a, b, c = corpora
    recipe = EXACT | NEAR | {"stages": "exact_duplicates,near_duplicates"}
    curate(tmp_path / "a", a, **recipe)
    curate(tmp_path / "b", b, against=(tmp_path / "a",), **recipe)
    curate(tmp_path / "c", c, against=(tmp_path / "a", tmp_path / "b"), **recipe)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    keys = [json.loads((tmp_path / name / "manifest.json").read_text())["index"] for name in "ab"]
    assert manifest["against"] == keys and len(set(keys)) == 2
    dropped = {row["id"]: row for row in rows_of(tmp_path / "c", "dropped")}
    assert [dropped[f"c{n}"]["duplicate_of_old"] for n in range(10)] == [
        f"{keys[0]}/input/a{n}" if n < 5 else f"{keys[1]}/input/b{n + 5}" for n in range(10)
    ]
    assert [dropped[f"c{n}"]["near_duplicate_of_old"] for n in (40, 45)] == [f"{keys[0]}/input/a30", f"{keys[1]}/input/b20"]
    assert dropped["c0"]["duplicate_of"] == 1 << 61 and dropped["c5"]["duplicate_of"] == (1 << 61) + (1 << 40) + 0
    assert {row["near_duplicate_of_old"] for row in rows_of(tmp_path / "c", "documents")} == {None}


def test_only_documents_that_stayed_count(tmp_path):
    """A document that a later rule dropped, or that fell to another one, keeps none away."""
    one, two = prose()[:2]
    middle, far = edited(one, 0.02, 1), edited(edited(one, 0.02, 1), 0.02, 2)  # far is near middle, and less near one
    recipe = NEAR | {"stages": "near_duplicates,gopher_quality", "rules.gopher_words": (20, INF)}
    short = "a heading of seven words, no more"
    a = write(tmp_path / "a", [one, middle, short])
    b = write(tmp_path / "b", [far, short + ".", two])
    strict = recipe | {"near_duplicates.threshold": 0.8}
    curate(tmp_path / "a1", a, **strict)
    curate(tmp_path / "b1", b, against=(tmp_path / "a1",), **strict)
    rows = {row["id"]: row for name in ("documents", "dropped") for row in rows_of(tmp_path / "b1", name)}
    assert rows["b0"]["near_duplicate_keep"] and rows["b1"]["near_duplicate_keep"]  # in one run middle connects b0 with a0
    assert curate(tmp_path / "both", a, b, **strict) == {"a0", "b2"}
    assert {row["id"] for row in rows_of(tmp_path / "b1", "documents")} == {"b0", "b2"}


@pytest.mark.slow
def test_a_result_depends_on_the_content_of_an_index(corpora, tmp_path, monkeypatch):
    a, b, _ = corpora
    curate(tmp_path / "a", a, **NEAR)
    curate(tmp_path / "b", b, against=(tmp_path / "a",), **NEAR)
    later = shutil.copytree(a, tmp_path / "input" / "a")
    for path in later.iterdir():
        os.utime(path, (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "UNIT_BYTES", 70_000)
        curate(tmp_path / "elsewhere" / "a", later, **NEAR)
    curate(tmp_path / "elsewhere" / "b", b, against=(tmp_path / "elsewhere" / "a",), **NEAR, processes=2)
    assert files_of(tmp_path / "elsewhere" / "b") == files_of(tmp_path / "b")
    assert indexed(tmp_path / "elsewhere" / "b") == indexed(tmp_path / "b")
    # Another corpus makes other results; the first ones come back.
    before = files_of(tmp_path / "b")
    (next(later.iterdir())).unlink()
    curate(tmp_path / "elsewhere" / "a", later, **NEAR)
    curate(tmp_path / "b", b, against=(tmp_path / "elsewhere" / "a",), **NEAR)
    assert files_of(tmp_path / "b") != before
    curate(tmp_path / "b", b, against=(tmp_path / "a",), **NEAR)
    assert files_of(tmp_path / "b") == before


def indexed(workdir: Path) -> dict[str, str | bytes]:
    """Return the key of the only index of a workdir, and its files."""
    (folder,) = [path for path in (workdir / "index").iterdir() if path.is_dir()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files | {"key": folder.name}


def test_a_run_that_stopped_anywhere_ends_the_same(corpora, tmp_path):
    a, b, _ = corpora
    curate(tmp_path / "a", a, **NEAR)
    curate(tmp_path / "b", b, against=(tmp_path / "a",), **NEAR)
    before = files_of(tmp_path / "b"), indexed(tmp_path / "b")
    files = [path for path in sorted((tmp_path / "b").rglob("*")) if path.is_file()]
    files = [path for path in files if path.name != "found.u64" and not {"parts", before[1]["key"]} & {*path.parts}]
    for first in range(3):
        for path in files[first::3]:
            path.unlink(missing_ok=True)
        (tmp_path / "b" / "stages" / "index-0123456789ab").mkdir(exist_ok=True)
        curate(tmp_path / "b", b, against=(tmp_path / "a",), **NEAR)
        assert (files_of(tmp_path / "b"), indexed(tmp_path / "b")) == before
    shutil.rmtree(tmp_path / "b" / "index")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*.parquet")}
    curate(tmp_path / "b", b, against=(tmp_path / "a",), **NEAR)
    assert indexed(tmp_path / "b") == before[1]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    curate(tmp_path / "b", b, against=(tmp_path / "a",), **NEAR, index=False)
    assert not (tmp_path / "b" / "index").exists()


def test_the_format_of_an_index(tmp_path):
    """An index holds hashes. If they change, FORMAT of data/recipe/index.py must, and the key here."""
    texts = ["One text of a few words.", "Another text of several more words, to have shingles."]
    recipe = {"stages": "exact_duplicates,repeated_pieces,near_duplicates"}
    recipe |= {"near_duplicates.bands": 14, "near_duplicates.rows": 8}
    curate(tmp_path / "w", write(tmp_path / "a", texts), **recipe)
    assert json.loads((tmp_path / "w" / "manifest.json").read_text())["index"] == "59a9998f56e9"


def test_what_users_do_wrong(corpora, tmp_path):
    a, b, _ = corpora
    curate(tmp_path / "a", a, **NEAR)
    curate(tmp_path / "none", a, **NEAR, index=False)
    curate(tmp_path / "plain", a, stages="gopher_quality")
    shutil.copytree(tmp_path / "a", tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    (tmp_path / "half" / "config.json").write_text("{}")
    shutil.copytree(tmp_path / "a", tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "index")
    (tmp_path / "other").mkdir()

    def refused(message: str, *names: str, **keys) -> None:
        with pytest.raises(UserError, match=message):
            curate(tmp_path / "new", b, against=tuple(tmp_path / name for name in names), **(NEAR | keys))
        assert not (tmp_path / "new").exists()

    refused(
        "near_duplicates.bands is 28 in .*a and 20 here; set --config.near_duplicates.bands=28",
        "a",
        **{"near_duplicates.bands": 20},
    )
    refused("no stage exact_duplicates", "a", stages="exact_duplicates,near_duplicates")
    refused("add one of exact_duplicates", "a", **{"stages": "gopher_quality", "rules.near_duplicate_keep": ()})
    refused("has no index; run its command again with --config.index=True", "none")
    refused("has no index; .*such as near_duplicates", "plain")
    refused("half is not finished; run its command again", "a", "half")
    refused("has lost its index", "lost")
    refused("is no workdir of curate.py", "other")
    refused("is no workdir of curate.py", "nowhere")
    refused("named twice", "a", "a")
    refused("is the workdir itself", "new")
    curate(tmp_path / "case", a, **EXACT, **{"exact_duplicates.normalise": "case"})
    with pytest.raises(UserError, match="exact_duplicates.normalise is 'case' in .* and 'whitespace' here"):
        curate(tmp_path / "new", b, against=(tmp_path / "case",), **EXACT)
