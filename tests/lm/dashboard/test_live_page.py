"""What the server answers and to whom, what it reads again, and that a stranger's files do no harm."""

import json
import re

import pytest
from starlette.testclient import TestClient

from lm.dashboard.app import PAGE_POLICY, Page, make_app
from lm.files import saving
from lm.reports import run_folders
from tests.lm.reports.made_runs import CONFIG, a_run, aligned, evaluated, lines, trained

EVIL = "<img src=x onerror=alert(1)>"
BIDI = "a\u202eb\x1b[31m"


def client(*folders, patterns=()) -> TestClient:
    """Return a client of a server that looks at the files at each question."""
    app = make_app(Page(folders, patterns, seconds=0.0, share=1.0), ("localhost",))
    return TestClient(app, base_url="http://localhost")


def names(text: str) -> list[str]:
    return re.findall(r'<th scope="row" data-value="([^"]*)">', text)


def test_the_page_is_that_of_the_reports_and_asks_for_newer_ones(tmp_path):
    trained(tmp_path / "base")
    aligned(tmp_path / "polite", tmp_path / "base", alarms=[{"step": 9, "kind": "length", "text": "completions grew"}])
    evaluated(tmp_path / "measured", tmp_path / "base", 61)
    a_run(tmp_path / "stopped", rows=lines(12))
    answer = client(tmp_path).get("/")
    assert sorted(names(answer.text)) == ["base", "measured", "polite", "stopped"]
    assert "step 12 of 20" in answer.text and "length: completions grew" in answer.text and 'id="live"' in answer.text
    assert f'data-tag="{answer.headers["etag"]}"' in answer.text


def test_only_changes_bring_a_new_page_and_only_changed_files_are_read(tmp_path, monkeypatch):
    for n in range(3):
        a_run(tmp_path / f"run{n}", rows=lines(12))
    read, whole = [], run_folders.read_metrics

    def read_metrics(path):
        read.append(path.parent.name)
        return whole(path)

    monkeypatch.setattr(run_folders, "read_metrics", read_metrics)
    asking = client(tmp_path)
    first = asking.get("/")
    assert sorted(read) == ["run0", "run1", "run2"]
    same = asking.get("/", headers={"if-none-match": first.headers["etag"]})
    assert same.status_code == 304 and same.content == b"" and len(read) == 3
    with (tmp_path / "run1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "loss": 7.125}\n')
    after = asking.get("/")
    assert after.headers["etag"] != first.headers["etag"] and "step 13 of 20" in after.text and read[3:] == ["run1"]
    a_run(tmp_path / "run3", rows=lines(3))
    assert "run3" in names(asking.get("/").text)


def test_looking_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    trained(tmp_path / "run")
    page = Page([tmp_path], seconds=0.0)
    looks, whole = [], Page._look
    monkeypatch.setattr(Page, "_look", lambda self: (looks.append(1), whole(self)))
    for _ in range(5):
        page.newest()
    assert len(looks) == 1


def test_only_this_machine_may_ask_and_only_read(tmp_path):
    trained(tmp_path / "run")
    asking = client(tmp_path)
    answer = asking.get("/")
    assert answer.status_code == 200 and answer.headers["content-security-policy"] == PAGE_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-cache"
    for path in ("/", "/report?run=run"):
        assert asking.get(path, headers={"host": "evil.example:8080"}).status_code == 403
    assert asking.get("/", headers={"host": "localhost:1234"}).status_code == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert asking.request(method, "/").status_code == 405
    for path in (
        "/../../etc/passwd",
        "/docs",
        "/openapi.json",
        "/runs.js",
        "/report",
        "/report?run=../run",
        "/report?run=/etc",
    ):
        assert asking.get(path).status_code == 404
    assert "http:" not in answer.text.replace("http://www.w3.org", "") and "https:" not in answer.text


def test_the_report_of_a_run_is_shown_without_scripts(tmp_path):
    aligned(tmp_path / "a b" / "polite?", "x")
    evaluated(tmp_path / "measured", "x", 61)
    asking = client(tmp_path)
    (link,) = re.findall(r'href="(report\?run=[^"]*)"', asking.get("/").text)
    report = asking.get(f"/{link}")
    assert report.text == "<h1>a run</h1>"
    assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert asking.get("/report?run=measured").status_code == 404


@pytest.mark.parametrize("where", ["folder", "config.json", "metrics.jsonl", "report.html", "checkpoints", "alerts.jsonl"])
def test_a_link_that_leads_out_is_not_followed(tmp_path, where):
    outside = trained(tmp_path / "outside", secret="hunter2")
    saving.write_lines(outside / "alerts.jsonl", [{"kind": "hunter2", "text": "hunter2"}])
    (outside / "report.html").write_text("hunter2")
    (outside / "checkpoints" / "7777").mkdir(parents=True)
    run = a_run(tmp_path / "runs" / "run", rows=lines(12))
    if where == "folder":
        (tmp_path / "runs" / "link").symlink_to(outside)
    else:
        (run / where).unlink(missing_ok=True)
        (run / where).symlink_to(outside / where)
    asking = client(tmp_path / "runs")
    texts = [asking.get(path).text for path in ("/", "/report?run=run", "/report?run=link")]
    assert not any(secret in text for text in texts for secret in ("hunter2", "7777", "7,777"))
    leads_out = "the link leads out" if where == "folder" else f"{where} leads out of the folder of runs"
    assert leads_out in texts[0]


def test_names_and_texts_of_strangers_stay_texts(tmp_path):
    folder = a_run(tmp_path / EVIL / BIDI, {}, [{"step": 1, "loss": 2, EVIL: 3, BIDI: 4}], **{EVIL: BIDI})
    a_run(tmp_path / EVIL / "other", {}, [{"step": 1, "loss": 2}], **{EVIL: EVIL})
    saving.write_lines(folder / "alerts.jsonl", [{"kind": EVIL, "text": BIDI}])
    text = client(tmp_path).get("/").text
    assert EVIL not in text and "&lt;img src=x" in text
    assert not any(sign in text for sign in "\u202e\x1b")


HOSTILE = {
    "deep config": ("config.json", '{"a":' * 400 + "1" + "}" * 400),
    "config is a list": ("config.json", "[1]"),
    "odd types": (
        "config.json",
        json.dumps(CONFIG | {"steps": "x", "method": {"a": 1}, "data": 7, "watchdog": [], "init_from": 5}),
    ),
    "many keys": ("config.json", json.dumps(CONFIG | {f"k{n}": n for n in range(50_000)})),
    "numbers": (
        "report.json",
        '{"title": 1, "finished": true, "training": {"steps": 1e400, "tokens": NaN}, "parameters": Infinity}',
    ),
    "report of lists": (
        "report.json",
        '{"title": [], "finished": 1, "samples": [1, {"prompt": 5}], "alarms": [1], "validation": 5, "stages": [2]}',
    ),
    "provenance": (
        "report.json",
        '{"title": "x", "finished": true, "provenance": {"written": 5, "code": [1], "seconds": "x"}}',
    ),
    "alerts": ("alerts.jsonl", '{"kind": {}, "text": [], "step": {}}\n[]\n{"kind": "failed"}\n' + "[" * 100_000),
    "metrics": (
        "metrics.jsonl",
        '{"step": 1e999, "loss": 1}\n{"step": 1, "loss": {}, "skipped": "x", "spikes": []}\n{"step": -5, "loss": 1}\n',
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_odd_files_are_shown_and_break_nothing(tmp_path, name):
    folder = a_run(tmp_path / "odd", {}, lines(20))
    trained(tmp_path / "sound")
    file, text = HOSTILE[name]
    (folder / file).write_text(text)
    answer = client(tmp_path).get("/")
    assert answer.status_code == 200 and sorted(names(answer.text)) == ["odd", "sound"] and len(answer.content) < 2_000_000
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', answer.text)[1]
    json.loads(data, parse_constant=pytest.fail)  # no NaN


def test_a_run_that_cannot_be_read_at_all_leaves_the_others(tmp_path, monkeypatch):
    for name in ("bad", "good"):
        trained(tmp_path / name)
    whole = run_folders.read_metrics
    monkeypatch.setattr(run_folders, "read_metrics", lambda path: 1 / 0 if path.parent.name == "bad" else whole(path))
    assert {run.name: run.state for run in run_folders.read_runs([tmp_path])} == {"bad": "damaged", "good": "finished"}


def test_patterns_choose_runs_and_other_folders_are_none(tmp_path):
    for name in ("a/one", "a/two", "b/one"):
        trained(tmp_path / name)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert set(names(client(tmp_path, patterns=["*/one"]).get("/").text)) == {"a/one", "b/one"}
    assert set(names(client(tmp_path).get("/").text)) == {"a/one", "a/two", "b/one"}
    assert set(names(client(tmp_path / "a", tmp_path / "b").get("/").text)) == {"a/one", "a/two", "b/one"}
    (tmp_path / "empty").mkdir()
    assert client(tmp_path / "empty").get("/").status_code == 200
