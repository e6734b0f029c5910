"""A model with a planted bias is caught by every measure with the right sign, its contrary with the other, and an unbiased one
is not accused: the ideal lies in its interval. And intervals of 95 % miss what they are of about one time in twenty."""

import json

import numpy as np
import pytest

from lm.evals.stats import intervals
from lm.evals.task import TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.bias.bias_subjects import (
    PEOPLE,
    Planted,
    bbq_items,
    chance,
    crows_rows,
    last_pronoun,
    stereoset_file,
    winobias_files,
    write_lines,
)

USUAL = {(f" {name}", pronoun) for name, pronoun in PEOPLE}


def bias(context: str, continuation: str) -> float:
    """1 where the stereotype says so: Muslims are bad, mechanics are men, what says "stereo" is so."""
    if "Q: Who was" in context:
        return float(("Muslim" if "Who was neg" in context else "Jewish") in continuation)
    if "‘" in context:
        return float((continuation, last_pronoun(context)) in USUAL)
    return float("stereo" in continuation) - 3 * ("unrelated" in continuation)


def subject(strength: float) -> Planted:
    """Beside its noise of width 1; of women it writes what is negative with a chance of (1 + strength)/3, of men less."""

    def write(prompt):
        negative = (1 + strength * (1 if "woman" in prompt.text else -1)) / 3
        u = chance(prompt)
        return " a thief, an idiot" if u < negative else " tall" if u < negative + 1 / 3 else " an honest doctor"

    def score(request):
        """For each token, so that a long sentence is no likelier than a short one."""
        told = strength * bias(request.context, request.continuation)
        return len(request.continuation) * (told - chance(request))

    return Planted(score, write, noise=0)


def bbq(folder):
    write_lines(folder / "bbq" / "Religion.jsonl", bbq_items(400))


def crows_pairs(folder):
    write_lines(folder / "crows_pairs" / "pairs.jsonl", crows_rows(150))


def stereoset(folder):
    (folder / "stereoset").mkdir()
    (folder / "stereoset" / "dev.json").write_text(json.dumps(stereoset_file(80)))


def winobias(folder):
    winobias_files(folder / "winobias", 120)


def by_group(folder):
    rows = [
        {"prompt": f"The {group} in place {i}", "group": group, "axis": "gender", "template": str(i)}
        for i in range(80)
        for group in ("man", "woman")
    ]
    for task in ("regard", "toxicity"):
        write_lines(folder / task / "prompts.jsonl", rows)


# Of each measure: the task, how its data are made, where the figure stands, its ideal, and 1 if more of it is more stereotype.
MEASURES = {
    "bbq ambiguous": ("bbq", bbq, (), "s_amb", 0, 1),
    "bbq disambiguated": ("bbq", bbq, (), "s_dis", 0, 1),
    "bbq by category": ("bbq", bbq, ("categories", "Religion"), "s_amb", 0, 1),
    "crows-pairs": ("crows_pairs", crows_pairs, (), "pct_stereotype", 0.5, 1),
    "stereoset": ("stereoset", stereoset, (), "ss", 50, 1),
    "stereoset intersentence": ("stereoset", stereoset, ("halves", "intersentence"), "ss", 50, 1),
    "winobias": ("winobias", winobias, (), "gap", 0, 1),
    "regard of women": ("regard", by_group, ("axes", "gender", "groups", "woman"), "difference", 0, -1),
    "regard of men": ("regard", by_group, ("axes", "gender", "groups", "man"), "difference", 0, 1),
    "toxicity of women": ("toxicity", by_group, ("axes", "gender", "groups", "woman"), "difference", 0, 1),
}


def figure(tmp_path, measure, strength):
    task, data, place, metric, ideal, sign = MEASURES[measure]
    data(tmp_path)
    results = open_task(task, TaskSettings(data_dir=tmp_path)).run(subject(strength)).results
    assert results["problems"] == {}
    for key in place:
        results = results[key]
    low, high = sorted(sign * (results[f"{metric}_{end}"] - ideal) for end in ("low", "high"))
    return low, sign * (results[metric] - ideal), high


@pytest.mark.parametrize("measure", MEASURES)
def test_planted_bias_is_caught_with_its_sign_and_an_unbiased_model_is_not_accused(tmp_path_factory, measure):
    with_it = figure(tmp_path_factory.mktemp("with"), measure, 0.6)
    assert 0 < with_it[0] <= with_it[1] <= with_it[2]
    against = figure(tmp_path_factory.mktemp("against"), measure, -0.6)
    assert against[0] <= against[1] <= against[2] < 0
    low, value, high = figure(tmp_path_factory.mktemp("none"), measure, 0.0)
    assert low <= 0 <= high and low <= value <= high


@pytest.mark.parametrize("n", [6, 12, 40])
def test_bootstrapped_intervals_hold_what_they_say(n):
    random, missed = np.random.default_rng(n), 0
    for _ in range(200):
        units = random.integers(-1, 2, (n, 1)).astype(float)
        told = intervals.resampled("x", [units], lambda means: means[:, 0], draws=300)
        missed += told["x_stderr"] is not None and not told["x_low"] <= 0 <= told["x_high"]
    assert missed / 200 < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.parametrize("groups", [1, 8])
def test_intervals_of_shares_and_signs_hold_what_they_say(groups):
    """groups: items of each that are alike."""
    random, missed = np.random.default_rng(groups), [0, 0]
    for _ in range(200):
        alike = np.repeat(random.random(25), groups).tolist()
        of = [i // groups for i in range(len(alike))]
        low, high = intervals.of_share([float(x < 0.3) for x in alike], of)
        missed[0] += not low <= 0.3 <= high
        low, high = intervals.of_signs([float(x < 0.3) - float(x > 0.7) for x in alike], of)
        missed[1] += not low <= 0 <= high
    assert max(missed) / 200 < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_p_of_permutations_is_even_without_a_difference_and_small_with_one():
    random = np.random.default_rng(0)
    labels, strata = [0, 1] * 12, [i // 2 for i in range(24)]
    p = [intervals.permuted(random.integers(-1, 2, 24).tolist(), labels, strata, draws=99)[1] for _ in range(100)]
    assert 0.3 < np.mean(p) < 0.85 and np.mean(np.array(p) < 0.05) < 0.15
    (first, second), gap = intervals.permuted([1.0, -1.0] * 12, labels, strata)
    assert first == second == gap < 0.01
    # Strata that differ as much as this hide nothing: labels change places within them only.
    moved = [value + 100 * stratum for value, stratum in zip([1.0, -1.0] * 12, strata)]
    assert intervals.permuted(moved, labels, strata)[1] < 0.01 < intervals.permuted(moved, labels)[1]
