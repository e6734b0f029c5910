"""What the server answers: runs, curves, comparison, details; to whom; and that a stranger's files do no harm."""

import json
import os

import pytest
from starlette.testclient import TestClient

from lm.dashboard import app as dashboard
from lm.dashboard import store as stores
from lm.dashboard.app import make_app
from lm.dashboard.watched import Watched
from lm.files import saving
from tests.lm.dashboard.watched_runs import again, append, eventful, many, named, store
from tests.lm.reports.made_runs import CONFIG, a_run, aligned, evaluated, lines, log, trained

EVIL = "<img src=x onerror=alert(1)>"
BIDI = "a\u202eb\x1b[31m"


def client(found: stores.Store, **more) -> TestClient:
    return TestClient(make_app(found, ("localhost",)), base_url="http://localhost", **more)


def test_every_kind_of_run_is_listed_with_its_state(tmp_path):
    many(tmp_path, 6, steps=30)
    found = client(store(tmp_path)).get("/api/runs").json()
    rows = {row["name"]: row for row in found["runs"]}
    assert {name: (row["kind"], row["state"]) for name, row in rows.items()} == {
        "rates/run-00": ("train", "no report"),
        "widths/run-01": ("train", "no report"),
        "base": ("train", "finished"),
        "polite": ("grpo", "finished"),
        "measured": ("evaluation", "finished"),
        "sweep/trials/3": ("train", "interrupted"),
    }
    assert rows["base"]["main"][0] == {"name": "bits per byte", "text": "1.5", "value": 1.5}
    assert rows["measured"]["main"][0]["text"] == "0.61" and not found["reading"]
    assert found["metrics"]["loss"]["title"] == "Training loss" and "tokens" in rows["base"]["metrics"]


def test_a_cursor_brings_only_what_changed_and_an_idle_look_costs_nothing(tmp_path):
    for n in range(5):
        a_run(tmp_path / f"run{n}", {}, lines(20))
    found = store(tmp_path)
    asking = client(found)
    first = asking.get("/api/runs")
    assert len(first.json()["runs"]) == 5
    tag, since = first.headers["etag"], first.json()["version"]
    found.look()
    idle = asking.get(f"/api/runs?since={since}", headers={"if-none-match": tag})
    assert idle.status_code == 304 and idle.content == b""
    append(tmp_path / "run3", {"step": 21, "loss": 1.25})
    found.look()
    after = asking.get(f"/api/runs?since={since}", headers={"if-none-match": tag}).json()
    assert [(row["name"], row["loss"]) for row in after["runs"]] == [("run3", 1.25)] and len(after["ids"]) == 5


def test_only_appended_bytes_are_read(tmp_path, monkeypatch):
    folder = a_run(tmp_path / "run", {}, lines(2000))
    found, read, whole = store(tmp_path), [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(len(data := whole(*args))) or data)
    found.look()
    assert sum(read) == 0
    append(folder, {"step": 2001, "loss": 2.0})
    found.look()
    assert sum(read) < 200
    assert named(found, "run").series["loss"].curve(2000)["x"][-1] == 2001


def test_runs_come_and_go_and_start_anew(tmp_path):
    folder = a_run(tmp_path / "old", {}, lines(20))
    found = store(tmp_path)
    asking = client(found)
    log(folder, lines(5, 7.0))  # a run that was started again: its log is shorter
    a_run(tmp_path / "new", {}, lines(3))
    again(found)
    assert asking.get("/api/runs").json()["ids"] == [1, 2]
    curve = asking.get("/api/curves?run=1&metric=loss").json()["runs"]["1"]["curves"]["loss"]
    assert len(curve["y"]) == 5 and curve["y"][-1] > 7
    for path in folder.iterdir():
        path.unlink()
    again(found)
    assert asking.get("/api/runs").json()["ids"] == [2]
    assert asking.get("/api/run?run=1").status_code == 404


def test_curves_are_thinned_and_have_all_axes(tmp_path):
    rows = [row | {"tokens_per_second": 32.0} if "loss" in row else row for row in lines(5000)]
    rows[-100]["loss"], rows[30]["loss"] = 1000.0, None
    a_run(tmp_path / "long", rows=rows)
    eventful(tmp_path / "told")
    asking = client(store(tmp_path))
    query = "/api/curves?run=1&metric=loss&metric=valid_loss&metric=nothing&points=200"
    one = asking.get(query).json()["runs"]["1"]
    curve = one["curves"]["loss"]
    assert set(one["curves"]) == {"loss", "valid_loss"} and len(curve["y"]) <= 200
    assert max(curve["high"]) == 1000 and one["steps"][curve["x"]][-1] == 5000
    assert one["tokens"][1][-1] == 64 * 5000
    assert one["clock"][1][-1] == pytest.approx(64 * 5000 / 32, rel=0.01)  # by the speed in the log
    told = asking.get("/api/curves?run=2&metric=loss").json()["runs"]["2"]
    assert told["clock"][0] and told["clock"][1] == sorted(told["clock"][1])  # by goodput.jsonl
    assert None in told["curves"]["loss"]["y"]
    part = asking.get(query + "&low=100&high=120").json()["runs"]["1"]
    assert 6 <= len(part["steps"][part["curves"]["loss"]["x"]]) <= 24
    assert asking.get("/api/curves?run=1&metric=loss&points=0").status_code == 422


def test_a_comparison_has_results_and_the_settings_that_differ(tmp_path):
    for n in range(5):
        trained(tmp_path / f"run{n}", 1.5 - n / 10, seed=n, optimizer={"learning_rate": 10.0**-n})
    found = client(store(tmp_path)).get("/api/compare?" + "&".join(f"run={n}" for n in range(1, 6))).json()
    assert [key for key, _ in found["differences"]] == ["optimizer.learning_rate", "seed"]
    assert found["differences"][1][1] == ["0", "1", "2", "3", "4"]
    bits = found["results"][0]
    assert bits["name"] == "bits per byte" and bits["cells"][0] == "1.5" and bits["best"] == [4]


def test_one_run_has_all_its_parts(tmp_path):
    many(tmp_path, 6, steps=30)
    found = store(tmp_path)
    asking = client(found)
    one = asking.get(f"/api/run?run={named(found, 'sweep/trials/3').id}").json()
    assert [(part["step"], part["bytes"], part["damaged"]) for part in one["checkpoints"]] == [
        (10, 10000, True),
        (5, 5000, False),
    ]
    assert one["goodput"]["attempts"] == 2 and ["steps", "20"] in one["config"]
    polite = asking.get(f"/api/run?run={named(found, 'polite').id}").json()
    assert polite["samples"] == [
        {
            "prompt": "Say hi.",
            "answers": [{"about": "step 20, reward 1", "text": "hi 20"}, {"about": "step 10, reward 0.5", "text": "hi 10"}],
        }
    ]
    assert polite["facts"][0] == ["starts from", str(tmp_path / "base")] and polite["report"]
    report = asking.get(f"/report?run={named(found, 'polite').id}")
    assert report.text == "<h1>a run</h1>" and report.headers["content-security-policy"].startswith(
        "sandbox; default-src 'none'"
    )
    assert asking.get(f"/report?run={named(found, 'measured').id}").status_code == 404
    export = asking.get("/export")
    assert (
        export.status_code == 200
        and "rates/<wbr>run-00" in export.text
        and "sandbox" in export.headers["content-security-policy"]
    )


def test_only_this_machine_may_ask_and_only_read(tmp_path):
    trained(tmp_path / "run")
    asking = client(store(tmp_path))
    for path in ("/", "/api/runs", "/dashboard.js", "/dashboard.css"):
        answer = asking.get(path)
        assert answer.status_code == 200 and answer.headers["content-security-policy"] == dashboard.POLICY
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-cache"
        assert asking.get(path, headers={"host": "evil.example:8080"}).status_code == 403
    assert asking.get("/", headers={"host": "localhost:1234"}).status_code == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"):
        assert asking.request(method, "/api/runs").status_code == 405
    for path in ("/../../etc/passwd", "/docs", "/openapi.json", "/dashboard.html.j2", "/api/nothing"):
        assert asking.get(path).status_code == 404
    assert "http" not in asking.get("/").text and "style=" not in asking.get("/").text


@pytest.mark.parametrize("where", ["folder", "config.json", "metrics.jsonl", "report.html", "checkpoints", "samples.jsonl"])
def test_a_link_that_leads_out_is_not_followed(tmp_path, where):
    outside = trained(tmp_path / "outside", secret="hunter2")
    saving.write_lines(outside / "samples.jsonl", [{"step": 1, "prompt": "hunter2", "completion": "hunter2"}])
    (outside / "report.html").write_text("hunter2")
    (outside / "checkpoints" / "7777").mkdir(parents=True)
    run = aligned(tmp_path / "runs" / "run", "x")
    if where == "folder":
        (tmp_path / "runs" / "link").symlink_to(outside)
    else:
        if (run / where).exists():
            (run / where).unlink()
        (run / where).symlink_to(outside / where)
    found = store(tmp_path / "runs")
    asking = client(found)
    texts = [
        asking.get(path).text for path in ("/api/runs", "/api/run?run=1", "/api/compare?run=1", "/export", "/report?run=1")
    ]
    assert not any(secret in text for text in texts for secret in ("hunter2", "7777", "7,777"))
    if where == "folder":
        assert found.faults == ["link: the link leads out of the folder, so it is not followed"]
    elif where in ("config.json", "metrics.jsonl"):
        assert "leads out of the folder of runs" in texts[0]


def test_names_and_texts_of_strangers_stay_texts(tmp_path):
    folder = a_run(tmp_path / EVIL / BIDI, {}, [{"step": 1, "loss": 2, EVIL: 3, BIDI: 4}], **{EVIL: BIDI})
    (folder / "rewinds.json").write_text(json.dumps([{"at": 1, "to": 0, "cause": BIDI + EVIL}]))
    saving.write_lines(folder / "samples.jsonl", [{"step": 1, "prompt": BIDI, "completion": f"{EVIL}\n{BIDI}"}])
    found = store(tmp_path)
    asking = client(found)
    for path in ("/api/runs", "/api/run?run=1", "/api/compare?run=1&run=1", "/"):
        answer = asking.get(path)
        assert answer.status_code == 200 and not any(sign in answer.text for sign in "\u202e\x1b")
        assert path != "/" or EVIL not in answer.text
    row = asking.get("/api/runs").json()["runs"][0]
    assert row["name"] == f"{EVIL}/a\\u202eb\\x1b[31m" and EVIL in row["metrics"] and BIDI not in row["metrics"]
    assert asking.get("/api/run?run=1").json()["samples"][0]["answers"][0]["text"] == f"{EVIL}\na\\u202eb\\x1b[31m"


HOSTILE = {
    "deep config": ("config.json", '{"a":' * 400 + "1" + "}" * 400),
    "config is a list": ("config.json", "[1]"),
    "odd types": (
        "config.json",
        json.dumps(CONFIG | {"steps": "x", "method": {"a": 1}, "data": 7, "watchdog": [], "init_from": 5}),
    ),
    "numbers": (
        "report.json",
        '{"title": 1, "finished": true, "training": {"steps": 1e400, "tokens": NaN}, "parameters": Infinity}',
    ),
    "report of lists": (
        "report.json",
        '{"title": [], "finished": 1, "samples": [1, {"prompt": 5}], "alarms": [1], "validation": 5}',
    ),
    "rewinds": ("rewinds.json", '[{"at": "x", "to": NaN}, 5, null]'),
    "goodput": (
        "goodput.jsonl",
        '{"attempt": 1, "time": 2, "step": 3, "seconds": {"start": "x"}}\n{"attempt": NaN, "seconds": {}}\n',
    ),
    "samples": (
        "samples.jsonl",
        '{"step": 1, "prompt": [1, {"role": {}, "content": []}], "messages": [{"tool_calls": [{}]}, {}]}\n',
    ),
    "starts": ("starts.jsonl", '{"written": {}, "step": [], "code": null}\nx\n'),
    "metrics": (
        "metrics.jsonl",
        '{"step": 1e999, "loss": 1}\n{"step": 1, "loss": {}, "skipped": "x", "spikes": []}\n{"step": -5, "loss": 1}\n',
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_odd_files_are_shown_and_break_nothing(tmp_path, name):
    folder = a_run(tmp_path / "odd", {}, lines(20))
    evaluated(tmp_path / "sound", "x", 5)
    file, text = HOSTILE[name]
    (folder / file).write_text(text)
    asking = client(store(tmp_path), raise_server_exceptions=True)
    runs = {row["name"]: row for row in asking.get("/api/runs").json()["runs"]}
    assert runs["sound"]["state"] == "finished" and "odd" in runs
    id = runs["odd"]["id"]
    for path in (f"/api/run?run={id}", f"/api/compare?run={id}&run={runs['sound']['id']}", f"/api/curves?run={id}&metric=loss"):
        answer = asking.get(path)
        assert answer.status_code == 200
        json.loads(answer.text, parse_constant=pytest.fail)  # no NaN


def test_a_run_that_cannot_be_read_at_all_leaves_the_others(tmp_path, monkeypatch):
    for name in ("bad", "good"):
        trained(tmp_path / name)
    whole = Watched.refresh
    monkeypatch.setattr(Watched, "refresh", lambda self, *args: 1 / 0 if self.name == "bad" else whole(self, *args))
    found = store(tmp_path)
    assert {one.name: one.run.state for one in found.runs.values()} == {"bad": "damaged", "good": "finished"}


def test_patterns_choose_runs_and_other_folders_are_none(tmp_path):
    for name in ("a/one", "a/two", "b/one"):
        trained(tmp_path / name)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert {one.name for one in store(tmp_path, patterns=["*/one"]).runs.values()} == {"a/one", "b/one"}
    rows = client(store(tmp_path)).get("/api/runs").json()["runs"]
    assert {row["name"] for row in rows} == {"a/one", "a/two", "b/one"}
    assert {one.name for one in store(tmp_path / "a", tmp_path / "b").runs.values()} == {"a/one", "a/two", "b/one"}
