"""The page to browse documents, and the report beside it: what they hold, and what they do in a browser."""

import json
import random
import re
import urllib.parse
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.curate import default
from data.recipe.run import prepare, run
from lm.errors import UserError
from lm.reports import browse
from lm.reports.curate import write
from lm.reports.page import encoded
from tests.slow import all_but

INF = float("inf")
EVIL = "evil</script><script>document.title='owned'</script>&amp;\u202e+ #%"
PROSE = "It is the end of line {0} in this document, and we have that with the others to be here.\n"


def prose(begin: int, lines: int = 12) -> str:
    return "".join(PROSE.format(line) for line in range(begin, begin + lines))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    image = "<img src=http://127.0.0.1:9/x onerror=alert(2)>"
    evil = f"</script><!-- <script>alert(1)</script> \u202eRTL\u2066 \x00\x1b {image} {prose(900)}"
    rows = [{"id": f"good-{k}", "text": prose(20 * k), "url": f"https://example.org/{k}"} for k in range(40)]
    rows += [{"id": f"copy-{k}", "text": prose(0), "source": f"s{k}</option>"} for k in range(3)]
    rows += [{"id": f"short-{k}", "text": f"- too short {k}\n- and a list"} for k in range(40)]
    rows += [
        {"id": EVIL, "text": evil, "url": "javascript:alert(3)", "license": "<b>free</b>", "more": {"key": "</script>"}},
        {"id": "same", "text": prose(2000)},
        {"id": "same", "text": prose(3000, 13)},
        {"id": "private", "text": prose(4000) + "no end mark\n" + prose(4100) + "Write to jane.doe@example.org, please do so."},
        {"id": "long", "text": prose(5000, 3000)},
        {"id": "arabic", "text": "هذا نص طويل. " * 30, "url": "https://example.org/ar"},
    ]
    folder = tmp_path_factory.mktemp("source")
    for k in range(3):
        (folder / f"part-{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[k::3]))
    return folder


def config_of(source, **more):
    config = default.get_config()
    config.input = f"web={source}"
    config.stages = "unicode,gopher_quality,c4,exact_duplicates,near_duplicates,pii"
    config.processes, config.audit = 1, False
    config.browse.characters = 2500
    config.rules.gopher_words = (50, INF)
    config.rules.gopher_bullet_lines = (0, 0.9)
    config.rules.gopher_stop_words = (2, INF)
    config.rules.duplicate_keep = (1, 1)
    config.update_from_flattened_dict(more)
    return config


def curated(source, workdir, **more) -> Path:
    config = config_of(source, **more)
    prepared = prepare(config.to_dict())
    write(workdir, config, run(config.to_dict(), workdir, prepared), prepared)
    return workdir


@pytest.fixture(scope="module")
def corpus(source, tmp_path_factory) -> Path:
    return curated(source, tmp_path_factory.mktemp("one") / "corpus")


def data_of(workdir: Path) -> dict:
    page = (workdir / "browse.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    found = json.loads(data)
    names = [column["name"] for column in found["columns"]]
    return found | {"documents": [one | dict(zip(names, one["values"])) for one in found["documents"]]}


def rows_of(workdir: Path, name: str) -> list[dict]:
    return [row for path in sorted((workdir / name).iterdir()) for row in pq.read_table(path).to_pylist()]


def test_documents_are_as_the_corpus_has_them(corpus):
    found, kept, dropped = data_of(corpus), rows_of(corpus, "documents"), rows_of(corpus, "dropped")
    assert len(found["documents"]) == len(kept) + len(dropped)
    written = {(row["id"], row["gopher_words"]): row for row in [*kept, *dropped]}
    for one in found["documents"]:
        row = written[one["id"], one["gopher_words"]]
        assert one["reason"] == row.get("reason", "kept")
        names = [column["name"] for column in found["columns"]]
        assert {name: one[name] for name in names} == {name: value for name, value in row.items() if name in names}
        assert set(row) - {"text", "reason"} == set(names)
        (_, first, length), (_, last, _) = one["texts"][0], one["texts"][-1]
        if length > len(first):
            assert one["id"] == "long" and len(first) == 2500
        else:
            assert row["text"] == (last if one["reason"] == "kept" else first)


def test_every_broken_rule_is_named_and_texts_by_stage(corpus):
    found = {one["id"]: one for one in data_of(corpus)["documents"]}
    assert found["short-7"]["fails"] == ["gopher_words", "gopher_bullet_lines", "gopher_stop_words"]
    assert found["short-7"]["reason"] == "gopher_words" and found["good-3"]["fails"] == []
    read, removed, masked = found["private"]["texts"]
    assert (removed[0], masked[0]) == ("c4", "pii")
    assert "no end mark\n" in read[1] and "no end mark\n" not in removed[1] and "jane.doe@" in removed[1]
    assert masked[1] == removed[1].replace("jane.doe@example.org", "<EMAIL>")
    assert {found[f"copy-{k}"]["links"].get("duplicate_of", "itself") for k in range(3)} <= {"good-0", "copy-0", "itself"}


def test_rules_are_told_with_their_bounds(corpus):
    rules = data_of(corpus)["rules"]
    assert rules["gopher_words"] == "50 ≤ gopher_words"
    assert set(rules) == {"gopher_words", "gopher_bullet_lines", "gopher_stop_words", "duplicate_keep"}


def test_the_report_and_the_page_name_each_other(corpus):
    report = (corpus / "report.html").read_text()
    links = re.findall(r'href="(browse\.html#[^"]+)"', report)
    there = {(one["id"], one["reason"]) for one in data_of(corpus)["documents"]}
    for link in links:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(link.replace("&amp;", "&")).fragment)
        assert (query["id"][0], query["reason"][0]) in there
    samples = json.loads((corpus / "report.json").read_text())["figures"]["samples"]
    assert len(links) >= sum(map(len, samples.values()))
    assert f'href="browse.html">Browse {len(data_of(corpus)["documents"])} documents' in report  # two have the same id
    assert 'href="report.html"' in (corpus / "browse.html").read_text()


def test_duplicate_clusters_in_the_report(corpus):
    exact, near = json.loads((corpus / "report.json").read_text())["figures"]["duplicates"]
    assert (exact["stage"], exact["clusters"], exact["documents"], exact["removed"]) == ("exact_duplicates", 1, 4, 3)
    assert exact["sizes"] == [[4, 7, 1, 4]] and exact["dropped"] and not near["dropped"]
    (largest,) = exact["largest"]
    assert {largest["kept"]["id"], *largest["removed"]} == {"good-0", "copy-0", "copy-1", "copy-2"}
    assert largest["kept"]["text"] == prose(0)[:300]
    assert {"candidates", "verified", "clustered", "removed"} <= set(near["counts"])
    page = (corpus / "report.html").read_text()
    assert "Duplicate clusters" in page and "but no rule drops them" in page and "candidates: " in page


@pytest.mark.parametrize("processes", all_but([1], [1, 2]))
def test_workers_and_reruns_change_nothing(source, corpus, tmp_path, processes):
    for _ in range(2):
        other = curated(source, tmp_path / "corpus", processes=processes)
        assert (other / "browse.html").read_bytes() == (corpus / "browse.html").read_bytes()


def test_sample_and_size_are_bounded(source, corpus, tmp_path):
    few = curated(source, tmp_path / "corpus", **{"browse.documents": 10})
    reasons = [one["reason"] for one in data_of(few)["documents"]]
    assert len(reasons) == 10 and reasons.count("kept") == 3 and {"gopher_words", "gopher_stop_words"} <= set(reasons)
    assert {one["id"] for one in data_of(few)["documents"]} <= {one["id"] for one in data_of(corpus)["documents"]}
    curated(source, few, **{"browse.documents": 0})
    assert not (few / "browse.html").exists() and "browse.html" not in (few / "report.html").read_text()


def test_texts_are_cut_until_the_page_fits(corpus):
    keys = ("number", "reason", "values", "fails", "texts", "links")
    whole = [{key: one[key] for key in keys} for one in data_of(corpus)["documents"]]
    size = sum(len(encoded(one).encode()) for one in whole)
    found = browse.fitted(whole, 2500, size // 2)
    assert size // 4 < sum(len(encoded(one).encode()) for one in found) <= size // 2
    for one, other in zip(found, whole, strict=True):
        for (stage, text, length), (other_stage, whole_text, whole_length) in zip(one["texts"], other["texts"], strict=True):
            assert (stage, length) == (other_stage, whole_length) and whole_text.startswith(text)
    assert browse.fitted(whole, 2500, size) == whole


def test_each_reason_gets_its_share():
    chosen = {
        name: [[f"{k:03}", 100 * at + k] for k in range(size)]
        for at, (name, size) in enumerate({"a": 2, "b": 50, "c": 50}.items())
    }
    found = browse.stratified(chosen, 20)
    assert list(found) == sorted(found) and [list(found.values()).count(name) for name in "abc"] == [2, 9, 9]
    assert set(found) == {0, 1, *range(100, 109), *range(200, 209)}
    assert len(browse.stratified(chosen, 2)) == 2 and browse.stratified(chosen, 0) == {} and browse.stratified({}, 5) == {}
    assert len(browse.stratified(chosen, 1000)) == 102


def test_a_fault_of_the_config(source):
    with pytest.raises(UserError, match="browse.documents=-1"):
        prepare(config_of(source, **{"browse.documents": -1}).to_dict())


def test_nothing_of_a_document_becomes_html(corpus):
    page = (corpus / "browse.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 and page.count("</script>") == 2 and "\x00" not in page and "<!--" not in page
    assert "<img" not in page and "<b>free" not in page
    report = (corpus / "report.html").read_text(encoding="utf-8")
    assert "<script" not in report and "<img" not in report


def opened(browser, corpus, id: str) -> None:
    browser.run(f"location.hash = new URLSearchParams({{id: {json.dumps(id)}}})")
    browser.until(
        f"document.querySelector('#list [aria-current]')?.hash.includes(new URLSearchParams({{id: {json.dumps(id)}}}))"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_hostile_documents_as_text(browser, corpus, width, scheme):
    browser.said.clear()
    browser.asked.clear()
    for name in ("report.html", "browse.html"):
        assert browser.open(corpus / name, width, scheme=scheme)["scroll"] <= 0
    assert "hostile" not in browser.run("document.title") and browser.run("document.title") != "owned"
    opened(browser, corpus, EVIL)
    text = browser.run("document.querySelector('#pane pre').textContent")
    assert "</script><!-- <script>alert(1)</script>" in text and "U+202E" in text and "U+0000" in text
    assert browser.run("document.querySelectorAll('#pane img, #pane script, #pane a[href^=javascript]').length") == 0
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert browser.said == [] and browser.asked == [(corpus / name).as_uri() for name in ("report.html", "browse.html")]


def test_a_document_in_a_browser(browser, corpus):
    browser.open(corpus / "browse.html", 1280)
    opened(browser, corpus, "private")
    assert browser.run("document.querySelector('#views [aria-pressed=true]').textContent") == "all stages: 2 changes"
    marks = "[...document.querySelectorAll('#pane pre :is(del, ins)')].map(one => one.textContent)"
    assert browser.run(marks) == ["no end mark↵\n", "jane.doe@example.org", "<EMAIL>"]
    browser.run("document.querySelector('[data-view=pii]').click()")
    assert browser.run(marks) == ["jane.doe@example.org", "<EMAIL>"]
    browser.run("document.querySelector('[data-view=\"at the end\"]').click()")
    written = next(row["text"] for row in rows_of(corpus, "documents") if row["id"] == "private")
    assert browser.run("document.querySelector('#pane pre').textContent") == written
    opened(browser, corpus, "short-7")
    assert browser.run("document.querySelectorAll('#measures tr.fails').length") == 3
    verdicts = "[...document.querySelectorAll('#measures tr')].map(one => one.textContent)"
    assert any(row.startswith("duplicate_keep") and row.endswith("not compared") for row in browser.run(verdicts))
    assert "gopher_words = " in browser.run("document.querySelector('#pane').textContent")
    opened(browser, corpus, "long")
    assert "Cut here: " in browser.run("document.querySelector('#pane pre').textContent")


def test_filters_search_sorting_and_keys(browser, corpus):
    browser.open(corpus / "browse.html", 1280)
    rows = "[...document.querySelectorAll('#list a bdi')].map(one => one.textContent)"

    def put(**values) -> list[str]:
        for name, value in values.items():
            browser.run(f"document.getElementById('filters')['{name}'].value = {json.dumps(value)}")
        browser.run("document.getElementById('filters').dispatchEvent(new Event('input'))")
        return browser.run(rows)

    short = {f"short-{k}" for k in range(40)}
    assert set(put(reason="=gopher_words")) == short
    assert put(search="TOO SHORT 13") == ["short-13"] and "reason=gopher_words&search=TOO" in browser.run("location.hash")
    assert put(search="no such words") == []
    measured = [(one["gopher_words"], one["id"].replace("\u202e", "U+202E")) for one in data_of(corpus)["documents"]]
    some = sorted((one for one in measured if 200 <= one[0] <= 260), key=lambda one: -one[0])
    assert put(reason="", search="", column="gopher_words", least="200", most="260", order="down") == [id for _, id in some]
    assert 2 < len(some) < len(measured) - 40
    put(column="", least="", most="", order="", reason="=duplicate_keep")
    listed = browser.run(rows)
    assert len(listed) == 3
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}))"
    browser.run(press % "j")
    assert browser.run("document.querySelector('#pane h2').textContent") == listed[1]
    browser.run(press % "k")
    assert browser.run("document.querySelector('#pane h2').textContent") == listed[0]
    browser.run(press % "/")
    assert browser.run("document.activeElement.name") == "search"
    # An address opens the same filters and the same document.
    browser.run("location.hash = 'reason=duplicate_keep&id=nobody'")
    assert browser.until("document.querySelector('#pane .notice')?.textContent").startswith("This document is not")
    assert browser.run(rows) == listed


def test_a_browser_shows_what_makes_one_text_of_the_other(browser, corpus):
    """Pieces that stay or are removed make the first text, and pieces that stay or are added the second."""
    draw = random.Random(0)
    pairs = []
    for letters in ("ab \n", "abcdefgh  \n", "a", "é中文字 \n😀"):
        for length in range(0, 200, 4):
            before = after = "".join(draw.choice(letters) for _ in range(length))
            for _ in range(draw.randrange(5)):
                begin = draw.randrange(len(after) + 1)
                after = after[:begin] + draw.choice(["", "<EMAIL>", "\n", "é"]) + after[begin + draw.randrange(40) :]
            pairs.append([before, after])
    lines = [f"This is line {n}, and it ends here.\n" for n in range(40)]
    without = "".join(line for n, line in enumerate(lines) if n % 10)
    pairs += [["".join(lines), without], ["".join(lines), without.replace("line 5", "row 5")]]
    script = (Path(browse.__file__).parent / "templates" / "browse.js").read_text(encoding="utf-8")
    functions = script[script.index("const LINES") : script.index("// [name, pieces]")]
    browser.open(corpus / "browse.html", 1280)
    made = browser.run(f"(() => {{ {functions} return {json.dumps(pairs)}.map(([one, other]) => diff(one, other)); }})()")
    for (before, after), pieces in zip(pairs, made, strict=True):
        assert "".join(same + removed for same, removed, _ in pieces) == before
        assert "".join(same + added for same, _, added in pieces) == after
        assert before != after or not any(removed or added for _, removed, added in pieces)
    assert [removed for _, removed, _ in made[-2] if removed] == lines[::10]
    assert [change for change in made[-1] if change[1:] == ["line", "row"]]
