"""The page of a sweep: its table, the command of the best trial, and what there is before a trial has finished."""

import re

import pytest

from lm.reports import sweep

optuna = pytest.importorskip("optuna")
SPACE = {
    "optimizer.learning_rate": optuna.distributions.FloatDistribution(1e-9, 1.0),
    "optimizer.name": optuna.distributions.CategoricalDistribution(["adamw", "muon"]),
}


def trial(number, value, state="COMPLETE", seen=None, why=""):
    made = optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        value=value,
        params={"optimizer.learning_rate": 0.1, "optimizer.name": "muon"},
        distributions=SPACE,
        user_attrs={"folder": f"trials/{number:04d}", "why": why},
        intermediate_values={} if seen is None else {40: seen},
    )
    made.number = number
    return made


def page(folder, trials, best=None) -> str:
    sweep.write(folder / "sweep.html", trials, best, "valid_loss", ["python", "train.py", "--config.a=b c"])
    return (folder / "sweep.html").read_text()


def test_a_page_shows_the_best_and_all_trials(tmp_path):
    trials = [trial(4, 3.6), trial(1, 3.9), trial(5, None, "PRUNED", seen=6.5)]
    trials.append(trial(6, None, "FAIL", why="train.py: <b>no</b> memory"))
    html = page(tmp_path, trials, trials[0])
    cells = re.findall(r"<tr><td>(?:<a[^>]*>)?(\d+)(?:</a>)?( ★)?</td><td class=\"left\">(\w+)</td><td>([^<]*)", html)
    assert [(int(number), bool(star), state, value) for number, star, state, value in cells] == [
        (4, True, "complete", "3.6"), (1, False, "complete", "3.9"), (5, False, "pruned", "6.5"), (6, False, "fail", "–"),
    ]  # fmt: skip
    assert "The best trial is number 4, with valid_loss 3.6 at" in html
    assert "&#39;--config.a=b c&#39;" in html and "&lt;b&gt;no" in html and 'href="trials/0004/report.html"' in html
    assert not re.search(r"""(src|href)=["']?https?:""", html) and "<script" not in html


def test_before_a_trial_has_finished_there_is_a_table(tmp_path):
    html = page(tmp_path, [trial(0, None, "RUNNING")])
    assert "No trial has finished yet" in html and "running" in html and "--config.a" not in html


def test_before_a_trial_has_begun_there_is_a_sentence(tmp_path):
    html = page(tmp_path, [])
    assert "No trial has begun yet." in html and "<table" not in html
