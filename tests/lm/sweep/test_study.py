"""The study of a sweep: what is drawn does not depend on how often it was started, and no trial is lost or counted twice."""

import math
import types

import pytest
from optuna.trial import TrialState

from lm.errors import UserError
from lm.sweep.space import Key
from lm.sweep.study import open_study, rows

KEYS = [Key("rate", low=1e-4, high=1.0, log=True), Key("layers", low=1, high=6, whole=True), Key("name", ("a", "b"))]


def opened(workdir, method="tpe", keys=KEYS, storage=None, **settings):
    workdir.mkdir(exist_ok=True)
    options = {"storage": storage, "sweep_seed": 0, "maximize": False, "pruner": "median", "jobs": 1} | settings
    return open_study(workdir, method, keys, types.SimpleNamespace(**options))


def value(params) -> float:
    return abs(math.log10(params["rate"]) + 2) + params.get("layers", 0) / 100


def done(study, count: int) -> list[dict]:
    found = []
    for _ in range(count):
        trial = study.next()
        found.append(study.params(trial))
        study.study.tell(trial, value(found[-1]))
    return found


@pytest.mark.parametrize("method, count", [("random", 7), ("tpe", 14)])  # TPE draws at random until the eleventh
def test_a_resumed_study_draws_as_if_nothing_had_been(method, count, tmp_path):
    whole = done(opened(tmp_path / "whole", method), count)
    first = done(opened(tmp_path / "killed", method), 5)
    begun = opened(tmp_path / "killed", method).next()  # killed before it had values
    study = opened(tmp_path / "killed", method)
    (again,) = study.interrupted()
    assert again.number == begun.number == 5 and len(study.trials()) == 6
    first.append(study.params(again))
    study.study.tell(again, value(first[-1]))
    assert first + done(opened(tmp_path / "killed", method), count - 6) == whole
    assert len({params["rate"] for params in whole}) == count and not study.interrupted()
    assert [row["number"] for row in rows(study)] == list(range(count))


def test_a_grid_has_each_combination_once(tmp_path):
    keys = [Key("rate", low=1.0, high=3.0, count=3), Key("name", ("a", "b"))]
    first = done(opened(tmp_path / "a", "grid", keys), 2)
    study = opened(tmp_path / "a", "grid", keys)
    found = first
    while (trial := study.next()) is not None:
        found.append(study.params(trial))
        study.study.tell(trial, 1.0)
    assert found == [{"rate": rate, "name": name} for rate in (1.0, 2.0, 3.0) for name in ("a", "b")]
    assert len(opened(tmp_path / "a", "grid", keys).trials()) == 6


def test_two_machines_share_a_storage(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (opened(tmp_path / name / "sweep", "random", storage=storage) for name in ("one", "two"))
    mine, theirs = one.next(), two.next()
    assert (mine.number, theirs.number) == (0, 1) and len(one.trials()) == len(two.trials()) == 2
    assert [trial.number for trial in one.interrupted()] == [0] and [trial.number for trial in two.interrupted()] == [1]


def test_the_best_and_the_importance(tmp_path):
    study = opened(tmp_path / "a", "random")
    done(study, 12)
    failed, pruned = study.next(), study.next()
    study.study.tell(failed, state=TrialState.FAIL)
    pruned.report(7.0, 5)
    study.study.tell(pruned, state=TrialState.PRUNED)
    table = rows(study)
    best = min((row for row in table if row["state"] == "complete"), key=lambda row: row["value"])
    assert best["best"] and sum(row["best"] for row in table) == 1 and table[-1]["value"] == 7.0
    importance = study.importance()
    assert max(importance, key=importance.get) == "rate" and abs(sum(importance.values()) - 1) < 1e-6


def test_a_storage_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(UserError, match="--storage=nosuch://host cannot be opened"):
        opened(tmp_path / "a", storage="nosuch://host")
