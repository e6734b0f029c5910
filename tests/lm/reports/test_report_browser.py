"""The pages of training and alignment as a browser shows them. Skipped where there is no Chromium."""

import shlex

import pytest

from lm.reports import train as report
from tests.lm.reports.browser import MEASURES
from tests.lm.reports.test_align_report import FULL as ALIGNED
from tests.lm.reports.test_align_report import a_run
from tests.lm.reports.test_report import FULL, PROVENANCE, write_metrics

LONG = "an_uncommonly_long_name_" * 8


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """With names of all lengths."""
    folder = tmp_path_factory.mktemp("pages")
    provenance = PROVENANCE | {"command": shlex.join(["python", "train.py", f"--config.data.input={LONG}", "--config.steps=9"])}
    config = {"model": {"a": 1}, "steps": 9, "dtype": "float32", "data": {"input": f"stdlib=/{LONG},docs=b.md", "max_bytes": 9}}
    trained = FULL | {"title": LONG, "provenance": provenance | {"config_file": LONG}, "config": config}
    trained["data"] = {"sources": FULL["data"]["sources"] | {LONG: {"documents": 1}}}
    (folder / "train").mkdir()
    write_metrics(folder / "train" / "metrics.jsonl")
    report.write(folder / "train", trained)
    aligned = ALIGNED | {"config": config | {"method": "rl", "init_from": LONG}, "provenance": provenance}
    a_run(folder / "align", aligned | {"after": {"accuracy": 0.5, f"rewards/{LONG}": 1.0}})
    return {name: folder / name / "report.html" for name in ("train", "align")}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["train", "align"])
def test_nothing_is_cut_or_asked_for(browser, pages, name, width):
    browser.said.clear()
    browser.asked.clear()
    folded = browser.open(pages[name], width)
    browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    seen = browser.run(MEASURES)
    assert folded["scroll"] <= 0 and seen["scroll"] <= 0
    assert seen["plots"] and all(plot["shown"] and plot["right"] <= seen["width"] for plot in seen["plots"])
    assert browser.said == [] and browser.asked == [pages[name].as_uri()]


def test_a_command_is_copied_as_it_was_typed(browser, pages):
    browser.open(pages["train"], 390)
    script = """[...document.querySelectorAll(".commands pre")].map(pre => {
        getSelection().selectAllChildren(pre); return getSelection().toString(); })"""
    copied = browser.run(script)
    assert len(copied) == 3 and all(command.startswith("python ") and "\n" not in command for command in copied)
    assert shlex.split(copied[-1]) == ["python", "train.py", f"--config.data.input={LONG}", "--config.steps=9"]
