"""The status page: its numbers, and how it looks in a browser."""

import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lm.serve.api.protocol import ApiError
from lm.serve.monitor import Watch
from lm.serve.settings import WatchSettings
from lm.serve.watch.behaviour import Alert
from lm.serve.watch.charts import CHARTS
from tests.lm.reports.browser import CHROMIUM, Browser
from tests.lm.serve.played_engine import PlayedEngine, handle
from tests.lm.serve.test_serve_prometheus import served, until


@pytest.fixture
def watched(tmp_path):
    engine = PlayedEngine()
    settings = WatchSettings(status_seconds=0, status_samples=50, reference=20, recent=20)
    watch = Watch(settings, tmp_path, engine, model_name="tiny <b>", checkpoint=lambda: "step 9")
    yield watch, engine
    watch.close()


def ask(watch, n, words="The roses need water and shade.", first=0):
    for i in range(first, first + n):
        seen = watch.on_request([{"role": "user", "content": "What do roses need?"}], id=str(i))
        seen.on_tokens()
        seen.pass_on(0, words, True)
        seen.on_finished("stop", prompt_tokens=5)
    watch.flush()


def client_of(watch):
    app = FastAPI()
    app.include_router(watch.router())
    app.add_exception_handler(ApiError, lambda request, error: error.response())
    return TestClient(app)


def test_samples_are_the_growth_since_the_last_one(watched):
    watch, engine = watched
    for _ in range(4):
        engine.finish(handle(), "stop", 3)
    watch.status._at -= 10.0  # as if it had been ten seconds
    watch.status.take()
    watch.status.take()
    found = client_of(watch).get("/status.json").json()
    charts = {chart["title"]: chart["lines"] for chart in found["charts"]}
    assert charts["Requests in the engine"] == {"running": [1, 1], "waiting": [2, 2]}
    assert charts["Tokens"]["generation"] == [pytest.approx(1.2, rel=0.05), 0]
    assert charts["Time to first token"]["p50"] == [pytest.approx(1.75, rel=0.01), None]  # in the bucket from 1 to 2.5
    assert charts["Finished requests"]["stop"] == [pytest.approx(0.4, rel=0.05), 0]
    assert [chart["title"] for chart in found["charts"]] == [chart.title for chart in CHARTS]
    newer = client_of(watch).get("/status.json", params={"since": found["times"][0]}).json()
    assert newer["times"] == found["times"][1:] and len(found["times"]) == 2


def test_a_chart_is_folded_while_nothing_happens_in_it(watched):
    watch, engine = watched
    watch.status.take()
    charts = {chart["title"]: chart["quiet"] for chart in watch.status.json()["charts"]}
    assert charts["Guardrails"] == "no request refused" and charts["Tokens"] == charts["Feedback"] == "nothing happened"
    assert charts["Requests in the engine"] == ""
    engine.finish(handle(), "stop", 3)
    watch.status.take()
    watch.status.take()  # its samples are 0 again
    newest = watch.status._samples[-1][0]
    for since in (0.0, newest - 1e-9):
        charts = {chart["title"]: chart["quiet"] for chart in watch.status.json(since)["charts"]}
        assert charts["Tokens"] == charts["Finished requests"] == "" and charts["Feedback"]


def test_the_ring_is_bounded(watched):
    watch, _ = watched
    for _ in range(60):
        watch.status.take()
    assert len(watch.status.json()["times"]) == 50


def test_behaviour_and_its_acceptance(watched):
    watch, _ = watched
    ask(watch, 20)
    ask(watch, 30, "Ja. " * 40, first=100)
    client = client_of(watch)
    found = client.get("/status.json").json()
    [one] = found["behaviours"]
    assert one["checkpoint"] == "step 9" and one["collected"] is None and one["exchanges"] == 50
    assert one["streams"]["repetition"]["alert"] == 1 and found["alerts"]
    key = {"checkpoint": "step 9", "adapter": ""}
    assert client.post("/v1/monitor/accept", data=key).status_code == 415
    assert client.post("/v1/monitor/accept", json={"checkpoint": "step 9"}).status_code == 400
    assert client.post("/v1/monitor/accept", json=key | {"adapter": "law"}).status_code == 404
    assert client.post("/v1/monitor/accept", json=key).json() == {"accepted": True}
    found = client.get("/status.json").json()
    assert found["alerts"] == [] and found["behaviours"][0]["collected"] == 0


def test_the_page_names_no_other_host_and_escapes_what_it_shows(watched):
    text = client_of(watched[0]).get("/status").text
    assert "tiny &lt;b&gt;" in text and "tiny <b>" not in text
    assert "https://" not in text and text.count("http://") == text.count("http://www.w3.org/2000/svg")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser(watched, tmp_path):
    watch, engine = watched
    ask(watch, 60)
    hostile = '<img src=x onerror="alert(1)">'
    alert = Alert(time.time(), hostile, "", "length", f"length of {hostile} changed", {})
    watch._behaviour(hostile, "").alerts["length"] = alert
    for n in range(40):
        for _ in range(n % 5):
            engine.finish(handle(adapter="law"), "stop", 3)
        watch.status.take()
    app = FastAPI()
    app.include_router(watch.router())
    with served(app) as port, Browser() as browser:
        for width, scheme in ((390, "dark"), (1280, "light")):
            browser.visit(f"http://127.0.0.1:{port}/status", width, scheme=scheme)
            folded = until(lambda: drawn(browser))
            assert folded["scroll"] <= 0
            assert browser.run("document.querySelectorAll('#charts figure, details:not([open])').length") == len(CHARTS)
            assert "Guardrails: no request refused" in browser.run("document.querySelector('#quiet').innerText")
            names = browser.run("[...document.querySelectorAll('#charts .legend')].map(legend => legend.innerText)")
            assert any("prompt length" in name for name in names)
            browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
            browser.run("load()")  # what was opened stays open
            seen = until(lambda: drawn(browser))
            assert len(seen["plots"]) == len(CHARTS) and seen["scroll"] <= 0
            assert all(plot["shown"] and plot["width"] > 250 and plot["right"] <= width for plot in seen["plots"])
            assert sum(plot["ink"] > 0 for plot in seen["plots"]) >= 12
            assert browser.run("document.querySelectorAll('img').length") == 0
            assert hostile in browser.run("document.querySelector('#alerts').textContent")
            browser.picture(tmp_path / f"status-{width}.png")
        asked = {address.split("/")[2] for address in browser.asked if address.startswith("http")}
        assert asked == {f"127.0.0.1:{port}"} and browser.said == []
        watch._behaviours.clear()
        watch.status.take()
        browser.run("load()")  # it brings only the new sample
        assert until(lambda: browser.run("document.querySelector('#alerts').hidden"))
        assert browser.run("state.times.length") == 41


def drawn(browser):
    from tests.lm.reports.browser import MEASURES

    found = browser.run(MEASURES)
    return found if found["plots"] else None
