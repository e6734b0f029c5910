"""The page in a browser, over fifty runs: live curves, comparison, alerts, one run, with keys, dark and small."""

import os
import threading

import pytest
import uvicorn

from lm.dashboard.app import make_app
from lm.dashboard.store import Store
from lm.serve.settings import bound
from tests.lm.dashboard.test_dashboard_api import BIDI, EVIL
from tests.lm.dashboard.watched_runs import append, many
from tests.lm.reports.made_runs import a_run

FIGURES = "[...document.querySelectorAll('figure')].map(figure => figure.chart)"
LOSS = f"{FIGURES}.find(chart => chart.metric === 'loss')"
RUNS = "[...document.querySelectorAll('#runs li')]"
SEARCH = """(form => {{ form.text.value = "{}"; form.dispatchEvent(new Event("input", {{bubbles: true}})); }})(
    document.getElementById("filters"))"""
SHOTS = os.environ.get("LMCRAFT_PICTURES")  # a folder: keep the pictures there


def until(browser, script: str):
    """Return what the script says as soon as it is true; the page asks itself, for at most a minute."""
    ask = f"const ask = () => {{ const said = {script}; said || Date.now() > end ? done(said) : setTimeout(ask, 20); }}; ask();"
    said = browser.run(f"new Promise(done => {{ const end = Date.now() + 60000; {ask} }})")
    assert said not in (None, False, 0, ""), script
    return said


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Yield (folder, address) of a server over fifty runs, one of them hostile."""
    folder = tmp_path_factory.mktemp("runs")
    many(folder, 49, steps=120)
    a_run(folder / EVIL / BIDI, {}, [{"step": 1, "loss": 2.0, EVIL: 3.0}], **{EVIL: EVIL})
    store = Store([folder], seconds=0.1)
    server = uvicorn.Server(uvicorn.Config(make_app(store, ("127.0.0.1",)), log_level="warning"))
    sock = bound("127.0.0.1", 0)
    sock.listen()
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    store.start()
    thread.start()
    yield folder, f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=20)
    store.close()


@pytest.fixture
def page(browser, served, tmp_path):
    """Return a function that opens a view in a new state; at the end nothing was complained of, and no other host was asked."""
    browser.said.clear()
    browser.asked.clear()

    def visit(view="curves", width=1440, scheme="light", **more):
        browser.visit("about:blank", width, 900, scheme)
        hash = "&".join(f"{name}={value}" for name, value in {"view": view, **more}.items())
        browser.visit(f"{served[1]}/#{hash}", width, 900, scheme)
        until(browser, f"{RUNS}.length === 50 && document.getElementById('state').textContent.startsWith('live')")
        return browser

    yield visit
    name = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0]
    picture = (tmp_path if SHOTS is None else type(tmp_path)(SHOTS)) / f"{name}.png"
    browser.picture(picture)
    assert picture.stat().st_size > 10_000
    assert browser.said == []
    assert all(asked.startswith((served[1], "data:", "about:")) for asked in browser.asked)


def test_curves_of_the_newest_runs_are_drawn_and_all_can_be(page):
    browser = page()
    assert until(browser, f"{LOSS}?.curves.length > 5 && {LOSS}.curves.length") <= 8
    browser.run("document.querySelector('#pick [value=listed]').click()")
    until(browser, f"{LOSS}.curves.length === 48")  # the evaluation has none, and that of GRPO has another scale
    assert until(browser, f"(chart => chart?.suffix && chart.curves.length === 1)({FIGURES}[1])")
    styles = browser.run("[...document.querySelectorAll('#runs .swatch line')].map(line => line.outerHTML)")
    assert len(set(styles)) == 50
    ink = "(({width, height}, pen) => pen.getImageData(0, 0, width, height).data.some(x => x))"
    assert until(browser, f"{ink}({LOSS}.canvas, {LOSS}.canvas.getContext('2d'))")


def test_an_appended_line_appears_by_itself(page, served):
    folder = served[0] / "rates" / "run-44"
    browser = page(run="rates/run-44")
    until(browser, f"{LOSS}?.curves[0]?.x.at(-1) === 120")
    append(folder, {"step": 121, "loss": 7.125, "grad_norm": 1.0, "skipped": 0, "tokens": 64 * 121})
    until(browser, f"{LOSS}.curves[0].x.at(-1) === 121 && {LOSS}.curves[0].y.at(-1) === 7.125")
    until(browser, f"{RUNS}.some(item => item.textContent.includes('run-44') && item.textContent.includes('7.125'))")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 122, "lo')
        file.flush()
        until(browser, f"{LOSS}.curves[0].x.at(-1) === 121")  # it waits for the end of the line
        file.write('ss": 6.5}\n')
    until(browser, f"{LOSS}.curves[0].y.at(-1) === 6.5")
    assert browser.run("document.getElementById('state').className") == ""


def test_axes_smoothing_zoom_and_the_address_that_keeps_them(page):
    browser = page(run="rates/run-00", axis="tokens", smooth="0")
    until(browser, f"{LOSS}?.curves[0]?.x.at(-1) === 64 * 120")
    assert browser.run(f"{LOSS}.curves[0].line[60] === {LOSS}.curves[0].y[60]")
    browser.run("(form => { form.axis.value = 'step'; form.log.checked = true; form.smooth.value = 100;"
                " form.dispatchEvent(new Event('input', {bubbles: true})); })(document.getElementById('options'))")  # fmt: skip
    until(browser, f"{LOSS}.curves[0].x.at(-1) === 120 && {LOSS}.logarithmic && {LOSS}.curves[0].half > 5")
    assert browser.run("location.hash").count("smooth=100") and browser.run("location.hash").count("log=1")
    browser.run(f"{LOSS}.on.zoom([20, 40])")
    until(browser, f"{LOSS}.left === 20 && {LOSS}.right === 40 && !document.getElementById('unzoom').hidden")
    browser.press("Escape")
    until(browser, f"{LOSS}.right === 120")


def test_a_chart_is_read_by_pointer_and_by_keys(page):
    browser = page(run="rates/run-00&run=rates/run-02")
    until(browser, f"{LOSS}?.curves.length === 2 && {LOSS}.width > 0")
    x, y = browser.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({LOSS}.canvas.getBoundingClientRect())")
    browser.hover(x, y)
    told = until(browser, f"!{LOSS}.tip.hidden && {LOSS}.tip.innerText")
    assert "rates/run-00" in told and "rates/run-02" in told and "step" in told
    browser.hover(1, 1)
    until(browser, f"{LOSS}.tip.hidden")
    browser.run(f"{LOSS}.figure.focus()")
    browser.press("ArrowRight")
    assert until(browser, f"!{LOSS}.tip.hidden && {LOSS}.tip.innerText").startswith("step 1\n")
    browser.run(f"{LOSS}.toggle.click()")
    rows = browser.run(f"[...{LOSS}.numbers.querySelectorAll('tbody tr')].map(row => row.innerText)")
    assert len(rows) == 2 and "2" in rows[0]


def test_five_runs_are_compared(page):
    chosen = "&run=".join(f"rates/run-{n:02}" for n in (0, 2, 4, 6, 8))
    browser = page("compare", run=chosen)
    heads = "[...document.querySelectorAll('#compare thead th')]"
    until(browser, f"{heads}.length === 12")
    heads = browser.run(f"{heads}.map(head => head.innerText)")
    assert [head.split("\n")[-1] for head in heads[1:6]] == ["run-00", "run-02", "run-04", "run-06", "run-08"]
    rows = browser.run("[...document.querySelectorAll('#compare tbody tr')].map(row => row.innerText.split('\\t'))")
    assert ["seed", "0", "2", "4", "6", "8"] in rows
    best = browser.run("[...document.querySelectorAll('#compare .best')].map(cell => cell.cellIndex)")
    assert best and set(best) == {1}


def test_alerts_and_the_run_that_they_lead_to(page):
    browser = page("alerts")
    until(browser, "document.querySelector('#alerts tbody tr')")
    kinds = browser.run("[...document.querySelectorAll('#alerts tbody tr')].map(row => row.cells[2].innerText)")
    assert {"watchdog", "damaged", "lost host", "rewound", "skipped", "not finite", "stalled", "stopped", "alarm"} <= set(kinds)
    browser.run("[...document.querySelectorAll('#alerts .link')].find(link => link.innerText === 'sweep/trials/3').click()")
    text = until(browser, "(text => text.includes('Checkpoints') && text)(document.getElementById('run').innerText)")
    for part in ("Alerts (", "Goodput", "damaged, set aside", "9.77 KiB", "Config ("):
        assert part in text


def test_names_of_strangers_are_text(page):
    browser = page("run", opened=f"{EVIL.replace(' ', '%20').replace('=', '%3D')}/a%5Cu202eb%5Cx1b%5B31m")
    text = until(browser, "(text => text.includes('Config (') && text)(document.getElementById('run').innerText)")
    assert EVIL in text
    for view in ("curves", "table", "compare", "alerts"):
        browser.run(f"document.getElementById('tab-{view}').click()")
        until(browser, f"!document.getElementById('{view}').hidden")
    assert browser.run("document.images.length") == 0


def test_the_table_sorts_and_the_list_is_searched(page):
    browser = page("table")
    until(browser, "document.querySelectorAll('#table tbody tr').length === 50")
    browser.run(
        "[...document.querySelectorAll('#table thead button')].find(button => button.innerText === 'training loss').click()"
    )
    column = "[...document.querySelectorAll('#table tbody tr')].map(row => Number(row.cells[4].innerText)).filter(x => x === x)"
    values = browser.run(column)
    assert values == sorted(values, reverse=True) and len(values) > 40
    browser.run(SEARCH.format("widths"))
    until(browser, f"{RUNS}.length === 22 && document.querySelectorAll('#table tbody tr').length === 22")
    browser.run(SEARCH.format(""))


@pytest.mark.parametrize("view", ["curves", "table", "compare", "run", "alerts"])
@pytest.mark.parametrize("width, scheme", [(390, "light"), (1440, "dark")])
def test_it_fits_a_small_window_and_a_dark_one(page, view, width, scheme):
    browser = page(view, width, scheme)
    until(browser, f"document.getElementById('{view}').children.length > 0")
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)"
    )
    fields = "[...document.querySelectorAll('input, select, button')]"
    assert browser.run(f"{fields}.filter(x => !(x.labels?.length || x.ariaLabel || x.innerText.trim())).length") == 0
