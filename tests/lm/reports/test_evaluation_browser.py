"""The page of an evaluation as a browser shows it, wide and narrow, light and dark. Skipped where there is no Chromium."""

import pytest

from lm.reports import evaluate as evaluation_report
from tests.lm.reports.evaluation_runs import a_run, read
from tests.lm.reports.test_evaluation_report import ABOUT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With names and figures of all lengths."""
    folder = tmp_path_factory.mktemp("pages")
    run, other = a_run(folder / "run", 0.6, 2), a_run(folder / "other", 0.4, 1)
    results, samples = read(run)
    name = "an_uncommonly_long_name_of_a_task_" * 4
    results[name] = results["mmlu"] | {"subjects": {f"{name}{i}": results["mmlu"]["subjects"]["law"] for i in range(57)}}
    results["versions"]["data"] = "sha256:" + "0123456789abcdef" * 8
    evaluation_report.write(run, results, samples, [("the other", *read(other)), ("third", *read(other))], about=ABOUT)
    return run


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_plot_is_seen_and_nothing_is_cut_or_asked_for(browser, folder, width, scheme):
    browser.said.clear()
    browser.asked.clear()
    seen = browser.open(folder / "report.html", width, scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    opened = browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert seen["scroll"] <= 0 and opened <= 0
    assert width - 20 <= seen["width"] <= width
    assert len(seen["plots"]) == 1
    lines = browser.run("[...document.querySelectorAll('.interval i')].map(line => line.getBoundingClientRect().toJSON())")
    assert len(lines) > 30 and all(line["width"] > 0 and line["height"] > 0 for line in lines)
    for plot in seen["plots"]:
        assert plot["shown"] and plot["width"] >= 300 and plot["height"] >= 40 and plot["ink"] > 3
        assert plot["left"] >= 0 and plot["right"] <= seen["width"]
    assert browser.said == []
    assert browser.asked == [(folder / "report.html").as_uri()]
    assert seen["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


def test_what_goes_wrong_in_a_page_would_be_noticed(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<body style="width:2000px"><figure><svg width="0"></svg></figure><img src="http://127.0.0.1:9/x.png"><script>nothing()</script>'
    )
    browser.said.clear()
    browser.asked.clear()
    seen = browser.open(page, 390)
    assert seen["scroll"] > 0 and seen["plots"][0]["width"] == 0
    assert "http://127.0.0.1:9/x.png" in browser.asked and any("nothing" in said for said in browser.said)
