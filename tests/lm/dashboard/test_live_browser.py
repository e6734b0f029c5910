"""The live page in a browser: new lines and runs appear by themselves, and what the reader chose stays."""

import json
import os
import threading
from pathlib import Path

import pytest
import uvicorn

from lm.dashboard.app import Page, make_app
from lm.serve.settings import bound
from tests.lm.reports.made_runs import a_run, lines, trained

EVIL = "<img src=x onerror=alert(1)>"
DRAWN = "document.querySelectorAll('figure')[0].querySelectorAll('g path').length"
ROWS = "[...document.querySelectorAll('#runs tbody tr')].filter(row => !row.hidden).map(row => row.cells[0].textContent)"


def append(folder: Path, *rows: dict) -> None:
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def entered(place: str, value: str) -> str:
    event = "new Event('input', {bubbles: true})"
    return f"(() => {{ const box = {place}; box.value = '{value}'; box.dispatchEvent({event}); }})();"


@pytest.fixture
def live(browser, tmp_path):
    """Yield (browser with the page over ten runs, their folder). At the end: no other host was asked, no complaint."""
    for n in range(10):
        folder = a_run(tmp_path / f"run-{n}", rows=lines(30, 2 + n / 10), steps=50, seed=n)
        os.utime(folder / "metrics.jsonl", (1_700_000_000 + n,) * 2)
    trained(tmp_path / EVIL, **{EVIL: EVIL})
    server = uvicorn.Server(uvicorn.Config(make_app(Page([tmp_path], seconds=0.1), ("127.0.0.1",)), log_level="warning"))
    sock = bound("127.0.0.1", 0)
    sock.listen()
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{sock.getsockname()[1]}/"
    browser.said.clear()
    browser.asked.clear()
    browser.visit(address, 1280)
    browser.until("document.getElementById('live').textContent.startsWith('Live')")
    yield browser, tmp_path
    assert browser.said == [] and browser.run("document.images.length") == 0
    assert all(asked.startswith((address, "data:", "about:")) for asked in browser.asked)
    server.should_exit = True
    thread.join(timeout=20)
    browser.until("document.getElementById('live').textContent.includes('does not answer')")
    browser.visit("about:blank", 1280)


def test_new_lines_and_runs_appear_and_the_choice_stays(live):
    browser, folder = live
    assert browser.run(DRAWN) == 8
    box = "document.getElementById('run train run-7')"
    browser.run(f"{box}.click()")
    browser.run(entered("document.querySelector('.group select')", "tokens"))
    browser.run(entered("document.getElementById('filters').text", "run-"))
    browser.run("document.querySelectorAll('#runs thead button')[0].click(); document.querySelector('.scroll').scrollLeft = 40")
    browser.run("document.getElementById('text').focus()")
    line = "document.getElementById('run train run-5').parentElement.querySelector('line').outerHTML"
    before = browser.run(line)
    append(folder / "run-5", {"step": 31, "loss": 7.125, "grad_norm": 1.0, "skipped": 0, "tokens": 64 * 31})
    a_run(folder / "run-x", rows=lines(3), steps=50)
    browser.until(f"{ROWS}.includes('run-x')")
    assert "step 31 of 50" in browser.run("document.getElementById('runs').textContent")
    assert browser.run(ROWS) == [*(f"run-{n}" for n in range(10)), "run-x"]  # sorted and filtered as before
    assert browser.run(f"{box}.checked") is False and browser.run(line) == before
    assert browser.run("document.getElementById('run train run-x').checked") is True
    assert browser.run("document.querySelector('figcaption span').textContent") == "nats per token, over tokens"
    assert browser.run("document.activeElement.id") == "text"
    assert browser.run("document.querySelector('.scroll').scrollLeft") == 40


def test_an_alert_appears_and_leads_to_its_run(live):
    browser, folder = live
    (folder / "run-3" / ".lock").write_text("process 7 on another host\n")
    (folder / "run-3" / "alerts.jsonl").write_text('{"kind": "diverged", "step": 31, "text": "the loss is not finite"}\n')
    append(folder / "run-3", {"step": 31, "loss": None, "grad_norm": None})
    link = "[...document.querySelectorAll('.notice a')].find(link => link.textContent === 'run-3')"
    browser.until(link)
    row = browser.run(f"document.querySelector({link}.getAttribute('href')).textContent")
    assert "running" in row and "diverged, step 31: the loss is not finite" in row


@pytest.mark.parametrize("width, scheme", [(390, "light"), (1440, "dark")])
def test_it_fits_a_small_window_and_a_dark_one(live, width, scheme):
    browser, _ = live
    address = browser.run("location.href")
    assert browser.visit(address, width, scheme=scheme)["scroll"] <= 0
    colour = {"dark": "rgb(20, 23, 27)", "light": "rgb(255, 255, 255)"}[scheme]
    assert browser.run("getComputedStyle(document.body).backgroundColor") == colour
    fields = "[...document.querySelectorAll('input, select, button')]"
    assert browser.run(f"{fields}.filter(x => !(x.labels?.length || x.ariaLabel || x.textContent.trim())).length") == 0
