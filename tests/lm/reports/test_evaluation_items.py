"""The page of an evaluation's items: what it holds of each item, and what it does in a browser, with hostile texts too."""

import base64
import html
import json
import re
import urllib.parse
import zlib

import pytest

from lm.reports import evaluate as evaluation_report
from lm.reports.evaluation_items import entry, item_name, shortened
from lm.reports.items import Items, address, beginning, group_of, state
from tests.lm.reports.evaluation_runs import HOSTILE, a_run, read

EVIL = f"{HOSTILE} </script><!-- <script>document.title='owned'</script> \u2028 \ud800 \x00 ]]> &lt;"
CHOICE = {
    "task": "mmlu",
    "doc_id": "law 3",
    "group": "law",
    "subject": "law",
    "prompt": f"An example.\nAnswer: A\n\nWhat is a tort, and {'who may ' * 20}sue?\nAnswer:",
    "choices": [" A", " B", " C"],
    "loglikelihoods": [-2.0, -1.0, None],
    "tokens": [[[1, 2], [3]], [[1, 2], [3, 4]], None],
    "target": 0,
    "reference": "A",
    "prediction": 1,
    "metrics": {"acc": 0.0, "acc_norm": None},
    "failed": True,
    "flags": ["prompts_cut"],
    "split": "test",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with tasks of every kind, a hostile item, and items that share a name."""
    run = a_run(tmp_path_factory.mktemp("items") / "run", 0.6, 2)
    evil = CHOICE | {"task": EVIL, "doc_id": EVIL, "prompt": EVIL, "choices": [EVIL, "b", "c"], "loglikelihoods": [-1, -2, -3]}
    evil |= {"reference": EVIL, "generation": EVIL, EVIL: EVIL, "flags": [EVIL], "group": EVIL, "metrics": {EVIL: 1.0}}
    with open(run / "samples.jsonl", "a") as file:
        for sample in (evil, CHOICE | {"task": "twins"}, CHOICE | {"task": "twins"}):
            file.write(json.dumps(sample) + "\n")
    evaluation_report.write(run, *read(run))
    return run


def unpacked(text: str):
    return json.loads(zlib.decompress(base64.b64decode(text)))


def page_of(folder) -> tuple[dict, list[dict]]:
    """The index and the entries of a page."""
    page = (folder / "items.html").read_text(encoding="utf-8")
    index = re.search(r'id="index">([^<]*)<', page)[1]
    blocks = re.findall(r'id="block\d+">([^<]*)<', page)
    return unpacked(index), [one for block in blocks for one in unpacked(block)]


def test_every_item_is_there_in_order(folder):
    index, entries = page_of(folder)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(index["rows"]) == len(entries) == len(samples)
    for (task, name, kind, *_), one, sample in zip(index["rows"], entries, samples):
        if sample["task"] in ("mmlu", "gsm8k", "wikitext"):
            assert (index["tasks"][task], name) == (sample["task"], str(sample["doc_id"]))
            expected = "wrong" if sample["failed"] else "measured" if sample["task"] == "wikitext" else "right"
            assert index["states"][kind] == expected and one["metrics"] == sample["metrics"]
        if sample["task"] == "mmlu":
            assert one["prompt"] == [["", sample["prompt"]]] and one["gold"] == sample["reference"]
            assert [(text, score) for text, score, _ in one["choices"]] == [
                (text, pytest.approx(score, abs=1e-5)) for text, score in zip(sample["choices"], sample["loglikelihoods"])
            ]
        if sample["task"] == "gsm8k":
            assert ["generation", sample["generation"]] in one["said"] and ["answer", sample["answer"]] in one["said"]
    assert [name for _, name, *_ in index["rows"][-2:]] == ["law 3", "law 3 (2)"]
    families = [name for task, name, *_ in index["rows"] if index["tasks"][task] == "redteam"]
    assert families[:3] == ["0 direct", "0 rot13", "0 role_play"] and len(set(families)) == len(families)


def test_what_an_item_shows():
    one = entry(CHOICE)
    assert one["choices"] == [[" A", -2.0, 1], [" B", -1.0, 2], [" C", None, None]]
    assert (one["chosen"], one["right"], one["gold"], one["said"]) == (1, [0], "A", [])
    assert one["more"] == [["subject", "law"], ["split", "test"]]
    likeliest = {key: value for key, value in CHOICE.items() if key != "prediction"} | {"loglikelihoods": [-1.0, -1.0, -2.0]}
    assert entry(likeliest)["chosen"] == 0 and entry(likeliest | {"loglikelihoods": [-1.0, None, -2.0]})["chosen"] is None
    options = entry({"options": ["x", "y"], "target": 1, "answer": "x", "metrics": {}})
    assert options["choices"] == [["x", None, None], ["y", None, None]] and options["said"] == [["answer", "x"]]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    assert entry({"messages": turns})["prompt"] == [["user", "Hi"]]
    assert entry({"prompt": ["one", "two"], "generations": ["a", "b"], "target": {"odd": 1}})["said"] == [["generation 2", "b"]]
    long = shortened("a" * 40 + "b" * 60, 40)
    assert long.startswith("a" * 10 + "\n") and long.endswith("\n" + "b" * 30) and "60 characters are left out" in long


def test_the_row_of_an_item():
    assert beginning(CHOICE).startswith("What is a tort, and who") and group_of(CHOICE) == "law" and group_of({}) == ""
    assert beginning({"prompt": "A story.\n\nWho?"}) == "A story. Who?" and beginning({"choices": ["He", "She"]}) == "He"
    assert item_name({"subtask": "law", "doc_id": 1}) == "law 1" and item_name({"doc_id": "\ud800"}) == "\\ud800"
    states = [{"failed": True}, {"metrics": {"acc": 1.0}}, {"metrics": {"bits_per_byte": 1.0}}, {"metrics": {"acc": None}}]
    assert list(map(state, states)) == [0, 1, 2, 3]
    assert address("a/b", "c?d &", state="wrong") == "items.html#a%2Fb/c%3Fd%20%26?state=wrong"


def test_nothing_of_an_item_becomes_html(folder):
    for name in ("items.html", "report.html"):
        page = (folder / name).read_text(encoding="utf-8")
        assert "<img" not in page and "<!--" not in page and "owned'</script>" not in page
    page = (folder / "items.html").read_text(encoding="utf-8")
    blocks = len(re.findall(r'id="block\d+"', page))
    assert page.count("<script") == page.count("</script>") == blocks + 2
    assert "default-src 'none'" in page and not re.search(r"https?://", page)


def test_the_report_leads_to_items(folder):
    index, _ = page_of(folder)
    there = {(index["tasks"][row[0]], row[1]) for row in index["rows"]}
    links = re.findall(r'href="(items\.html#[^"]*)"', html.unescape((folder / "report.html").read_text()))
    assert {"items.html#", "items.html#mmlu", "items.html#mmlu?state=wrong"} <= set(links)
    to_items = [link.partition("#")[2].partition("?")[0].split("/") for link in links if "/" in link]
    assert len(to_items) >= 15 and {tuple(map(urllib.parse.unquote, parts)) for parts in to_items} <= there
    assert 'href="report.html"' in (folder / "items.html").read_text()


def test_without_items_there_is_no_page(tmp_path):
    (tmp_path / "items.html").write_text("old")
    (tmp_path / "samples.jsonl").write_text("")
    evaluation_report.write(tmp_path, {"mmlu": {"acc": 0.5, "acc_stderr": 0.1, "n": 4}}, tmp_path / "samples.jsonl")
    assert not (tmp_path / "items.html").exists() and "items.html" not in (tmp_path / "report.html").read_text()


def test_blocks_are_small_and_equal_runs_give_equal_pages(tmp_path):
    pages = []
    for _ in range(2):
        items = Items()
        for n in range(400):
            items.add(CHOICE | {"doc_id": n, "prompt": f"{n} " + "word " * 400})
        items.write(tmp_path, "of <many>")
        pages.append((tmp_path / "items.html").read_bytes())
    index, entries = page_of(tmp_path)
    assert pages[0] == pages[1] and len(entries) == 400 and len(index["starts"]) == 4 and b"of &lt;many&gt;" in pages[0]


def opened(browser, folder, fragment: str, heading: str, width: int = 1280, scheme: str = "light") -> None:
    browser.visit("about:blank", width)
    browser.said.clear()
    browser.asked.clear()
    browser.visit((folder / "items.html").resolve().as_uri() + fragment, width, scheme=scheme)
    browser.until(f"document.querySelector('#pane h2')?.textContent === {json.dumps(heading)}")


def put(browser, told: str, **values) -> list[str]:
    """Set filters, wait for the count, and return the names in the list."""
    for name, value in values.items():
        browser.run(f"document.getElementById('filters')['{name}'].value = {json.dumps(value)}")
    browser.run("document.getElementById('filters').dispatchEvent(new Event('input'))")
    browser.until(f"document.getElementById('count').textContent.startsWith({json.dumps(told)})")
    return browser.run("[...document.querySelectorAll('#list a bdi')].map(one => one.textContent)")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_hostile_items_as_text(browser, folder, width, scheme):
    index, _ = page_of(folder)
    evil = index["rows"][-3]
    link = address(index["tasks"][evil[0]], evil[1]).removeprefix("items.html")
    opened(browser, folder, "#mmlu", "mmlu / 0", width, scheme)
    browser.run(f"location.hash = {json.dumps(link)}")
    text = browser.until(
        "document.querySelector('#pane h2')?.textContent.includes('owned') && document.querySelector('#pane').textContent"
    )
    assert "<script>document.title='owned'</script>" in text and "U+2028" in text and "U+D800" in text and "U+0000" in text
    assert browser.run("document.title") != "owned"
    assert browser.run("document.querySelectorAll('#pane img, #pane script, #list img, form img').length") == 0
    browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert browser.said == [] and browser.asked == [(folder / "items.html").resolve().as_uri()]


def test_an_address_opens_an_item(browser, folder):
    opened(browser, folder, "#mmlu/7", "mmlu / 7")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    seven = next(one for one in samples if one["task"] == "mmlu" and one["doc_id"] == 7)
    best = max(range(4), key=seven["loglikelihoods"].__getitem__)
    rows = browser.run(
        "[...document.querySelectorAll('#choices tbody tr')].map(one => [...one.cells].map(cell => cell.textContent))"
    )
    assert [row[0] for row in rows] == seven["choices"]
    assert [float(row[2]) for row in rows] == pytest.approx(seven["loglikelihoods"], abs=1e-3)
    marks = [row[1] for row in rows]
    assert "likeliest" in marks[best] and "right" in marks[seven["target"]] and len(list(filter(None, marks))) <= 2
    assert browser.run("document.querySelector('#list [aria-current] bdi').textContent") == "7"
    assert "50 of 60" in browser.run("document.getElementById('range').textContent")
    browser.run("document.getElementById('next').click()")
    assert browser.run("document.querySelectorAll('#list a').length") == 10
    opened(browser, folder, "#mmlu/55?task=", "mmlu / 55")  # in the list of all tasks
    assert "51–100" in browser.run("document.getElementById('range').textContent")
    browser.run("location.hash = '#mmlu/nobody'")
    browser.until("document.querySelector('#pane .notice')?.textContent.startsWith('The evaluation has no such item')")


def test_filters_search_and_keys(browser, folder):
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    wrong = [str(one["doc_id"]) for one in samples if one["task"] == "mmlu" and one["failed"]]
    opened(browser, folder, "#mmlu?state=wrong", "mmlu / " + wrong[0])
    assert browser.run("[...document.querySelectorAll('#list a bdi')].map(one => one.textContent)") == wrong
    law = [str(one["doc_id"]) for one in samples if one["task"] == "mmlu" and one["failed"] and one["subject"] == "law"]
    assert put(browser, f"{len(law)} of", group="=law") == law
    listed = put(browser, f"{len(wrong)} of", group="", order="margin")
    margins = {
        str(one["doc_id"]): max(one["loglikelihoods"]) - one["loglikelihoods"][one["target"]]
        for one in samples
        if one["task"] == "mmlu"
    }
    assert listed == sorted(wrong, key=lambda name: -margins[name]) and "order=margin" in browser.run("location.hash")
    asked = [one for one in samples if one["task"] == "mmlu" and "Question 1" in one["prompt"]]
    names = put(browser, f"{len(asked)} of", state="", order="", search="QUESTION 1")
    assert (
        names == [str(one["doc_id"]) for one in asked]
        and browser.run("document.querySelector('#pane mark').textContent") == "Question 1"
    )
    assert put(browser, "1 of", search="question 11") == ["11"]
    assert put(browser, "0 of", search="no such words") == []
    assert put(browser, "3 of", task="", search="", flag="any")[1:] == ["twins / law 3", "twins / law 3 (2)"]
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}))"
    browser.run(press % "j")
    browser.until("document.querySelector('#pane h2').textContent === 'twins / law 3'")
    assert "did not read its beginning" in browser.run("document.querySelector('#pane .notice').textContent")
    browser.run(press % "/")
    assert browser.run("document.activeElement.name") == "search"
