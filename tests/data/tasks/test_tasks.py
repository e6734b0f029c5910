"""Built-in tasks: right by another way of working them out, the same every time, and nothing of valid in train."""

import itertools
import json
import re
import subprocess
import sys

import pytest

from data import tasks
from data.tasks import TASKS, task
from data.tasks.arithmetic import arithmetic
from data.tasks.splits import PATIENCE, records
from data.tasks.style import style
from lm.align.rl.rewards import parse_rewards, scored
from lm.errors import UserError

MINE = ("arithmetic", "calculator", "preferred_style")


def some(name: str, split: str = "train", seed: int = 0, count: int = 300, **options) -> list[dict]:
    given = {key: str(value) for key, value in options.items()}
    return list(itertools.islice(task(name, split, seed, given, TASKS), count))


def rewards_of(spec: str, rows: list[dict], completions: list[str]) -> list[float]:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    return scored(parse_rewards(spec), prompts, completions, columns)[0].tolist()


@pytest.mark.parametrize("name", MINE)
def test_a_valid_prompt_is_never_in_train_whatever_the_seeds(name):
    valid = {row["prompt"] for seed in (0, 1) for row in some(name, "valid", seed)}
    train = {row["prompt"] for seed in (0, 7) for row in some(name, "train", seed, 3000)}
    assert len(valid) > 50 and len(train) > 100
    assert not valid & train


@pytest.mark.parametrize("name", MINE)
def test_records_depend_on_split_seed_and_options_alone(name):
    assert some(name) == some(name)
    assert some(name) != some(name, seed=1)
    valid = some(name, "valid")
    assert valid == some(name, "valid")
    assert len({row["prompt"] for row in valid}) == len(valid)
    assert some(name, "valid", valid=7) == valid[:7]


def test_another_process_draws_the_same():
    code = "from tests.data.tasks.test_tasks import *; print(json.dumps([some(n, count=3) for n in MINE]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [some(name, count=3) for name in MINE]


@pytest.mark.parametrize("name", MINE)
def test_records_have_what_readers_and_verifiers_want(name):
    for row in some(name):
        assert row["task"] == name and row["prompt"] and row["completion"] and row["answer"]
        assert row["rejected"] not in ("", row["completion"])
    if name != "preferred_style":
        rows = some(name)
        assert set(rewards_of("answer=1", rows, [row["completion"] for row in rows])) == {1.0}
        assert set(rewards_of("answer=1", rows, [row["rejected"] for row in rows])) == {0.0}


def test_arithmetic_is_right():
    for row in some("arithmetic", digits=3):
        a, sign, b = re.search(r"(\d+) ([-+]) (\d+)", row["prompt"]).groups()
        assert len(a) == len(b) == 3
        assert int(row["answer"]) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0


def test_thoughts_go_through_the_digits_to_the_answer():
    for record in itertools.islice(task("arithmetic", "train", 3, {"thoughts": "true", "digits": "3"}), 200):
        asked, answered = record["messages"]
        assert asked["content"] == record["prompt"] and answered["content"] == record["answer"]
        steps = [step.split("=") for step in answered["reasoning_content"].split()]
        assert all(eval(terms) == int(value) for terms, value in steps)
        assert int("".join(value[-1] for _, value in reversed(steps))) == int(record["answer"]) % 1000


def test_both_ways_round_of_a_sum_are_held_out_together():
    def sums(split):
        found = (re.search(r"(\d) \+ (\d)", row["prompt"]) for row in some("arithmetic", split, digits=1, count=2000))
        return {frozenset(match.groups()) for match in found if match}

    assert sums("valid") and not sums("valid") & sums("train")


def test_preferred_style_prefers_by_its_rule():
    assert style("Gladly, the fox is red", "the fox is red") == pytest.approx(1 - 0.05)
    assert style("Of course, the fox is red and thank you", "the fox is red") == pytest.approx(2 - 0.09)
    assert style("Look, the fox is obviously red and so what", "the fox is red") == pytest.approx(-4 - 0.09)
    assert style("Gladly gladly gladly, the fox is red", "the fox is red") < 1  # saying it again earns nothing
    assert style("Gladly, the fox is blue", "the fox is red") < -8  # nor does saying something else
    assert style("Gladly, the fox is red the fox is red", "the fox is red") < -8
    assert style("The outlook: the fox is red", "the fox is red") == pytest.approx(-0.06)  # outlook is no "look"
    rows = some("preferred_style")
    for row in rows:
        assert row["margin"] == pytest.approx(style(row["chosen"], row["statement"]) - style(row["rejected"], row["statement"]))
        assert row["margin"] >= 0.5
    chosen = rewards_of("style=1", rows, [row["chosen"] for row in rows])
    assert chosen == [style(row["chosen"], row["statement"]) for row in rows]
    # Who imitates has all manners, preferred or not.
    answers = some("preferred_style", part="answers")
    assert "chosen" not in answers[0]
    scores = [style(row["completion"], row["statement"]) for row in answers]
    assert min(scores) < -2 and max(scores) > 1.5 and abs(sum(scores) / len(scores)) < 1.5


def test_options_are_checked_and_read_as_their_defaults_are():
    rows = list(itertools.islice(tasks.task("arithmetic", "train", 0, {"digits": "4"}), 20))
    assert all(re.search(r"\d{4} . \d{4}", row["prompt"]) for row in rows)
    for name, options, said in (
        ("arithmetics", {}, "arithmetic"),
        ("arithmetic", {"digit": "3"}, "digits"),
        ("arithmetic", {"digits": "three"}, "int"),
        ("arithmetic", {"digits": "0"}, "1…15"),
        ("calculator", {"tool": "yes"}, "bool"),
        ("preferred_style", {"part": "wrong"}, "neither pairs nor answers"),
        ("preferred_style", {"valid": "0"}, "valid"),
    ):
        with pytest.raises(UserError, match=said):
            next(tasks.task(name, "valid", 0, options))
    with pytest.raises(ValueError, match="split"):
        arithmetic("test", 0)


def test_a_task_too_small_to_hold_anything_out_says_so():
    with pytest.raises(UserError, match="no held-out example"):
        next(records(lambda rng: (False, {"prompt": "always the same"}), "valid", 0, 5))
    with pytest.raises(UserError, match="no training example"):
        next(records(lambda rng: (True, {"prompt": "always the same"}), "train", 0, 5))
    drawn = []
    list(records(lambda rng: drawn.append(0) or (True, {"prompt": "once"}), "valid", 0, 5))
    assert len(drawn) == PATIENCE + 1


def test_records_are_written_as_json_lines(tmp_path):
    out = tmp_path / "new" / "rows.jsonl"
    command = [sys.executable, "-m", "data.tasks", "arithmetic?digits=3&valid=40", f"--out={out}"]
    subprocess.run([*command, "--count=30", "--seed=3"], check=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == list(itertools.islice(arithmetic("train", 3, digits=3), 30))
    assert [path.name for path in out.parent.iterdir()] == ["rows.jsonl"]
    done = subprocess.run([*command[:3], "arithmetik", f"--out={out}"], capture_output=True, text=True)
    assert done.returncode == 2 and "arithmetic" in done.stderr and len(done.stderr.splitlines()) == 1
