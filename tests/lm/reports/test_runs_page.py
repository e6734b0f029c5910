"""The page over many runs: what it finds, what it says of damage, what it compares, and what it does in a browser."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lm.errors import Stopped, UserError
from lm.files.user_files import failing
from lm.reports import run_metrics
from lm.reports.run_folders import Run, read_runs, related, tree
from lm.reports.run_results import Figure, result_rows, with_basis
from lm.reports.runs import differences, html, write
from lm.runs.lock import KILLED, locked
from tests.lm.reports.browser import CHROMIUM, Browser
from tests.lm.reports.made_runs import CONFIG, a_run, aligned, curated, evaluated, lines, log, trained

EVIL = "<img src=x onerror=alert(1)>&amp;'\" #%?"
SCRIPT = "</script><script>document.title='owned'</script>"


class Page(HTMLParser):
    """Tags, links and texts of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.links, self.texts, self.charts = [], [], [], 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source.replace("<wbr>", ""))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        self.texts.append(data)


def page(folder: Path, *patterns: str) -> Page:
    write([folder], folder / "runs.html", patterns)
    return Page(folder / "runs.html")


def states(*folders: Path) -> dict[str, tuple[str, str]]:
    return {run.name: (run.state, run.place) for run in read_runs(folders)}


def test_a_run_says_how_far_it_came(tmp_path):
    trained(tmp_path / "done")
    (a_run(tmp_path / "stopped", rows=lines(12)) / "checkpoints" / "10").mkdir(parents=True)
    a_run(tmp_path / "prepared")
    a_run(tmp_path / "raised", {"training": {"steps": 20}}, lines(20), steps=30)
    a_run(tmp_path / "logged", rows=lines(20))
    nulls = [{"step": step, "loss": 2.0, "grad_norm": None, "skipped": step - 4} for step in (5, 6, 7)]
    a_run(tmp_path / "nulls", rows=lines(4) + nulls)
    a_run(tmp_path / "fewer nulls", rows=lines(4) + nulls[:2])
    a_run(tmp_path / "overflow", rows=[*lines(4), {"step": 5, "loss": 2.0, "grad_norm": 1.0, "skipped": 1}])
    a_run(tmp_path / "imported", steps=None)
    config = {key: value for key, value in CONFIG.items() if key != "steps"}
    (tmp_path / "imported" / "config.json").write_text(json.dumps(config))
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "config.json").write_text('{"checkpoint": "done", "port": 8000}')
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text('{"model_type": "llama"}')
    assert states(tmp_path) == {
        "done": ("finished", ""),
        "stopped": ("interrupted", "step 12 of 20; saved at step 10"),
        "prepared": ("interrupted", "step 0 of 20"),
        "raised": ("interrupted", "step 20 of 30"),
        "logged": ("no report", "step 20 of 20"),
        "nulls": ("diverged", "step 7 of 20"),
        "fewer nulls": ("interrupted", "step 6 of 20"),
        "overflow": ("diverged", "step 5 of 20"),
        "imported": ("imported", ""),
        "server": ("stopped", ""),
    }


def test_a_run_that_goes_on_is_told_from_one_that_was_killed(tmp_path):
    for name in ("alive", "killed"):
        (a_run(tmp_path / name, rows=lines(3)) / ".lock").write_text("process 7 on somewhere\n")
    with (tmp_path / "alive" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')  # it is being written
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "alive" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert states(tmp_path) == {
            "alive": ("running", "step 3 of 20, process 7 on somewhere"),
            "killed": ("running", "step 3 of 20, no lock seen here"),  # it may go on: another host's lock may not show here
        }
        assert not any(run.faults for run in read_runs([tmp_path]))
        for name in ("alive", "killed"):
            os.utime(tmp_path / name / "metrics.jsonl", (time.time() - 700,) * 2)
        assert states(tmp_path) == {
            "alive": ("stalled", "step 3 of 20, process 7 on somewhere, nothing was written for 11 min"),
            "killed": ("interrupted", "step 3 of 20"),
        }
        with (tmp_path / "alive" / "metrics.jsonl").open("a") as file:
            file.write('s": 1.5}\n')
        assert states(tmp_path)["alive"] == ("running", "step 4 of 20, process 7 on somewhere")
        process.stdin.close()


def test_a_run_that_failed_or_was_killed_here_has_crashed(tmp_path):
    for name in ("failed", "stopped", "refused", "own"):
        a_run(tmp_path / name, rows=lines(3))
    with pytest.raises(UserError), locked(tmp_path / "own"), failing("reward mine failed"):
        raise ZeroDivisionError("division by zero")
    (tmp_path / "failed" / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(RuntimeError), locked(tmp_path / "failed"):
        raise RuntimeError("the device\nis gone")
    for name, end in (("stopped", Stopped("saved", signal.SIGTERM)), ("refused", UserError("no such key"))):
        with pytest.raises(type(end)), locked(tmp_path / name):
            raise end
    with subprocess.Popen(["true"]) as gone:
        pass
    (a_run(tmp_path / "killed", rows=lines(3)) / ".lock").write_text(f"process {gone.pid} on {socket.gethostname()}\n")
    assert states(tmp_path) == {
        "failed": ("crashed", "step 3 of 20; saved at step 2; RuntimeError: the device is gone"),
        "own": ("crashed", states(tmp_path)["own"][1]),
        "stopped": ("interrupted", "step 3 of 20"),
        "refused": ("interrupted", "step 3 of 20"),
        "killed": ("crashed", f"step 3 of 20; {KILLED}"),
    }
    assert "reward mine failed: ZeroDivisionError: division by zero (" in states(tmp_path)["own"][1]  # with file and line
    with locked(tmp_path / "failed"):  # it goes on, and is stopped
        pass
    assert states(tmp_path)["failed"][0] == "interrupted"


def test_damage_is_named_and_stops_nothing(tmp_path):
    trained(tmp_path / "good")
    names = "cut empty list deep log folder pipe numbers".split()
    broken = {name: a_run(tmp_path / name, rows=lines(5)) for name in names}
    (broken["cut"] / "config.json").write_text('{"model": {')
    (broken["empty"] / "config.json").write_text("")
    (broken["list"] / "report.json").write_text("[1]")
    (broken["deep"] / "report.json").write_text("[" * 100_000)
    with (broken["log"] / "metrics.jsonl").open("a") as file:
        file.write('{"step": "six", "loss": 1}\n[]\n{"step": 6, "loss"')
    (broken["folder"] / "metrics.jsonl").unlink()
    (broken["folder"] / "metrics.jsonl").mkdir()
    os.mkfifo(broken["pipe"] / "report.json")
    (evaluated(tmp_path / "odd", "good", 30) / "results.json").write_text('{"mmlu": {"n": 1, "acc": 0.5, "acc_interval": 3.5}}')
    log(broken["numbers"], [{"step": 1, "loss": 10**400}, {"step": 2, "loss": "x"}, {"step": 3, "loss": 1.5, "tokens": [1]}])
    (tmp_path / "record lost").mkdir()
    log(tmp_path / "record lost", lines(2))
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "again").symlink_to("good")
    (tmp_path / "locked").mkdir(mode=0)
    write([tmp_path], tmp_path / "runs.html")
    runs = read_runs([tmp_path])
    html(runs, "here", str)
    faults = {run.name: " | ".join(run.faults) for run in runs}
    wanted = {
        "good": "",
        "cut": "config.json cannot be read as JSON: Expecting",
        "empty": "config.json cannot be read as JSON: it is empty",
        "list": "report.json is no JSON object",
        "deep": "report.json cannot be read as JSON: it is nested too deeply",
        "log": "metrics.jsonl: 3 lines cannot be read",
        "folder": "metrics.jsonl cannot be read: no regular file",
        "pipe": "report.json cannot be read: no regular file",
        "numbers": "",
        "odd": "its figures cannot be read: TypeError",
        "record lost": "config.json is missing",
        "self": "the link cannot be followed: Too many levels of symbolic links",
    }
    if os.geteuid():  # root reads everything
        wanted["locked"] = "the folder cannot be read: Permission denied"
    assert faults.keys() == wanted.keys()
    for name, fault in wanted.items():
        assert faults[name].startswith(fault), name
    seen = Page(tmp_path / "runs.html")
    assert all(any(fault in text for text in seen.texts) for fault in faults.values() if fault)


def test_no_text_of_a_run_becomes_html(tmp_path):
    root = tmp_path / EVIL
    hostile = root / "<" / f"script>{EVIL}"  # its name is "</script><img …"
    for name in (hostile, root / "other"):
        trained(name / "run", data={"input": SCRIPT + name.name})
        trained(name / "another")
        evaluated(name / "evaluation", name / "run", 30, task=SCRIPT)
        aligned(name / "aligned", SCRIPT, method=SCRIPT)
    undecodable = os.fsdecode(os.fsencode(root) + b"/\xff")
    trained(Path(undecodable), optimizer={"learning_rate": "\ud800"})
    (hostile / "run" / "report.json").write_text(
        json.dumps({"title": SCRIPT, "finished": True, "provenance": {"code": SCRIPT}})
    )
    (hostile / "run" / "config.json").write_text('{"model": ' + SCRIPT)
    seen = page(root)
    assert "img" not in seen.tags and seen.tags.count("script") == 2
    escaped = "&lt;script&gt;document.title", "\\u003cscript>document.title"
    assert seen.source.count("document.title") == sum(map(seen.source.count, escaped))
    reports = [link for link in seen.links if link.endswith("report.html")]
    assert len(reports) == 7
    assert all(os.path.isfile(os.fsencode(root) + b"/" + urllib.parse.unquote_to_bytes(link)) for link in reports)
    rest = {link for link in seen.links if link not in reports}
    assert all(link.startswith("#") or link == "data:," for link in rest)


def test_runs_are_joined_to_what_they_start_from(tmp_path):
    base = trained(tmp_path / "base")
    curated(tmp_path / "corpus")
    (tmp_path / "corpus" / "dataset").mkdir()
    aligned(tmp_path / "base" / "sft", base, method="sft")
    aligned(tmp_path / "grpo", f"{tmp_path.name}/base/sft")  # as it was typed in the folder above
    evaluated(tmp_path / "evals" / "grpo", "/elsewhere/moved/grpo", 10)  # a path of another machine
    aligned(tmp_path / "other", "/elsewhere/published")
    trained(tmp_path / "packed", data={"input": str(tmp_path / "corpus" / "dataset")})
    trained(tmp_path / "named", data={"input": "packed"})
    runs = read_runs([tmp_path])
    starts, inputs = related(runs)
    names = [run.name for run in runs]
    told = {names[i]: names[j] for i, j in starts.items()}
    assert told == {"base/sft": "base", "grpo": "base/sft"}
    assert {names[i]: names[j] for i, j in inputs.items()} == {"packed": "corpus"}  # "packed" below is a name of a dataset
    evaluated(tmp_path / "evals" / "grpo", f"/elsewhere/{tmp_path.name}/grpo", 10)
    assert len(related(read_runs([tmp_path]))[0]) == 3
    seen = page(tmp_path)
    assert "/elsewhere/published" in seen.texts
    assert "not a run of this page" in seen.texts


def test_a_tree_has_each_run_below_its_start_and_ends_in_circles():
    assert tree({1: 0, 2: 1, 3: 0}, {4: "away"}) == [(0, 0), (3, 1), (1, 1), (2, 2), ("away", 0), (4, 1)]
    assert sorted(tree({0: 1, 1: 0}, {})) == [(0, 0), (1, 1)]


def test_the_table_tells_what_a_run_needed_and_reached(tmp_path):
    trained(tmp_path / "run", bits=1.25)
    aligned(tmp_path / "grpo", tmp_path / "run")
    evaluated(tmp_path / "evaluation", tmp_path / "run", 30)
    a_run(tmp_path / "on", rows=lines(10))
    curated(tmp_path / "corpus")
    seen = page(tmp_path)
    for text in (
        "40 → 30",
        "books/*.txt",
        "documents kept",
        "1.25",
        "bits per byte",
        "0.1 → 0.4",
        "reward",
        "0.3",
        "mmlu, acc",
        "1.5M",
        "1 min 15 s",
        "0683023 + changes",
    ):
        assert text in seen.texts, text
    assert "step 10 of 20" in seen.texts and "random weights" in seen.source
    assert "1.203" in seen.texts  # the last validation of a run without a report


def test_patterns_select_runs_by_their_path(tmp_path):
    for name in ("lr-1", "lr-2", "demo/sft"):
        trained(tmp_path / name)
    assert "lr-1" in page(tmp_path, "lr-*").texts
    assert "demo/sft" not in page(tmp_path, "lr-*").texts
    assert "demo/sft" in page(tmp_path, "x", "demo*").texts
    with pytest.raises(UserError, match="matches none of 3 runs"):
        write([tmp_path], tmp_path / "none.html", ["mine"])
    assert not (tmp_path / "none.html").exists()


def test_only_keys_that_differ_are_listed():
    one = {"steps": 20, "model": {"layers": 2, "moe": {}}, "seed": 1, "name": "a"}
    other = {"steps": 30, "model": {"layers": 2, "moe": {}}, "seed": 1, "name": ""}
    assert differences([one, other, {}]) == {"name": ["a", '""', None], "steps": ["20", "30", None]}
    assert differences([one, other | {"dropout": None}])["dropout"] == [None, "null"]
    assert differences([one, one]) == {}


def test_the_best_of_a_row_is_marked_if_the_runs_are_alike():
    def best(*cells: tuple[float | None, int | None]) -> list[int]:
        (row,) = result_rows([Figure("loss", 1.0, badness=badness, n=n)] for badness, n in cells)
        return row["best"]

    assert best((2.0, None), (1.0, None), (3.0, None)) == [1]
    assert best((1.0, 50), (1.0, 50), (2.0, 50)) == [0, 1]
    assert best((1.0, None), (1.0, None)) == []  # all are equal
    assert best((None, None), (None, None)) == []  # no direction
    assert best((2.0, 50), (1.0, 40)) == []  # other items
    assert best((1.0, None)) == []


@pytest.mark.parametrize("other", [{"objective": "mine.py:loss"}, {"data": {"input": "b"}}, {"method": "distill"}])
def test_runs_of_another_measure_have_no_best(other):
    def row_of(*changes: dict) -> dict:
        base = {"data": {"input": "a"}, "objective": "", "method": "sft", "steps": 3}
        runs = [Run(Path("."), kind="sft", config=base | change) for change in changes]
        return result_rows([with_basis(run, Figure("loss", n, badness=n))] for n, run in enumerate(runs))[0]

    assert row_of({}, {"steps": 4})["best"] == [0]
    assert row_of({}, other)["best"] == []


def test_objectives_of_two_texts_have_no_best(tmp_path):
    def best(name: str, *texts: str) -> list[int]:
        rows = []
        for n, text in enumerate(texts):
            (folder := tmp_path / f"{name}{n}" / "code").mkdir(parents=True)
            (folder / "objective.py").write_text(text)
            run = Run(folder.parent, kind="train", config={"objective": "mine.py:loss"})
            rows.append([with_basis(run, Figure(name, n, badness=n))])
        return result_rows(rows)[0]["best"]

    assert best("validation loss", "a", "b") == []
    assert best("loss", "a", "a") == [0]
    assert best("bits per byte", "a", "b") == [0]  # those of the text


def test_a_long_log_is_thinned_and_keeps_its_spike(tmp_path):
    rows = lines(5000)
    rows[3001]["grad_norm"] = 777.0
    log(tmp_path, rows)
    metrics = run_metrics.read_metrics(tmp_path / "metrics.jsonl")
    found = {chart["title"]: chart for chart in run_metrics.charts("train", [metrics] * 40, [True] * 40)}
    assert {chart["unit"] for chart in found.values()} >= {"nats per token", "bits per byte"}
    curve = found["Gradient norm"]["curves"][39]
    assert max(curve["raw"][1]) == 777.0 and len(curve["raw"][0]) <= run_metrics.ALL_POINTS / 40
    assert found["Loss"]["curves"][0]["range"][1] < 2.1  # without the fall of the first steps
    unsteady = run_metrics.charts("train", [metrics, metrics], [True, False])
    assert unsteady[0]["curves"][1]["range"] is None


def test_no_two_neighbours_have_the_same_line():
    first = run_metrics.styles(8)
    assert len({tuple(style["dash"]) for style in first}) == 8
    assert len({(style["colour"], tuple(style["dash"])) for style in run_metrics.styles(24)}) == 24


def test_tokens_are_told_by_step(tmp_path):
    log(tmp_path, lines(200))
    steps, tokens = run_metrics.tokens_by_step(run_metrics.read_metrics(tmp_path / "metrics.jsonl"))
    assert np.interp(101, steps, tokens) == pytest.approx(64 * 101)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for k in range(10):
        run = trained(folder / f"run-{k}", bits=1 + k / 10, optimizer={"learning_rate": k // 9}, seed=k)
        report = json.loads((run / "report.json").read_text()) | {"provenance": {}}
        (run / "report.json").write_text(json.dumps(report))
        os.utime(run / "report.json", (10_000 * (k + 1),) * 2)
    aligned(folder / "grpo", folder / "run-9")
    write([folder], folder / "runs.html")
    return folder


def test_its_tables_are_whole_without_a_script(many):
    seen = Page(many / "runs.html")
    assert seen.tags.count("figure") == 8  # five of ten runs of train.py, three of the one of GRPO
    for k in range(10):
        assert seen.texts.count(f"run-{k}") >= 4  # the table, the legend, results and settings
    assert "optimizer.<wbr>learning_<wbr>rate" in seen.source
    results = seen.source.partition("<h3>Results</h3>")[2].partition("</table>")[0]
    assert results.count('<th scope="row">bits per byte</th>') == 1 and results.count(' class="best"') == 1


def test_a_reader_sorts_filters_and_chooses(many):
    if CHROMIUM is None:
        pytest.skip("no Chromium here")

    def named(rows: str) -> str:
        return f"[...document.querySelectorAll('{rows}')].filter(row => !row.hidden).map(row => row.cells[0].textContent)"

    def entered(place: str, value: str) -> str:
        event = "new Event('input', {bubbles: true})"
        return f"(() => {{ const box = {place}; box.value = '{value}'; box.dispatchEvent({event}); }})();"

    shown, keys = named("#runs tbody tr"), named(".keys tbody tr")
    drawn = "document.querySelectorAll('figure')[0].querySelectorAll('g path').length"
    stars = "[...new Set([...document.querySelectorAll('.runs .best:not([hidden])')].map(cell => cell.dataset.run))]"
    filters = "document.getElementById('filters')"
    with Browser() as browser:
        seen = browser.open(many / "runs.html", width=1280)
        assert seen["scroll"] <= 0 and all(plot["ink"] for plot in seen["plots"])
        assert browser.run(shown)[:3] == ["grpo", "run-9", "run-8"]  # the newest first
        assert browser.run(f"document.querySelectorAll('#runs thead button')[2].click(); {shown}")[:2] == ["run-0", "run-1"]
        assert browser.run(entered(f"{filters}.kind", "grpo") + shown) == ["grpo"]
        browser.run(entered(f"{filters}.kind", ""))
        assert browser.run(entered(f"{filters}.text", "RUN-7 finished") + shown) == ["run-7"]
        browser.run("location.hash = '#run-1'; new Promise(done => addEventListener('hashchange', () => setTimeout(done)))")
        assert len(browser.run(shown)) == 11  # a link to a hidden row shows all

        assert (browser.run(drawn), browser.run(keys), browser.run(stars)) == (8, ["optimizer.learning_rate", "seed"], ["7"])
        browser.run("document.querySelector('.members input').click()")  # run-9, which alone had another rate
        assert (browser.run(drawn), browser.run(keys), browser.run(stars)) == (7, ["seed"], ["7"])
        browser.run("document.querySelector('button[value=listed]').click()")
        assert (browser.run(drawn), browser.run(stars)) == (10, ["9"])
        browser.run(entered("document.querySelector('.group select')", "tokens"))
        assert browser.run("document.querySelector('figcaption span').textContent") == "nats per token, over tokens"
        for scheme in ("light", "dark"):
            assert browser.open(many / "runs.html", width=390, scheme=scheme)["scroll"] <= 0
        assert not browser.said
        assert {urllib.parse.urlsplit(address).scheme for address in browser.asked} == {"file"}
