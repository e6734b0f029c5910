"""The monitor with text traffic: hooks, guardrails, alerts in every place where they must appear, feedback, restart."""

import logging
import random

import ml_collections
import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lm.align.safety.constitution import SHIPPED
from lm.infer.engine.request import Likely, Request
from lm.serve import store as stores
from lm.serve.api.protocol import ApiError
from lm.serve.guardrails import MASKED
from lm.serve.monitor import Watch
from lm.serve.settings import WatchSettings, watch_settings
from tests.lm.serve.played_engine import PlayedEngine
from tests.lm.serve.test_serve_metrics import values

POLICIES = [
    {"id": "poison", "hazard": "vcr", "action": "block", "where": "input", "patterns": [r"\bpoison him\b"]},
    {"id": "stab", "hazard": "vcr", "action": "flag", "where": "output", "patterns": [r"\bstab(?:bed|bing)?\b"]},
    {"id": "bomb", "hazard": "iwp", "action": "block", "where": "output", "patterns": [r"\bbuild a bomb\b"]},
    {"id": "mail", "hazard": "prv", "action": "mask", "where": "input", "pii": ["email"]},
]
TOPICS = {
    "garden": "The roses need water in the morning and some shade at noon because the soil dries quickly in summer".split(),
    "engines": "A turbine compresses air before combustion and the nozzle converts pressure into thrust for aircraft".split(),
}
GERMAN = "Die Rosen brauchen am Morgen Wasser und mittags etwas Schatten, weil der Boden im Sommer schnell austrocknet".split()


@pytest.fixture
def watched(tmp_path):
    """open(**settings) -> Watch; closed at the end."""
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | {"policies": POLICIES}
    (tmp_path / "constitution.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    opened = []

    def open_one(**settings):
        given = {"constitution": str(tmp_path / "constitution.yaml"), "reference": 150, "recent": 100, "status_seconds": 0}
        engine = PlayedEngine()
        where = {"model_name": "tiny", "checkpoint": lambda: "step 9"}
        watch = Watch(WatchSettings(**given | {"store_share": 0.0} | settings), tmp_path / "run", engine, **where)
        opened.append(watch)
        return watch

    yield open_one
    for watch in opened:
        watch.close()


def ask(watch, id, prompt, answer, user="ann", finish="stop", **more):
    """One exchange through the hooks, the answer in pieces. Returns (what was sent, Seen)."""
    seen = watch.on_request([{"role": "user", "content": prompt}], id=id, user=user, **more)
    if seen.blocked:
        return seen.refusal, seen
    sent = ""
    for at in range(0, len(answer), 7):
        seen.on_tokens()
        more, ends = seen.pass_on(0, answer[at : at + 7], at + 7 >= len(answer))
        sent += more
        if ends:
            break
    seen.on_finished(finish, prompt_tokens=len(prompt.split()))
    return sent, seen


def talk(watch, n, seed, words=TOPICS["garden"], length=18, stab=0.0):
    """n exchanges of simulated traffic."""
    draw = random.Random(seed)
    for i in range(n):
        said = draw.choices(words, k=max(3, int(draw.gauss(length, 4))))
        said += ["stab"] if draw.random() < stab else []
        ask(watch, f"{seed}-{i}", " ".join(draw.sample(words, 8)) + "?", " ".join(said) + ".")
    watch.flush()


CHANGES = {
    "topic": ({"words": TOPICS["engines"]}, "topic"),
    "language": ({"words": GERMAN}, "language"),
    "toxicity": ({"stab": 0.3}, "unsafe"),
    "length": ({"length": 60}, "length"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_traffic_alerts_everywhere_within_100_exchanges(watched, name, caplog):
    changed, stream = CHANGES[name]
    watch = watched()
    talk(watch, 300, 1)
    assert watch.snapshot()["alerts"] == []
    with caplog.at_level(logging.WARNING, "lm.serve"):
        talk(watch, 100, 2, **changed)
    alerts = {one["stream"]: one for one in watch.snapshot()["alerts"]}
    assert stream in alerts
    metrics = values(watch.metrics.text().decode())
    of = f'adapter="",checkpoint="step 9",model_name="tiny",stream="{stream}"'
    assert metrics[f"lmcraft:behaviour_alert{{{of}}}"] == 1 and metrics[f"lmcraft:behaviour_alerts_total{{{of}}}"] == 1
    assert metrics[f"lmcraft:behaviour_evidence{{{of}}}"] >= 1
    [stored] = stores.connect(watch.store.path).execute("SELECT text FROM alerts WHERE stream = ?", (stream,))
    assert stored == (alerts[stream]["text"],)
    lines = [record.getMessage() for record in caplog.records if f"alert: {stream} of" in record.getMessage()]
    assert lines == [f"alert: {alerts[stream]['text']}"] and "\n" not in lines[0]


def test_behaviour_is_followed_by_checkpoint_and_adapter_and_across_restarts(watched):
    watch = watched(reference=30)
    for n in range(40):
        ask(watch, f"a{n}", "What do roses need?", "Water and shade, they say.")
        ask(watch, f"b{n}", "What do roses need?", "Shade.", adapter="law")
    watch.close()
    again = watched(reference=30)
    ask(again, "c", "What do roses need?", "Water.", adapter="law")
    again.flush()
    assert [(one["adapter"], one["exchanges"]) for one in again.snapshot()["behaviours"]] == [("law", 41)]


def test_a_blocked_request_is_refused_counted_and_stored(watched):
    watch = watched()
    sent, seen = ask(watch, "x", "How do I poison him?", "…")
    assert seen.blocked.rule == "poison" and sent == seen.refusal and "I" in sent
    watch.flush()
    metrics = values(watch.metrics.text().decode())
    of = 'action="block",adapter="",hazard="vcr",model_name="tiny",rule="poison",where="input"'
    assert metrics[f"lmcraft:guardrail_decisions_total{{{of}}}"] == 1
    [row] = stores.read(watch.store.path)
    assert row["flagged"] == 1 and row["decisions"][0]["why"] == r"matches \bpoison him\b"
    assert row["decisions"][0] | {"start": 9, "end": 19} == row["decisions"][0]


def test_a_blocked_answer_is_cut_and_input_is_masked_for_the_model(watched):
    watch = watched()
    sent, seen = ask(watch, "x", "Write to a.b@corp.example.org how it is done.", "First, build a bomb. Then run.")
    assert seen.messages == [{"role": "user", "content": f"Write to {MASKED} how it is done."}]
    assert sent == "First, " and seen.decisions[-1].rule == "bomb"
    watch.flush()
    [row] = stores.read(watch.store.path)
    assert row["finish"] == "content_filter" and row["measures"]["unsafe"] == 1.0
    assert "a.b@corp" not in str(row) and "<EMAIL>" in row["messages"][0]["content"]


def test_choices_end_each_by_itself(watched):
    watch = watched(store_share=1.0)
    seen = watch.on_request([{"role": "user", "content": "Hi"}], id="x", choices=2)
    likely = Likely(-0.1, ((1, -0.7), (2, -1.4), (3, -2.1), (4, -3.0), (5, -3.0)))
    assert seen.with_logprobs(Request((1,), 8)).logprobs == 5
    seen.on_tokens(0, [likely], 2)
    seen.on_tokens(1)
    assert seen.pass_on(0, "o", False)[0] + seen.pass_on(0, "ne", True)[0] == "one"
    assert seen.pass_on(1, "two", True) == ("two", False)
    seen.on_finished("stop", choice=1)
    seen.on_finished("stop", choice=0)
    seen.on_finished("error", choice=0)  # once
    watch.flush()
    [row] = stores.read(watch.store.path)
    assert row["answers"] == ["one", "two"] and row["measures"]["length"] == 2 and 1 < row["measures"]["entropy"] < 1.8


def test_a_share_is_measured_and_a_share_is_stored(watched):
    watch = watched(share=0.5, store_share=0.25)
    for n in range(400):
        ask(watch, f"{n}", "What?", "That.")
    watch.flush()
    assert 150 < watch.snapshot()["behaviours"][0]["exchanges"] < 250
    assert 60 < len(list(stores.read(watch.store.path))) < 140


def test_cancelled_answers_are_not_measured(watched):
    watch = watched()
    ask(watch, "x", "What?", "Tha", finish="cancelled")
    watch.flush()
    assert watch.snapshot()["behaviours"] == []


def test_feedback_over_http_is_stored_before_the_answer(watched, tmp_path):
    watch = watched()
    app = FastAPI()
    app.include_router(watch.router())
    app.add_exception_handler(ApiError, lambda request, error: error.response())
    client = TestClient(app)
    ask(watch, "x", "What do roses need?", "Oil.")
    body = {"id": "x", "rating": "down", "comment": "mail me: a.b@corp.example.org", "correction": "Water.", "user": "bob"}
    answer = client.post("/v1/feedback", json=body)
    assert answer.status_code == 200 and answer.json()["stored"]
    [row] = stores.read(watch.store.path)  # no flush before
    assert row["answers"] == ["Oil."] and row["feedback"][0]["comment"] == "mail me: <EMAIL>"
    watch.flush()
    of = 'adapter="",checkpoint="step 9",model_name="tiny",rating="down"'
    assert values(watch.metrics.text().decode())[f"lmcraft:feedback_total{{{of}}}"] == 1
    wrong = [[], {"id": "x"}, {"id": "x", "rating": True}, {"id": "x", "rating": 5}, {"id": "", "rating": "up"}]
    wrong += [{"id": "x", "rating": "up", "comment": 7}, {"id": "x", "rating": "up", "chioce": 1}, {"id": "x", "rating": []}]
    for bad in wrong:
        assert client.post("/v1/feedback", json=bad).status_code == 400, bad
    json_type = {"content-type": "application/json"}
    assert client.post("/v1/feedback", content=b"\xff{", headers=json_type).status_code == 400
    assert client.post("/v1/feedback", data={"id": "x", "rating": "up"}).status_code == 415
    assert client.post("/v1/feedback", json={"id": "nobody's", "rating": "up"}).status_code == 404
    assert client.post("/v1/feedback", json={"id": "x", "rating": "up", "comment": "a" * 30_000}).status_code == 400


def test_a_failure_inside_the_monitor_does_not_end_it(watched, monkeypatch, caplog):
    watch = watched()
    monkeypatch.setattr("lm.serve.watch.measures.measure", lambda *_: 1 / 0)
    ask(watch, "x", "What?", "That.")
    watch.flush()
    monkeypatch.undo()
    ask(watch, "y", "What?", "That.")
    watch.flush()
    assert "could not measure" in caplog.text and watch.snapshot()["behaviours"][0]["exchanges"] == 1
    assert values(watch.metrics.text().decode())['lmcraft:monitor_dropped_total{model_name="tiny"}'] == 1


def test_settings_of_a_config():
    config = ml_collections.ConfigDict(
        {
            "guardrails": {"constitution": "c.yaml"},
            "monitor": {"share": 0.5, "reference": 100, "reference_file": "", "recent": 50, "alpha": 0.01, "judge": ""},
            "store": {"share": 0.1, "days": 2.0, "megabytes": 5.0},
            "status": {"seconds": 1.0, "samples": 10},
        }
    )
    made = watch_settings(config)
    assert (made.constitution, made.reference, made.store_days, made.status_seconds) == ("c.yaml", 100, 2.0, 1.0)


def test_nothing_of_an_answer_follows_a_block(watched):
    watch = watched()
    seen = watch.on_request([{"role": "user", "content": "How?"}], id="x")
    seen.on_tokens(tokens=4)
    assert seen.pass_on(0, "Well, build ", False) == ("", False)
    assert seen.pass_on(0, "a bomb. Then", False) == ("Well, ", True)
    assert seen.pass_on(0, " run.", True) == ("", True)
    seen.on_finished("cancelled")
    watch.flush()
    assert next(stores.read(watch.store.path))["finish"] == "content_filter"
