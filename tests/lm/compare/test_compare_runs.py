"""Arms over seeds: the verdict is that of a paired t test, and says nothing about measures that are not the same."""

import json
import shlex
import subprocess

import numpy as np
import pytest
from scipy import stats

from configs.train import tiny
from lm.compare import code
from lm.compare.__main__ import arms_of, differences, measure_of, paired_t, read_run, verdict
from lm.errors import UserError


def a_run(folder, seed, value, loss=1.0, **keys):
    config = tiny.get_config()
    config.seed = seed
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): x for key, x in keys.items()})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_best_effort())
    lines = [
        {"step": 1, "loss": 2.0},
        {"step": 1, "valid_bits_per_byte": 9.0},
        {"step": 2, "valid_bits_per_byte": value, "valid_loss": loss},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(folder)


def arms(tmp_path, before, after, **keys):
    runs = [a_run(tmp_path / f"a{seed}", seed, x) for seed, x in enumerate(before)]
    return arms_of([*runs, *(a_run(tmp_path / f"b{seed}", seed, x, **keys) for seed, x in enumerate(after))])


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_test_is_that_of_scipy(seed):
    random = np.random.default_rng(seed)
    before = random.normal(size=3 + seed)
    after = before + random.normal(0.5, 0.3, size=3 + seed)
    result, reference = paired_t(before, after), stats.ttest_rel(after, before)
    assert result.p == pytest.approx(reference.pvalue) and result.difference == pytest.approx(np.mean(after - before))
    assert (result.low, result.high) == pytest.approx(tuple(reference.confidence_interval()))


def test_equal_arms_are_no_different_in_nineteen_of_twenty_draws():
    random = np.random.default_rng(0)
    called = [paired_t(*random.normal(size=(2, 3))).p < 0.05 for _ in range(2000)]
    assert 0.04 < np.mean(called) < 0.06


def test_two_arms_of_three_seeds(tmp_path):
    first, other = arms(tmp_path, [2.0, 2.1, 2.2], [1.9, 1.99, 2.11], optimizer__name="muon")
    assert sorted(first) == [0, 1, 2] == sorted(other)
    sentence = verdict(first, other, "bits_per_byte", 0.05)
    assert "2.1 → 2: better (difference -0.1," in sentence and "n = 3 seeds" in sentence and "95 % interval" in sentence
    assert "no difference" in verdict(first, {0: other[1], 1: other[2], 2: other[0]}, "bits_per_byte", 0.05)
    assert "too few to tell" in verdict({0: first[0]}, other, "bits_per_byte", 0.05)
    late = other[0]._replace(step=1)
    assert "is at step 1, not 2" in verdict({0: first[0], 1: first[1]}, {0: late, 1: other[1]}, "bits_per_byte", 0.05)
    assert "share no seed" in verdict({9: first[0]}, other, "bits_per_byte", 0.05)


@pytest.mark.parametrize("keys, measure", [({"data__input": "b.txt"}, "bits_per_byte"), ({"tokenizer": "other"}, "loss")])
def test_what_is_not_the_same_measure_has_no_verdict(keys, measure, tmp_path):
    first, other = arms(tmp_path, [2.0, 2.1], [1.0, 1.1], **keys)
    assert "no verdict: the arms differ in" in verdict(first, other, measure, 0.05)


def test_an_objective_of_another_text_is_another_measure(tmp_path):
    (first, other) = arms(tmp_path, [2.0], [1.9], optimizer__name="muon")
    texts = "def loss(): return 1\n", "def loss(): return 2\n"
    a, b = (arm[0]._replace(own={"objective": text}) for arm, text in zip((first, other), texts, strict=True))
    lines = differences(a, b)
    assert "optimizer.name: normuon → muon" in lines and lines[lines.index("code of objective:") :][2:] == [
        "  -def loss(): return 1",
        "  +def loss(): return 2",
    ]
    assert "differ in objective" in verdict({0: a}, {0: b}, "loss", 0.05)
    assert "too few to tell" in verdict({0: a}, {0: b}, "bits_per_byte", 0.05)


def test_the_same_settings_of_two_commits_are_two_arms(tmp_path):
    runs = [
        a_run(tmp_path / f"{code}{seed}", seed, 1.0)._replace(code=code) for code in ("aaaaaaa", "bbbbbbb") for seed in (0, 1)
    ]
    assert [[run.code for run in arm.values()] for arm in arms_of(runs)] == [["aaaaaaa"] * 2, ["bbbbbbb"] * 2]
    assert len(arms_of([runs[0], runs[3]])) == 1  # seeds that were run one after the other


def test_commits_are_compared_where_git_has_them(tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", tmp_path, *author, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    commits = []
    for n in range(2):
        (tmp_path / "step.py").write_text(f"rate = {n}\n")
        (tmp_path / "notes.md").write_text(f"{n}\n")
        git("add", "-A")
        git("commit", "-qm", "a")
        commits.append(git("rev-parse", "--short", "HEAD"))
    a, b = commits
    lines = code.of_commits(a, f"{b} + changes", tmp_path)
    assert lines[0] == f"code: {a} → {b} + changes" and "step.py" in lines[1] and not any("notes.md" in line for line in lines)
    assert lines[-2].endswith(f" diff {a} {b} -- '*.py'") and f"since {b} when" in lines[-1]
    command = shlex.split(lines[-2].partition(": ")[2])
    assert "+rate = 1" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "does not know both" in code.of_commits(a, "1234567", tmp_path)[1]
    assert code.of_commits("lmcraft 1.0", a, tmp_path) == [f"code: lmcraft 1.0 → {a}"]
    assert code.of_commits(a, a, tmp_path) == []


def test_faults_name_their_folder(tmp_path):
    run = a_run(tmp_path / "a", 0, 1.0)
    with pytest.raises(UserError, match="one run twice"):
        arms_of([run, run._replace(folder=tmp_path / "copy")])
    with pytest.raises(UserError, match="share bits_per_byte, loss"):
        measure_of([run], "reward")
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "none")
    (tmp_path / "a" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no held-out measures"):
        read_run(tmp_path / "a")
