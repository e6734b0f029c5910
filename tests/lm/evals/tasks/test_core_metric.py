"""CORE: centred accuracies and their mean, of whichever tasks there are."""

import math

import pytest
import yaml

from lm.evals.tasks import catalogue
from lm.evals.tasks.core_metric import CORE, core

SHOTS = dict.fromkeys("hellaswag_zeroshot copa openbook_qa lambada_openai winograd winogrande coqa".split(), 0)
SHOTS["agi_eval_lsat_ar"] = 3  # and 10 of the others


def results(value, error=0.01):
    """As each task would give them."""
    metrics = {name: "acc_per_token" if chance else "acc" for name, chance in CORE.items()}
    return {f"core_{name}": {m: value(CORE[name]), f"{m}_stderr": error, "n": 9} for name, m in metrics.items()}


def test_chance_is_nought_and_all_right_is_one():
    assert core(results(lambda chance: chance))["core"] == pytest.approx(0)
    told = core(results(lambda chance: 1.0))
    assert told["core"] == pytest.approx(1) and told["n"] == 22 and told["missing"] == []
    assert core(results(lambda chance: 0.0))["centred"]["boolq"] == pytest.approx(-0.62 / 0.38)


def test_the_figure_of_some_of_the_tasks_has_another_name():
    some = {"core_boolq": {"acc_per_token": 0.81, "acc_per_token_stderr": 0.019}}
    some["core_squad"] = {"acc": 0.3, "acc_stderr": 0.04}
    told = core(some | {"core_copa": {"acc_per_token": None}, "mmlu": {"acc": 0.9}})
    assert told["core_partial"] == pytest.approx((0.5 + 0.3) / 2) and "core" not in told
    assert told["n"] == 2 and len(told["missing"]) == 20 and "copa" in told["missing"]
    assert told["core_partial_stderr"] == pytest.approx(math.hypot(0.019 / 0.38, 0.04) / 2)
    assert core({"mmlu": {"acc": 0.9}}) == {}


def test_jeopardy_is_the_mean_over_its_categories():
    assert core({"core_jeopardy": {"acc": 0.1, "acc_macro": 0.2}})["core_partial"] == pytest.approx(0.2)
    assert core({"core_jeopardy": {"acc": 0.1}})["core_partial"] == pytest.approx(0.1)


def test_each_task_has_its_file_with_its_shots():
    assert len(CORE) == 22
    files = {path.stem.removeprefix("core_"): yaml.safe_load(path.read_text()) for path in catalogue.FOLDER.glob("core_*.yaml")}
    assert files.keys() == CORE.keys()
    for name, chance in CORE.items():
        assert files[name]["num_fewshot"] == SHOTS.get(name, 10)
        assert ("acc_per_token" if chance else "acc") in files[name]["metric_list"]
