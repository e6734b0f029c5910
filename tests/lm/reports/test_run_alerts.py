"""Alerts of a run come from the files that it writes, and a run without trouble has none."""

import json
import shutil
from types import SimpleNamespace

import pytest

from lm.reports.run_alerts import alerts, full_disks, needs_people
from lm.reports.run_folders import read_runs
from lm.runs.lock import locked
from tests.lm.reports.made_runs import a_run, aligned, lines, trained


def alerts_of(folder):
    (run,) = read_runs([folder])
    return run, [(alert.level, alert.kind, alert.text, alert.step) for alert in alerts(run)]


def test_alerts_that_the_run_wrote_come_the_gravest_first_and_then_the_newest(tmp_path):
    folder = a_run(tmp_path / "run", rows=lines(12))
    rows = [
        {"kind": "rewind", "step": 3, "text": "back to step 2", "time": 1.0},
        {"kind": "high", "step": 6, "text": "the training loss is 9\u202e", "time": 2.0},
        {"kind": "failed", "step": None, "text": "train.py: boom", "time": "x"},
        {"kind": ["lost"]},
        7,
    ]
    (folder / "alerts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "slo')
    assert alerts_of(tmp_path)[1] == [
        ("error", "failed", "train.py: boom", None),
        ("warning", "high", "the training loss is 9\\u202e", 6),
        ("warning", "rewind", "back to step 2", 3),
    ]


def test_values_that_are_not_finite_and_skipped_updates_are_told(tmp_path):
    rows = lines(12)
    for row in rows[4:6]:
        row["loss"] = None
    rows[-1] |= {"skipped": 2, "loss": 1.0}
    a_run(tmp_path / "run", rows=rows)
    assert [(level, kind, text.split(";")[0]) for level, kind, text, _ in alerts_of(tmp_path)[1]] == [
        ("warning", "not finite", "the loss or gradient norm of 2 steps is not finite"),
        ("note", "skipped", "2 updates were left out so far"),
    ]


def test_alarms_of_a_report_are_alerts_and_odd_ones_are_left_out(tmp_path):
    aligned(tmp_path / "hacked", "x", alarms=[{"step": 9, "kind": "length", "text": "completions grew"}, 7, {"step": "x"}])
    found = alerts_of(tmp_path)[1]
    assert ("warning", "alarm", "length: completions grew", 9) in found and len(found) == 2


def test_a_run_without_trouble_has_none_and_needs_nobody(tmp_path):
    trained(tmp_path / "run")
    run, found = alerts_of(tmp_path)
    assert found == [] and not needs_people(run, alerts(run))


def test_a_run_that_crashed_needs_people_and_one_that_finished_later_does_not(tmp_path):
    folder = a_run(tmp_path / "run", rows=lines(12))
    with pytest.raises(RuntimeError), locked(folder):
        raise RuntimeError("the device is gone")
    (folder / "alerts.jsonl").write_text('{"kind": "failed", "step": 12, "text": "the device is gone"}\n')
    (run,) = read_runs([tmp_path])
    assert run.state == "crashed" and needs_people(run, alerts(run))
    (folder / ".lock").unlink()
    trained(folder)
    (run,) = read_runs([tmp_path])
    assert run.state == "finished" and alerts(run) and not needs_people(run, alerts(run))


def test_a_disk_that_is_nearly_full_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=300 << 20))
    assert full_disks([tmp_path]) == [f"The disk of {tmp_path} is nearly full: 300 MiB are left."]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 << 30))
    assert full_disks([tmp_path]) == []
