"""Runs compared item by item: joins, directions, tests, and what a CI would fail on."""

import json

import pytest

from lm.errors import UserError
from lm.evals import compare
from lm.evals.outcomes import means
from tests.lm.reports.evaluation_runs import a_run


def run(folder, values, task="mmlu", metric="acc", **more):
    """A run of one task with one metric, whose values are those given, None for no sample."""
    samples = [
        {"task": task, "doc_id": i, "prompt": f"question {i}", "target": 0, "metrics": {metric: value}, "failed": False}
        for i, value in enumerate(values)
        if value is not None
    ]
    results = {task: means(samples, (metric,)) | more, "versions": {"jax": "1"}}
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


def row_of(comparison, task="mmlu", metric="acc"):
    return comparison["tasks"][task]["metrics"][metric]


def test_items_are_joined_and_what_does_not_join_is_named(tmp_path):
    before = run(tmp_path / "a", [1.0, 0.0, 1.0, 0.0, None, 1.0])
    after = run(tmp_path / "b", [1.0, 1.0, None, 1.0, 1.0, 1.0])
    lines = (after / "samples.jsonl").read_text().replace("question 5", "another question")
    (after / "samples.jsonl").write_text(lines + lines.splitlines()[0] + "\n")
    found = compare.compare(before, after)["tasks"]["mmlu"]
    assert found["n"] == 2 and row_of({"tasks": {"mmlu": found}})["n"] == 2
    assert found["only_before"] == {"n": 2, "examples": ["0", "2"]}  # 0 comes twice afterwards
    assert found["only_after"] == {"n": 1, "examples": ["4"]}
    assert found["differing"] == {"n": 1, "examples": ["5"]}
    assert found["repeated"] == {"n": 1, "examples": ["0"]}


def test_a_difference_by_hand(tmp_path):
    before, after = run(tmp_path / "a", [0.0] * 8 + [1.0] * 2), run(tmp_path / "b", [1.0] * 6 + [0.0] * 2 + [1.0] * 2)
    row = row_of(compare.compare(before, after))
    assert row["difference"] == pytest.approx(0.6) and row["p"] == 2 / 2**6 and row["test"] == "mcnemar"
    assert row["better"] is True and row["p_holm"] == row["p"]
    back = compare.compare(after, before)
    assert row_of(back)["difference"] == pytest.approx(-0.6) and row_of(back)["better"] is False
    assert [(r["task"], r["metric"]) for r in compare.worse(back)] == [("mmlu", "acc")]
    assert "went from 0.8 to 0.2 (-0.6, p = 0.031" in compare.change_line(compare.worse(back)[0])
    assert compare.worse(back, tolerance=0.7) == compare.worse(back, alpha=0.01) == []
    assert compare.worse(compare.compare(before, after)) == compare.worse(compare.compare(before, before)) == []


@pytest.mark.parametrize(
    "metric, before, after, better",
    [
        ("bits_per_byte", 1.5, 1.0, True),
        ("perplexity", 10.0, 12.0, False),
        ("attack_success", 0.0, 1.0, False),
        ("pct_stereotype", 1.0, 0.5, True),
        ("pct_stereotype", 0.0, 1.0, None),
        ("s_amb", -1.0, 0.0, True),
        ("abstained", 0.0, 1.0, None),
        ("hallucination_rate", 1.0, 0.0, True),
        ("exact_match", 1.0, 0.0, False),
    ],
)
def test_directions(tmp_path, metric, before, after, better):
    pair = [run(tmp_path / name, [value] * 20, metric=metric) for name, value in (("a", before), ("b", after))]
    comparison = compare.compare(*pair)
    row = row_of(comparison, metric=metric)
    assert row["better"] is better
    assert row["p"] < 1e-3
    assert bool(compare.worse(comparison)) is (better is False)


def test_holm_corrects_for_the_tasks(tmp_path):
    pair = [a_run(tmp_path / name, skill, seed) for name, skill, seed in (("a", 0.4, 1), ("b", 0.65, 2))]
    comparison = compare.compare(*pair)
    rows = [part["metrics"][part["main"]] for part in comparison["tasks"].values()]
    assert len(rows) == 7 and all(row["p_holm"] >= row["p"] for row in rows)
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, 7 * smallest["p"]))
    assert comparison["tasks"]["redteam"]["metrics"]["attack_success"]["n"] == 90  # an item under three families is three
    assert compare.worse(comparison) == []
    worse = compare.worse(compare.compare(*pair[::-1]))
    assert {"gsm8k", "wikitext", "redteam"} <= {row["task"] for row in worse}


def test_figures_that_no_item_has(tmp_path):
    before = run(tmp_path / "a", [1.0, 0.0], icat=60.0, icat_stderr=1.0, ece=0.125)
    after = run(tmp_path / "b", [1.0, 0.0], icat=50.0, icat_stderr=1.0, ece=0.25)
    comparison = compare.compare(before, after)
    icat, ece = row_of(comparison, metric="icat"), row_of(comparison, metric="ece")
    assert icat["test"] == "z" and icat["p"] < 1e-6 and icat["better"] is False and icat["n"] is None
    assert ece["p"] is None and ece["difference"] == 0.125 and ece["better"] is False
    assert [row["metric"] for row in compare.worse(comparison)] == ["icat"]


def test_a_figure_that_is_no_longer_known_is_a_regression(tmp_path):
    before, after = run(tmp_path / "a", [1.0, 0.0]), run(tmp_path / "b", [None, None], acc=None)
    (lost,) = compare.worse(compare.compare(before, after))
    assert compare.change_line(lost) == "mmlu: acc was 0.5 and is no longer known"


def test_tasks_of_one_run_alone(tmp_path):
    before, after = run(tmp_path / "a", [1.0]), run(tmp_path / "b", [1.0], task="arc")
    assert compare.compare(before, after) == {"tasks": {}, "only_before": ["mmlu"], "only_after": ["arc"]}


def test_as_a_program(tmp_path, capsys):
    good, bad = run(tmp_path / "a", [1.0] * 20), run(tmp_path / "b", [0.0] * 20)
    assert compare.main([str(bad), str(good)]) == 0
    assert compare.main([str(good), str(bad)]) == 1
    assert "worse: mmlu: acc went from 1 to 0" in capsys.readouterr().out
    assert compare.main([str(good), str(bad), "--tolerance=1"]) == 0


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("results.json", None, "name the folder of a finished evaluation"),
        ("results.json", "{", "is damaged"),
        ("results.json", '{"versions": {}}', "holds no task"),
        ("samples.jsonl", None, "name the folder"),
        ("samples.jsonl", '{"task": "mmlu", "doc_id": 0}\n{"ta', "samples.jsonl:2: not JSON"),
        ("samples.jsonl", "[1]\n", "list"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, file, content, message):
    good, bad = run(tmp_path / "a", [1.0]), run(tmp_path / "b", [1.0])
    (bad / file).unlink()
    if content is not None:
        (bad / file).write_text(content)
    with pytest.raises(UserError, match=message):
        compare.compare(good, bad)
