"""Pages of all kinds on a telephone: nothing is wider than the window. Skipped where there is no Chromium."""

import pytest

from lm.reports import evaluate, runs, safety, sweep, train
from tests.lm.reports import evaluation_runs, made_runs, test_align_report, test_browse, test_report, test_sweep_page
from tests.lm.reports.browser import MEASURES

LONG = "an_uncommonly_long_name_" * 4
source = test_browse.source


def trained(folder, source, **more):
    folder.mkdir()
    test_report.write_metrics(folder / "metrics.jsonl")
    train.write(folder, test_report.FULL | {"title": LONG} | more)


def failed(folder, source):
    trained(folder, source, finished=False, validation=None, samples=[])


def aligned(folder, source):
    lines = [{"step": step, f"rewards/{LONG}/mean": 0.5, "reward": step / 8, "reward_std": 0.4} for step in range(9)]
    test_align_report.a_run(folder, test_align_report.FULL | {"after": {"reward": 0.5, f"rewards/{LONG}": 1.0}}, lambda: lines)


def curated(folder, source):
    test_browse.curated(source, folder)


def evaluated(folder, source):
    run, other = evaluation_runs.a_run(folder, 0.6, 2, 12), evaluation_runs.a_run(folder / "other", 0.4, 1, 12)
    evaluate.write(run, *evaluation_runs.read(run), [(LONG, *evaluation_runs.read(other))], about={"model": LONG})


def safe(folder, source):
    share = {"rate": 0.5, "low": 0.2, "high": 0.8, "n": 9, "unknown": 1}
    side = {
        "attack_success": {"families": {LONG: share}, "hazards": {LONG: share}},
        "over_refusal": {"families": {LONG: share}},
    }
    loop = {"before": side, "after": side, "held_out_families": [LONG], "rounds": [{"learn": 9, "pairs": 9, "failed": 3}]}
    report = {"title": LONG, "safety": loop | {"judge": "rules", "change": {}}, "samples": []}
    folder.mkdir()
    (folder / "report.html").write_text(safety.html(report))


def many(folder, source):
    made_runs.trained(folder / "a", steps=20)
    made_runs.aligned(folder / LONG, folder / "a")
    made_runs.evaluated(folder / "c", folder / LONG, right=60)
    runs.write([folder], folder / "report.html")


def swept(folder, source):
    folder.mkdir()
    trials = [test_sweep_page.trial(n, 3.0 + n) for n in range(3)]
    sweep.write(folder / "report.html", trials, trials[0], "valid_loss", ["python", "train.py", f"--config.a={LONG}"])


KINDS = {made.__name__: made for made in (trained, failed, aligned, curated, evaluated, safe, many, swept)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_document_does_not_scroll_sideways(browser, source, tmp_path, kind):
    KINDS[kind](tmp_path / "run", source)
    for page in sorted((tmp_path / "run").glob("*.html")):
        folded = browser.open(page, 390)
        browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert folded["width"] == 390 and folded["scroll"] <= 0, page
        assert browser.run(MEASURES)["scroll"] <= 0, page
