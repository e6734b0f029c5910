"""The study of a sweep: what is drawn does not depend on how often it was started, and no trial is lost or counted twice."""

import math
import types

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from lm.errors import UserError
from lm.sweep.study import Study, grid

NAMES = CategoricalDistribution(["a", "b"])
SPACE = {"rate": FloatDistribution(1e-4, 1.0, log=True), "layers": IntDistribution(1, 6), "name": NAMES}


def opened(workdir, sampler="tpe", space=SPACE, storage=None, **settings):
    workdir.mkdir(exist_ok=True)
    options = {"storage": storage, "sweep_seed": 0, "maximize": False, "pruner": "median", "jobs": 1} | settings
    return Study(workdir, space, types.SimpleNamespace(sampler=sampler, **options))


def value(params) -> float:
    return abs(math.log10(params["rate"]) + 2) + params.get("layers", 0) / 100


def done(study, count: int) -> list[dict]:
    found = []
    for _ in range(count):
        trial = study.next()
        found.append(study.params(trial))
        study.study.tell(trial, value(found[-1]))
    return found


@pytest.mark.parametrize("sampler, count", [("random", 7), ("tpe", 14)])  # TPE draws at random until the eleventh
def test_a_resumed_study_draws_as_if_nothing_had_been(sampler, count, tmp_path):
    whole = done(opened(tmp_path / "whole", sampler), count)
    first = done(opened(tmp_path / "killed", sampler), 5)
    begun = opened(tmp_path / "killed", sampler).next()  # killed before it had values
    study = opened(tmp_path / "killed", sampler)
    (again,) = study.interrupted()
    assert again.number == begun.number == 5 and len(study.trials()) == 6
    first.append(study.params(again))
    study.study.tell(again, value(first[-1]))
    assert first + done(opened(tmp_path / "killed", sampler), count - 6) == whole
    assert len({params["rate"] for params in whole}) == count and not study.interrupted()
    assert [trial.number for trial in study.trials()] == list(range(count))


def test_a_grid_has_each_combination_once(tmp_path):
    space = {"rate": FloatDistribution(1.0, 3.0, step=1.0), "name": NAMES}
    first = done(opened(tmp_path / "a", "grid", space), 2)
    study = opened(tmp_path / "a", "grid", space)
    found = first
    while (trial := study.next()) is not None:
        found.append(study.params(trial))
        study.study.tell(trial, 1.0)
    assert found == [{"rate": rate, "name": name} for rate in (1.0, 2.0, 3.0) for name in ("a", "b")]
    assert len(opened(tmp_path / "a", "grid", space).trials()) == 6
    assert grid({"layers": IntDistribution(2, 6, step=2)}) == [{"layers": 2}, {"layers": 4}, {"layers": 6}]
    with pytest.raises(UserError, match="rate needs a range with a step"):
        grid(SPACE)


def test_two_machines_share_a_storage(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (opened(tmp_path / name / "sweep", "random", storage=storage) for name in ("one", "two"))
    mine, theirs = one.next(), two.next()
    assert (mine.number, theirs.number) == (0, 1) and len(one.trials()) == len(two.trials()) == 2
    assert [trial.number for trial in one.interrupted()] == [0] and [trial.number for trial in two.interrupted()] == [1]


def test_the_best_has_finished_and_other_values_are_another_sweep(tmp_path):
    study = opened(tmp_path / "a", "random")
    assert study.best() is None
    values = [value(params) for params in done(study, 5)]
    failed, pruned = study.next(), study.next()
    study.study.tell(failed, state=TrialState.FAIL)
    pruned.report(-7.0, 5)
    study.study.tell(pruned, state=TrialState.PRUNED)
    assert study.best().value == min(values) and len(study.trials()) == 7
    other = opened(tmp_path / "a", "random", SPACE | {"name": CategoricalDistribution(["c"])})
    with pytest.raises(UserError, match="another space; use another --workdir"):
        other.params(other.next())


def test_a_storage_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(UserError, match="--storage=nosuch://host cannot be opened"):
        opened(tmp_path / "a", storage="nosuch://host")
