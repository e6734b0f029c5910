"""A recipe from files to documents, in this process and in workers."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.curate import default, fineweb, gopher
from data.recipe import inputs
from data.recipe.run import run
from lm.errors import UserError
from tests.slow import all_but

INF = float("inf")
ALL = "urls,opt_outs,unicode,language,gopher_quality,gopher_repetition,c4,c4_paragraphs,fineweb_quality,dclm_lines,code,pii"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Pages of prose (some twice, one nearly), lists, and a file that is no JSON."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("corpus")
    pages = [topics[name] for name in sorted(topics)]
    rows = [{"id": f"p{k}", "text": page, "url": f"https://example.org/{k}"} for k, page in enumerate(pages)]
    rows += [{"id": "again", "text": pages[3]}, {"id": "near", "text": pages[4].replace("the", "one", 1)}]
    rows += [{"id": f"list{k}", "text": "- item\n" * 60} for k in range(3)]
    for k in range(3):
        lines = [json.dumps(row) for row in rows[k::3]]
        (folder / f"part-{k}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "broken.jsonl").write_text("no json\n")
    return folder


def test_what_is_lost_of_a_file_is_in_the_figures_and_the_manifest(corpus, tmp_path):
    rows = (corpus / "part-0.jsonl").read_bytes().splitlines(keepends=True)[:30]
    members = [gzip.compress(b"".join(rows[k : k + 10])) for k in (0, 10, 20)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.jsonl.gz").write_bytes(members[0] + members[1][:-20] + members[2])
    (tmp_path / "in" / "lines.jsonl").write_bytes(rows[0] + b"no json\n" * 300)
    (tmp_path / "in" / "nothing.jsonl").write_bytes(b"")
    config = config_of(tmp_path / "in")
    unread = run(config, tmp_path / "out")["quarantined"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["unread"] == [
        {name: value for name, value in row.items() if name != "path"} for row in unread
    ]
    [cut] = [row for row in unread if row["reason"] == "damaged gzip"]
    lines = [row for row in unread if row["file"] == "input/lines.jsonl"]
    nothing = unread[-1]
    begin = len(members[0])
    assert cut["file"] == "input/cut.jsonl.gz" and cut["reason"] == "damaged gzip" and cut["documents"] >= 20
    assert begin <= cut["place"][0] < cut["place"][1] == begin + len(members[1]) - 20
    assert len(lines) == 101 and sum(row["count"] for row in lines) == 300 and lines[0]["where"] == "line 2"
    assert (nothing["file"], nothing["reason"], nothing["documents"]) == ("input/nothing.jsonl", "no documents", 0)


def config_of(corpus, **more) -> dict:
    config = default.get_config()
    config.input = str(corpus)
    config.stages = "gopher_quality,exact_duplicates,near_duplicates,pii"
    config.processes = 1
    config.rules.gopher_words = (50, INF)
    config.rules.gopher_bullet_lines = (0, 0.9)
    config.rules.duplicate_keep = (1, 1)
    config.rules.near_duplicate_keep = (1, 1)
    config.update_from_flattened_dict(more)
    return config.to_dict()


def rows_of(workdir: Path, name: str) -> list[dict]:
    return [row for path in sorted((workdir / name).iterdir()) for row in pq.read_table(path).to_pylist()]


def files_of(workdir: Path) -> dict[str, bytes]:
    names = [path for name in ("documents", "dropped") for path in (workdir / name).iterdir()]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in [*names, workdir / "manifest.json"]}


def test_documents_stay_or_go_with_a_reason(corpus, tmp_path):
    found = run(config_of(corpus), tmp_path)
    kept, dropped = rows_of(tmp_path, "documents"), rows_of(tmp_path, "dropped")
    reasons = {row["id"]: row["reason"] for row in dropped}
    assert {reasons[f"list{k}"] for k in range(3)} == {"gopher_bullet_lines"}
    twins = [{"p3", "again"}, {"p4", "near"}]
    assert [len(twin & {row["id"] for row in kept}) for twin in twins] == [1, 1]
    assert sorted(reasons[id] for twin in twins for id in twin & set(reasons)) == ["duplicate_keep", "near_duplicate_keep"]
    counts = [rows for languages in found["funnel"].values() for rows in languages.values()]
    assert (
        sum(row.get("kept", [0])[0] for row in counts) == len(kept)
        and kept[0]["url"] == f"https://example.org/{kept[0]['id'][1:]}"
    )
    assert {row["gopher_words"] >= 50 for row in kept} == {True}
    assert [one["reason"] != "" for one in found["quarantined"]] == [True]


@pytest.mark.parametrize("unit_bytes", all_but([1], [inputs.MIN_UNIT_BYTES, 1]))  # one unit, and one for each file
def test_workers_change_nothing_and_a_rerun_does_nothing(corpus, tmp_path, monkeypatch, unit_bytes):
    monkeypatch.setattr(inputs, "MIN_UNIT_BYTES", unit_bytes)
    monkeypatch.setattr(inputs, "UNITS", 1000)
    run(config_of(corpus), tmp_path / "one")
    run(config_of(corpus, processes=2), tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.parquet")}
    run(config_of(corpus), tmp_path / "one")
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_threshold_makes_only_what_depends_on_it_anew(corpus, tmp_path):
    run(config_of(corpus), tmp_path)
    before = {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*.parquet")}
    strict = config_of(corpus)
    strict["rules"]["gopher_words"] = (200, INF)
    run(strict, tmp_path)
    after = {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*.parquet")}
    again = {path.parts[1].rsplit("-", 1)[0] for path in after if after[path] != before.get(path)}
    assert again == {"exact_duplicates", "near_duplicates"}  # they compare what the rules before them leave
    assert {row["gopher_words"] >= 200 for row in rows_of(tmp_path, "documents")} == {True}


def test_a_run_that_stopped_anywhere_ends_the_same(corpus, tmp_path):
    run(config_of(corpus), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    files = [path for path in sorted((tmp_path / "cut").rglob("*.*")) if path.is_file() and path.suffix != ".u64"]
    for path in [path for path in files if path.name != "settings.json"][::3]:
        path.unlink()
    run(config_of(corpus), tmp_path / "cut")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_lost_result_is_made_again(corpus, tmp_path):
    run(config_of(corpus), tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / "stages").glob("*/*.*") if path.is_file()}
    lost = [path for path in files if path.parent.name.startswith(("pii-", "near_duplicates-")) or ".quarantined" in path.name]
    for path in lost:
        path.unlink()
    run(config_of(corpus), tmp_path)
    assert len(lost) > 3 and {path: path.read_bytes() for path in lost} == {path: files[path] for path in lost}


def test_a_unit_without_documents_has_all_columns(corpus, tmp_path):
    found = run(config_of(corpus / "broken.jsonl", stages=f"{ALL},exact_duplicates,near_duplicates"), tmp_path)
    (path,) = (tmp_path / "documents").iterdir()
    table = pq.read_table(path)
    assert table.num_rows == 0 and {"id", "text", "gopher_words", "near_duplicate_keep", "pii_email"} <= set(table.column_names)
    run(config_of(corpus / "broken.jsonl", stages=f"{ALL},exact_duplicates,near_duplicates"), tmp_path)
    assert len(found["quarantined"]) == 1 and rows_of(tmp_path, "dropped") == []


def test_names_of_sources(corpus, tmp_path):
    folder = tmp_path / "date=2024"
    shutil.copytree(corpus, folder)
    assert set(run(config_of(folder), tmp_path / "one")["funnel"]) == {"input"}
    two = run(config_of(f"web={folder}/part-0.jsonl,books={folder}/part-1.jsonl"), tmp_path / "two")
    assert set(two["funnel"]) == {"web", "books"}


def test_the_best_of_equal_documents_stays(corpus, tmp_path):
    keep = {"stages": "gopher_quality,near_duplicates", "near_duplicates.keep": "gopher_stop_words"}
    config = config_of(corpus, **keep)
    run(config | {"rules": {"near_duplicate_keep": (1, 1)}}, tmp_path)
    rows = {row["id"]: row for row in [*rows_of(tmp_path, "documents"), *rows_of(tmp_path, "dropped")]}
    clusters: dict[int, list] = {}
    for row in rows.values():
        clusters.setdefault(row["near_duplicate_cluster"], []).append(row)
    several = [rows for rows in clusters.values() if len(rows) > 1]
    assert several
    for members in several:
        (stays,) = [row for row in members if row["near_duplicate_keep"]]
        assert stays["gopher_stop_words"] == max(row["gopher_stop_words"] for row in members)


def test_another_input_leaves_nothing_of_the_old_one(corpus, tmp_path):
    run(config_of(corpus), tmp_path)
    run(config_of(corpus / "part-0.jsonl"), tmp_path)
    assert len(list((tmp_path / "documents").iterdir())) == 1


@pytest.mark.parametrize("recipe", [gopher, fineweb])
def test_published_recipes(recipe, corpus, tmp_path):
    config = recipe.get_config()
    config.input, config.processes = f"python={corpus}", 1
    found = run(config.to_dict(), tmp_path)
    assert list(found["funnel"]) == ["python"]
    assert rows_of(tmp_path, "documents") and rows_of(tmp_path, "dropped")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stages": "gopher_qualty"}, "did you mean gopher_quality"),
        ({"stages": "pii,pii"}, "twice"),
        ({"stages": "gopher_quality"}, "rules.duplicate_keep: no stage"),
        ({"input": "/no/such/corpus"}, "input="),
        ({"input": ""}, "input"),
        ({"near_duplicates.rows": 0}, "rows"),
        ({"near_duplicates.keep": "gopher_wrds"}, "near_duplicates.keep='gopher_wrds'"),
        ({"pii.style": "stars"}, "style"),
        ({"tokenizer": "t", "dataset.bucket_by": "gopher_wrds"}, "dataset.bucket_by='gopher_wrds'.*nearest is 'gopher_words'"),
        ({"tokenizer": "t", "dataset.bucket_by": "gopher_words", "dataset.buckets": 1}, "dataset.buckets=1"),
    ],
)
def test_a_fault_of_the_config_is_one_line(corpus, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run(config_of(corpus, **change), tmp_path)
    assert not (tmp_path / "documents").exists()


def test_benchmark_items_are_cut_or_dropped(corpus, tmp_path):
    rows = [json.loads(line) for path in sorted(corpus.glob("part-*.jsonl")) for line in path.read_text().splitlines()]
    long = max((row for row in rows if len(row["text"].split()) > 400), key=lambda row: len(row["text"]))
    words = long["text"].split()
    (tmp_path / "items.jsonl").write_text(json.dumps({"question": " ".join(words[200:230]), "n": 7}) + "\n")
    config = config_of(corpus, stages="decontaminate", **{"decontaminate.benchmarks": str(tmp_path / "items.jsonl")})
    found = run(config | {"rules": {}}, tmp_path / "cut")
    (kept,) = [row for row in rows_of(tmp_path / "cut", "documents") if row["id"] == long["id"]]
    assert " ".join(words[200:230]) not in " ".join(kept["text"].split()) and len(kept["text"]) > 400
    assert found["contamination"]["items.jsonl:1"][0] >= 1 and long["id"] in found["contamination"]["items.jsonl:1"][1]
    config["decontaminate"]["policy"] = "measure"
    run(config | {"rules": {"contamination_matches": (0, 0)}}, tmp_path / "drop")
    assert long["id"] in {row["id"] for row in rows_of(tmp_path / "drop", "dropped")}


@pytest.mark.slow
def test_beam_writes_the_same_bytes(corpus, tmp_path):
    pytest.importorskip("apache_beam")
    run(config_of(corpus), tmp_path / "local")
    run(config_of(corpus, runner="beam"), tmp_path / "beam")
    assert files_of(tmp_path / "beam") == files_of(tmp_path / "local")
