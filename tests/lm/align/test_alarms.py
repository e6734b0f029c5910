"""Alarms: each goes off for the run that it is made for, says when, and is silent about a run that learns as it should."""

import numpy as np
import pytest

from lm.align.alarms import alarms, correlation, is_better

STEPS = 120


def healthy(seed: int = 0, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Curves of a run of reinforcement learning that learns: reward rises, answers get a little shorter, noise everywhere."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((8, steps))
    p = 1 / (1 + np.exp(-(np.arange(steps) - steps / 2) / (steps / 10)))
    return {
        "loss": 0.01 * noise[0],
        "grad_norm": 0.3 + 0.05 * np.abs(noise[1]),
        "reward": 0.2 + 0.6 * p + 0.03 * noise[2],
        "rewards/answer/mean": 0.2 + 0.6 * p + 0.03 * noise[2],
        "rewards/format/mean": 0.9 + 0.02 * noise[3],
        "kl": 0.02 + 0.1 * p,
        "entropy": 1.5 - 0.8 * p,
        "frac_reward_zero_std": 0.2 + 0.3 * p,
        "completions/mean_length": 40 - 5 * p + 2 * noise[4],
        "completions/clipped_ratio": 0.3 * (1 - p),
    }


def lines_of(curves: dict, held_out: dict | None = None, every: int = 20) -> list[dict]:
    """As they stand in metrics.jsonl, validation every so many steps."""
    rows = [{"step": i + 1, **{key: float(y[i]) for key, y in curves.items()}} for i in range(len(next(iter(curves.values()))))]
    for i in range(len(next(iter((held_out or {"": []}).values())))):
        rows.append({"step": i * every, **{f"valid_{key}": float(y[i]) for key, y in held_out.items()}})
    return sorted(rows, key=lambda row: row["step"])


def kinds(curves: dict, held_out: dict | None = None) -> list[str]:
    return [alarm.kind for alarm in alarms(lines_of(curves, held_out))]


HELD_OUT = {"reward": [0.2, 0.22, 0.35, 0.6, 0.78, 0.77], "loss": [0.9, 0.8, 0.7, 0.6, 0.59, 0.6]}


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_raises_none(seed):
    assert kinds(healthy(seed), HELD_OUT) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_learns_nothing_raises_none(seed):
    rng = np.random.default_rng(seed)
    flat = {key: np.full(STEPS, y[0]) + 0.05 * np.abs(y[0]) * rng.standard_normal(STEPS) for key, y in healthy().items()}
    assert kinds(flat, {"reward": 0.2 + 0.003 * rng.standard_normal(6)}) == []


@pytest.mark.parametrize("lines", [[], [{"step": 1, "loss": 1.0}], lines_of(healthy(steps=3)), [{"step": 0, "valid_loss": 1}]])
def test_a_run_that_has_hardly_begun_raises_none(lines):
    assert alarms(lines) == []


def test_length_that_reward_goes_with():
    curves, rng = healthy(), np.random.default_rng(1)
    wobble = rng.standard_normal(STEPS)
    curves["completions/mean_length"] = np.linspace(40, 90, STEPS) + 4 * wobble
    assert kinds(curves) == []  # longer, and better for another reason
    curves["reward"] = curves["reward"] + 0.06 * wobble
    (alarm,) = alarms(lines_of(curves))
    assert alarm.kind == "length" and 20 <= alarm.step <= 60
    assert "grew from 43 to 88 tokens" in alarm.text and "between their changes" in alarm.text


def test_one_reward_that_pays_for_another():
    curves = healthy()
    curves["rewards/format/mean"] = np.linspace(0.9, 0.4, STEPS)
    (alarm,) = alarms(lines_of(curves))
    assert alarm.kind == "rewards_apart"
    assert "answer (0." in alarm.text and "rises while format (0.8" in alarm.text


def test_a_reward_that_held_out_tasks_do_not_share():
    falling = {**HELD_OUT, "reward": [0.2, 0.3, 0.5, 0.45, 0.3, 0.25]}
    (alarm,) = alarms(lines_of(healthy(), falling))
    assert alarm == (100, "held_out", "reward rises, but held out reward fell from 0.5 to 0.25")
    flat = healthy()
    flat["reward"] = np.full(STEPS, 0.3)
    assert kinds(flat, falling) == []
    parts = {"reward": [0.2] * 6, "rewards/format": [0.9, 0.9, 0.8, 0.5, 0.4, 0.4]}
    assert kinds(healthy(), parts) == ["held_out"]
    preference = {"rewards/accuracies": 0.5 + healthy()["reward"] / 2}
    assert kinds(preference, {"rewards/accuracies": [0.5, 0.7, 0.68, 0.55, 0.5, 0.5]}) == ["held_out"]


def test_a_loss_that_rises_where_it_is_not_trained():
    curves = {"loss": np.linspace(0.7, 0.1, STEPS)}
    assert kinds(curves, {"loss": [0.69, 0.6, 0.5, 0.48, 0.48, 0.49]}) == []
    assert kinds(curves, {"loss": [0.69, 0.6, 0.5, 0.6, 0.7, 0.8]}) == ["overfitting"]


def test_distances_and_entropy_are_no_concern_of_runs_without_a_reward():
    curves = {"loss": np.ones(STEPS), "kl": np.full(STEPS, 9.0), "entropy": 1.5 * np.exp(-np.arange(STEPS) / 15)}
    assert kinds(curves, {"rewards/rejected": [0, -1, -2, -3, -4, -5], "logps/rejected": [-9, -10, -11, -12, -13, -14]}) == []


@pytest.mark.parametrize(
    "key, values, kind",
    [
        ("kl", np.linspace(0, 3, STEPS), "kl"),
        ("entropy", 1.5 * np.exp(-np.arange(STEPS) / 15), "entropy"),
        ("frac_reward_zero_std", np.linspace(0.3, 1, STEPS), "no_signal"),
        ("completions/clipped_ratio", np.linspace(0, 0.9, STEPS), "clipped"),
    ],
)
def test_levels(key, values, kind):
    curves = healthy() | {key: values}
    (alarm,) = alarms(lines_of(curves))
    assert alarm.kind == kind and 20 < alarm.step < STEPS


def test_a_level_that_was_left_again_says_until_when():
    cut = np.where(np.arange(STEPS) < 30, 0.8, 0.1)
    (alarm,) = alarms(lines_of(healthy() | {"completions/clipped_ratio": cut}))
    assert alarm.step == 5 and "up to 80%" in alarm.text and alarm.text.endswith("(last at step 32)")


def test_zero_loss_is_said_at_once_but_not_of_groups_that_agree():
    nothing = lines_of({"loss": np.zeros(3), "grad_norm": np.zeros(3)})
    assert [(alarm.step, alarm.kind) for alarm in alarms(nothing)] == [(3, "no_training")]
    assert alarms(lines_of({"loss": np.zeros(3), "grad_norm": np.ones(3)})) == []
    agreed = {"loss": np.zeros(30), "grad_norm": np.zeros(30), "frac_reward_zero_std": np.ones(30), "reward": np.full(30, 0.98)}
    (alarm,) = alarms(lines_of(agreed))
    assert alarm.kind == "no_signal" and "mean reward 0.98" in alarm.text


def test_numbers_that_are_missing_or_null_are_passed_over():
    rows = lines_of(healthy(), HELD_OUT)
    for row in rows[::7]:
        for key in row.keys() - {"step"}:
            row[key] = None
    assert alarms(rows) == []


def test_correlation_of_every_prefix():
    rng = np.random.default_rng(0)
    x, y = 1e4 + rng.standard_normal(50), rng.standard_normal(50)
    expected = [np.corrcoef(x[: i + 1], y[: i + 1])[0, 1] for i in range(2, 50)]
    np.testing.assert_allclose(correlation(x, y)[2:], expected, atol=1e-6)
    assert correlation(np.ones(5), y[:5]).tolist() == [0.0] * 5


def test_what_is_better():
    assert is_better("accuracy", 0.1, 0.9) and not is_better("accuracy", 0.9, 0.9)
    assert is_better("attack_success", 0.9, 0.1) and is_better("bits per byte", 1.8, 1.2) and is_better("valid_loss", 2, 1)
    assert not is_better("over_refusal", 0.1, 0.2)
