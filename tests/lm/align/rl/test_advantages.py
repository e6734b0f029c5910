"""Advantages: golden values, slow twins, and groups without a difference."""

import numpy as np
import pytest

from lm.align.rl import advantages
from lm.align.settings import CHOICES
from lm.errors import UserError

GROUP = np.array([[1.0, 0.0, 0.0, 1.0]])


def test_golden_values():
    np.testing.assert_allclose(advantages.grpo(GROUP), [[0.865875, -0.865875, -0.865875, 0.865875]], atol=1e-6)
    np.testing.assert_allclose(advantages.rloo(GROUP), [[0.666667, -0.666667, -0.666667, 0.666667]], atol=1e-6)
    found = advantages.gae(np.array([[0.0, 0.0, 1.0]]), np.array([[0.5, 0.6, 0.7]]), 1.0, 0.95)
    np.testing.assert_allclose(found, [[0.46575, 0.385, 0.3]], atol=1e-6)


def test_groups_and_their_twins():
    rewards = np.random.default_rng(0).normal(size=(5, 6)) * 3
    for scale in CHOICES["rl.scale"]:
        wanted = np.empty_like(rewards)
        for b, g in np.ndindex(rewards.shape):
            by = {"group": rewards[b].std(ddof=1) + 1e-4, "batch": rewards.std(ddof=1) + 1e-4, "none": 1.0}[scale]
            wanted[b, g] = (rewards[b, g] - rewards[b].mean()) / by
        np.testing.assert_allclose(advantages.grpo(rewards, scale), wanted, rtol=1e-5, atol=1e-6)
    wanted = [[r - np.mean(np.delete(row, g)) for g, r in enumerate(row)] for row in rewards]
    np.testing.assert_allclose(advantages.rloo(rewards), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_teach_nothing(size):
    rewards = np.array([[0.0], [1.0], [0.1], [-1 / 3], [1e6], [1e-8]]) * np.ones(size)
    rewards = np.concatenate([rewards, np.arange(size)[None]])
    for found in (*(advantages.grpo(rewards, scale) for scale in CHOICES["rl.scale"]), advantages.rloo(rewards)):
        assert (found[:-1] == 0).all() and (found[-1] != 0).any()


def test_a_group_of_one_is_refused():
    for function in (advantages.grpo, advantages.rloo):
        with pytest.raises(UserError, match="group_size"):
            function(np.ones((3, 1)))
    with pytest.raises(ValueError, match="grup"):
        advantages.grpo(GROUP, "grup")


def plain_gae(rewards, values, gamma, lam):
    """Σ over the future of (γλ)^k δ, as the sum is written."""
    T = len(rewards)
    deltas = [rewards[t] + (gamma * values[t + 1] if t + 1 < T else 0.0) - values[t] for t in range(T)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(T - t)) for t in range(T)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_gae_and_its_twin(gamma, lam):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 3, 8))
    wanted = [plain_gae(r, v, gamma, lam) for r, v in zip(rewards, values)]
    np.testing.assert_allclose(advantages.gae(rewards, values, gamma, lam), wanted, rtol=1e-4, atol=1e-6)


def test_gae_passes_over_what_is_no_action():
    """As though prompt, tool output and padding were cut out of the row; whatever stands there."""
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 3, 9))
    mask = np.array([[0, 0, 1, 1, 0, 0, 1, 1, 0], [1] * 9, [0] * 9], bool)
    found = np.asarray(advantages.gae(rewards, values, 0.9, 0.8, mask))
    for row in range(3):
        wanted = plain_gae(rewards[row][mask[row]], values[row][mask[row]], 0.9, 0.8)
        np.testing.assert_allclose(found[row][mask[row]], wanted, rtol=1e-4, atol=1e-6)
        assert (found[row][~mask[row]] == 0).all()
    rewards[~mask], values[~mask] = 1e9, np.nan
    np.testing.assert_array_equal(advantages.gae(rewards, values, 0.9, 0.8, mask), found)


def test_whitening():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(4, 6)) * 5 + 3, rng.random((4, 6)) < 0.6
    found = np.asarray(advantages.whiten(x, mask))
    wanted = (x[mask] - x[mask].mean()) / x[mask].std(ddof=1)
    np.testing.assert_allclose(found[mask], wanted, rtol=1e-5, atol=1e-6)
    assert (found[~mask] == 0).all()
    for none_or_one in (np.zeros((4, 6)), np.eye(4, 6) * (np.arange(6) == 0)):
        assert (np.asarray(advantages.whiten(x, none_or_one)) == 0).all()
