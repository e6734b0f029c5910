"""Each alert comes from the files that runs write, and a run without trouble has none."""

import json
import os
import time

import pytest

from lm.runs.lock import locked
from tests.lm.dashboard.watched_runs import again, append, eventful, named, old, store
from tests.lm.reports.made_runs import a_run, aligned, lines, trained


def kinds(one) -> dict[str, str]:
    return {alert.kind: alert.text for alert in one.alerts}


def test_everything_that_happened_to_a_run(tmp_path):
    eventful(tmp_path / "run")
    found = kinds(named(store(tmp_path), "run"))
    assert found["rewound"] == "a spike of the loss: the run went back to step 4"
    assert "2 abandoned steps" in found["skipped"] or "2 updates" in found["skipped"]
    assert "of 2 steps, from 5 to 6, is not finite" in found["not finite"]
    assert found["watchdog"].startswith("process 1 was ended because a step took too long")
    assert found["damaged"] == "checkpoint 10 was damaged and set aside"
    assert "step 12 of 20" in found["stalled"]
    assert "from step 6, so 2 steps were done again" in found["stopped"]
    assert found["lost host"] == "process 1 was lost: its host is down"
    assert "host 2 is slow" in found["slow host"] or "2.5 times" in found["slow host"]
    levels = [alert.level for alert in named(store(tmp_path), "run").alerts]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)


def test_what_a_run_told_itself(tmp_path):
    folder = a_run(tmp_path / "run", rows=lines(12))
    rows = [
        {"kind": "rewind", "step": 3, "text": "seen in rewinds.json", "time": 1.0},
        {"kind": "high", "step": 6, "text": "the training loss is 9", "time": 2.0},
        {"kind": "failed", "step": None, "text": "train.py: boom", "time": "x"},
        {"kind": ["lost"], "text": {}},
    ]
    (folder / "alerts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = named(store(tmp_path), "run").alerts
    assert [(one.level, one.kind, one.text, one.step) for one in found] == [
        ("error", "failed", "train.py: boom", None),
        ("warning", "high loss", "the training loss is 9", 6),
    ]


def test_a_run_without_trouble_has_none(tmp_path):
    trained(tmp_path / "done")
    a_run(tmp_path / "fresh", rows=lines(12))  # the last line has just been written
    found = store(tmp_path)
    assert [one.alerts for one in found.runs.values()] == [[], []]
    assert named(found, "fresh").run.state == "running" and "no lock seen here" in named(found, "fresh").run.place


def test_a_run_that_goes_silent_is_stalled_and_one_that_goes_on_is_not(tmp_path):
    folder = a_run(tmp_path / "run", rows=lines(12))
    found = store(tmp_path)
    version = found.version
    old(folder)
    found.look()
    assert "stalled" in kinds(named(found, "run")) and named(found, "run").version > version
    append(folder, {"step": 13, "loss": 2.0, "grad_norm": 1.0, "skipped": 0, "tokens": 832})
    found.look()
    assert kinds(named(found, "run")) == {}


def test_a_run_whose_process_failed_has_crashed_and_is_not_stalled(tmp_path):
    folder = a_run(tmp_path / "run", rows=lines(12))
    with pytest.raises(RuntimeError), locked(folder):
        raise RuntimeError("the device is gone")
    found = named(store(tmp_path), "run")
    assert found.run.state == "crashed" and found.alerts[0].level == "error" and kinds(found).keys() == {"crashed"}
    assert "step 12 of 20; RuntimeError: the device is gone; the same command resumes it" in kinds(found)["crashed"]


def test_divergence_and_the_alarms_of_a_report(tmp_path):
    a_run(
        tmp_path / "bad", rows=[*lines(4), *({"step": s, "loss": None, "grad_norm": None, "skipped": s - 4} for s in (5, 6, 7))]
    )
    aligned(tmp_path / "hacked", "x", alarms=[{"step": 9, "kind": "length", "text": "completions grew"}, 7, {"step": "x"}])
    found = store(tmp_path)
    assert "step 7 of 20" in kinds(named(found, "bad"))["diverged"]
    assert "length: completions grew" in [alert.text for alert in named(found, "hacked").alerts]


def test_damage_of_any_file_is_one_line(tmp_path):
    for name in ("config.json", "report.json", "rewinds.json", "goodput.jsonl"):
        folder = a_run(tmp_path / f"damaged {name}", {}, lines(20))
        (folder / name).write_text(
            '{"a": ' if name != "goodput.jsonl" else '{"attempt": "x", "seconds": {"start": "y"}}\n[]\n7\n'
        )
    a_run(tmp_path / "lines", {}, lines(20)[:3])
    (tmp_path / "lines" / "metrics.jsonl").open("a").write("{broken}\n" * 3)
    found = store(tmp_path)
    texts = {one.name: kinds(one).get("unreadable", "") for one in found.runs.values()}
    assert texts["lines"] == "metrics.jsonl: 3 lines cannot be read"
    for name in ("config.json", "report.json", "rewinds.json"):
        assert texts[f"damaged {name}"].startswith(f"{name} cannot be read")
    assert all("\n" not in text for text in texts.values())


def test_a_new_file_of_a_known_run_is_seen(tmp_path):
    folder = trained(tmp_path / "run")
    found = store(tmp_path)
    (folder / "hang-0.txt").write_text("2026\n")
    os.utime(folder, (time.time(), time.time() + 1))
    again(found)
    assert "watchdog" in kinds(named(found, "run"))
