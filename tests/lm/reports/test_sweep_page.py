"""The page of a sweep: its table, the importance of keys, and what there is before a trial has finished."""

import re

from lm.reports import sweep


def trial(number, value, rate, state="complete", best=False, **more):
    params = {"optimizer.learning_rate": rate, "optimizer.name": "adamw" if number % 2 else "muon"}
    about = {"number": number, "state": state, "value": value, "step": 40, "params": params, "seconds": 61.0, "best": best}
    return about | {"why": "", "folder": f"trials/{number:04d}"} | more


def page(trials, importance, command=None):
    return sweep.html(
        {
            "title": "Sweep: a", "metric": "valid_loss", "maximize": False,
            "trials": trials, "importance": importance, "command": command,
        }
    )  # fmt: skip


def test_a_page_shows_trials_best_first(tmp_path):
    trials = [trial(i, 4 - i / 10, 10.0**-i, best=i == 4) for i in range(5)]
    trials.append(trial(5, 6.5, 0.5, "pruned"))
    trials.append(trial(6, None, 0.5, "fail", why="train.py: <b>no</b> memory"))
    html = page(trials, {"optimizer.learning_rate": 0.9, "optimizer.name": 0.1}, ["python", "train.py", "--config.a=b c"])
    cells = re.findall(r"<tr><td>(?:<a[^>]*>)?(\d+)(?:</a>)?( ★)?</td><td class=\"left\">(\w+)", html)
    assert [(int(number), bool(star), state) for number, star, state in cells] == [
        (4, True, "complete"), (3, False, "complete"), (2, False, "complete"), (1, False, "complete"), (0, False, "complete"),
        (5, False, "pruned"), (6, False, "fail"),
    ]  # fmt: skip
    assert html.count("<i style") == 2 and "The best trial is number 4, with valid_loss 3.6 at" in html
    assert "&#39;--config.a=b c&#39;" in html and "&lt;b&gt;no" in html and 'href="trials/0004/report.html"' in html
    assert not re.search(r"""(src|href)=["']?https?:""", html) and "<script" not in html


def test_before_a_trial_has_finished_there_is_a_table():
    html = page([trial(0, None, 0.1, "running")], {})
    assert "No trial has finished yet" in html and "Importance" not in html and "running" in html
