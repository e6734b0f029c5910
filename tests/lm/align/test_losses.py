"""Losses an example and a token: golden values, a slow twin of each, the way their gradients point, and no end of numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.align import losses

GOLDEN = losses.Pairs(-10.0, -12.0, -11.0, -11.5, 5, 4)  # c = 1, r = −.5, δ = 1.5


class Certain:
    beta, label_smoothing, gamma = 0.1, 0.0, 1.0


class Doubtful(Certain):
    label_smoothing = 0.1


class Strong(Certain):
    beta = 2.0


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (lambda: losses.dpo(GOLDEN, Certain), 0.620957),
        (lambda: losses.dpo(GOLDEN, Doubtful), 0.635957),
        (lambda: losses.robust(GOLDEN, Doubtful), 0.602207),
        (lambda: losses.hinge(GOLDEN, Certain), 0.85),
        (lambda: losses.ipo(GOLDEN, Certain), 21.855625),
        (lambda: losses.kto(-10.0, -11.0, True, 0.2), 0.480011),
        (lambda: losses.kto(-12.0, -11.5, False, 0.2), 0.482507),
        (lambda: losses.apo_zero(GOLDEN, Certain), 0.962523),
        (lambda: losses.orpo(GOLDEN, Certain), 0.0288751),
        (lambda: losses.simpo(GOLDEN, Strong), 0.313262),
        (lambda: losses.bradley_terry(1.3, 0.4), 0.341154),
        (lambda: losses.bradley_terry(1.3, 0.4, margin=0.5), 0.513015),
        (lambda: losses.kl_estimate(0.0, -0.3, "k3"), 0.0408182),
    ],
)
def test_golden_values(found, value):
    assert float(found()) == pytest.approx(value, rel=1e-6, abs=1e-6)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def log_odds(logp, length):
    p = math.exp(logp / length)
    return math.log(p / (1 - p))


def flipped(error, p):
    """(the loss under the label, the loss under the other) of a pair whose chosen answer wins with probability p."""
    return -(1 - error) * math.log(p), -error * math.log(1 - p)


# The plain twins take one pair of floats: policy and reference, chosen and rejected, and the lengths.
TWINS = {
    "dpo": lambda c, r, n, m, s: sum(flipped(s.label_smoothing, sigma(s.beta * (c[0] - c[1] - r[0] + r[1])))),
    "robust": lambda c, r, n, m, s: (
        np.subtract(*flipped(s.label_smoothing, sigma(s.beta * (c[0] - c[1] - r[0] + r[1])))) / (1 - 2 * s.label_smoothing)
    ),
    "hinge": lambda c, r, n, m, s: max(0.0, 1 - s.beta * (c[0] - c[1] - r[0] + r[1])),
    "ipo": lambda c, r, n, m, s: ((c[0] - c[1]) / n - (r[0] - r[1]) / m - 0.5 / s.beta) ** 2,
    "apo_zero": lambda c, r, n, m, s: 1 - sigma(s.beta * (c[0] - c[1])) + sigma(s.beta * (r[0] - r[1])),
    "apo_down": lambda c, r, n, m, s: sigma(s.beta * (c[0] - c[1])) + 1 - sigma(s.beta * (c[0] - c[1] - r[0] + r[1])),
    "orpo": lambda c, r, n, m, s: -s.beta * math.log(sigma(log_odds(c[0], n) - log_odds(r[0], m))),
    "simpo": lambda c, r, n, m, s: -math.log(sigma(s.beta * (c[0] / n - r[0] / m) - s.gamma)),
}


class Settings:
    beta, label_smoothing, gamma = 0.3, 0.2, 0.4


def pairs(B=16, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, (2, B))
    logps = -rng.uniform(0.05, 3, (4, B)) * np.tile(lengths, (2, 1))
    return losses.Pairs(*logps, *lengths)


def test_every_loss_has_a_twin():
    assert TWINS.keys() == losses.LOSSES.keys()


@pytest.mark.parametrize("name", losses.LOSSES)
def test_preference_losses_and_their_twins(name):
    batch = pairs()
    found = losses.LOSSES[name](batch, Settings)
    wanted = [TWINS[name]((pc, rc), (pr, rr), n, m, Settings) for pc, pr, rc, rr, n, m in zip(*batch, strict=True)]
    assert found.shape == (16,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


def test_a_step_downhill_prefers_the_chosen_answer():
    """And moves no reference. Pairs are near enough to each other that no loss has had enough."""
    rng = np.random.default_rng(0)
    logps, lengths = (-5 + 0.1 * rng.normal(size=(4, 16))).astype(np.float32), np.full(16, 4.0, np.float32)

    @jax.jit
    def slopes(*logps):
        def total(*logps, name):
            settings = type("Certain", (Settings,), {"label_smoothing": 0.0})
            return jnp.sum(losses.LOSSES[name](losses.Pairs(*logps, lengths, lengths), settings))

        return {name: jax.grad(functools.partial(total, name=name), argnums=(0, 1, 2, 3))(*logps) for name in losses.LOSSES}

    for name, (chosen, rejected, *reference) in slopes(*logps).items():
        assert (rejected > 0).all() and all((slope == 0).all() for slope in reference), name
        assert name == "apo_down" or (chosen < 0).all(), name  # which takes the chosen answer down, too


def test_kto_and_its_twin():
    policy, ref = pairs().policy_chosen, pairs(seed=1).policy_chosen
    good = np.arange(16) % 3 > 0
    for kl in (0.0, 0.7):
        wanted = [1 - sigma(0.3 * (p - q - kl)) if g else 1 - sigma(0.3 * (kl - p + q)) for p, q, g in zip(policy, ref, good)]
        np.testing.assert_allclose(losses.kto(policy, ref, good, kl, 0.3), wanted, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(losses.kto(policy, ref, good.astype(np.float32), kl, 0.3), wanted, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(losses.kto(policy, ref, good, -5.0), losses.kto(policy, ref, good, 0.0))
    by_policy, by_ref, by_kl = jax.grad(lambda p, q, kl: jnp.sum(losses.kto(p, q, good, kl)), argnums=(0, 1, 2))(
        jnp.asarray(policy, jnp.float32), jnp.asarray(ref, jnp.float32), jnp.float32(0.3)
    )
    assert (by_policy[good] < 0).all() and (by_policy[~good] > 0).all()
    assert (by_ref == 0).all() and by_kl == 0


def test_reward_losses_and_their_twin():
    rng = np.random.default_rng(0)
    chosen, rejected, margin = rng.normal(size=(3, 16)) * 3
    found = losses.bradley_terry(chosen, rejected, margin, centering=0.01)
    wanted = [-math.log(sigma(c - r - m)) + 0.01 * (c + r) ** 2 for c, r, m in zip(chosen, rejected, margin)]
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


def test_preference_losses_stay_finite():
    """Answers that are certain, impossible, or empty."""
    ends = np.array([0.0, -1e-9, -30.0, -1e5], np.float32)
    *logps, lengths = np.stack(np.meshgrid(*[ends] * 4, np.array([0, 1, 1000], np.float32)), -1).reshape(-1, 5).T

    @jax.jit
    def found(policy_chosen, policy_rejected):
        def total(*policy, name):
            return jnp.sum(losses.LOSSES[name](losses.Pairs(*policy, *logps[2:], lengths, lengths), Settings))

        policy = policy_chosen, policy_rejected
        return {
            name: jax.value_and_grad(functools.partial(total, name=name), argnums=(0, 1))(*policy) for name in losses.LOSSES
        }

    for name, (value, slopes) in found(*logps[:2]).items():
        assert np.isfinite(value) and np.isfinite(slopes).all(), name


def tokens():
    """Log-probabilities, those of a policy that has moved far, advantages of both signs for both directions, and a mask."""
    rng = np.random.default_rng(0)
    before = -rng.uniform(0.1, 3, (4, 5))
    after = before + np.array([[0.6], [0.6], [-0.6], [-0.6]]) + 0.2 * rng.normal(size=(4, 5))
    advantages = np.array([1.3, -0.4, 0.7, -1.1], np.float32)
    mask = (np.arange(5) < np.array([[5], [3], [1], [4]])).astype(np.float32)
    return before.astype(np.float32), after.astype(np.float32), advantages, mask


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_clipped_surrogate_and_its_twin(level):
    old, logp, advantages, mask = tokens()
    found = losses.clipped_surrogate(logp, old, advantages, 0.2, 0.28, mask, level)
    clipped = set()
    for b, t in np.argwhere(mask):
        n = int(mask[b].sum())
        ratio = math.exp(logp[b, t] - old[b, t]) if level == "token" else math.exp(np.sum((logp - old)[b, :n]) / n)
        a = advantages[b]
        assert found.ratio_BT[b, t] == pytest.approx(ratio, rel=1e-5)
        assert found.loss_BT[b, t] == pytest.approx(-min(ratio * a, min(max(ratio, 0.8), 1.28) * a), rel=1e-5)
        assert found.clipped_low_BT[b, t] == (ratio < 0.8 and a < 0)
        assert found.clipped_high_BT[b, t] == (ratio > 1.28 and a > 0)
        clipped |= {(bool(found.clipped_low_BT[b, t]), bool(found.clipped_high_BT[b, t]))}
    assert len(clipped) == 3
    same = losses.clipped_surrogate(logp, old, np.tile(advantages[:, None], (1, 5)), 0.2, 0.28, mask, level)
    jax.tree.map(np.testing.assert_array_equal, found, same)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_first_update_is_the_policy_gradient(level):
    """Ratio 1, nothing clipped, and the gradient is −A a token (−A/length where the ratio is the sequence's)."""
    logp, _, advantages, mask = tokens()

    def total(logp_BT):
        out = losses.clipped_surrogate(logp_BT, logp, advantages, 0.2, 0.2, mask, level)
        return jnp.sum(out.loss_BT * mask), out

    (_, out), slope = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logp))
    assert (out.ratio_BT == 1).all() and not out.clipped_low_BT.any() and not out.clipped_high_BT.any()
    np.testing.assert_allclose(slope, -advantages[:, None] * mask, rtol=1e-6)


def test_clipping_stops_the_gradient():
    ratios = np.array([[0.5, 0.5, 1.5, 1.5]])
    advantages = np.array([[-1.0, 1.0, -1.0, 1.0]])  # of the first and the last, clipping is in the way
    old = np.zeros((1, 4), np.float32)
    slope = jax.grad(lambda x: jnp.sum(losses.clipped_surrogate(x, old, advantages, 0.2, 0.2).loss_BT))(jnp.log(ratios))
    np.testing.assert_allclose(slope, [[0.0, -0.5, 1.5, 0.0]], rtol=1e-6)


def test_kl_estimates_and_their_twin():
    logp, ref, _, _ = tokens()
    d = ref.astype(np.float64) - logp
    for kind, wanted in (("k1", -d), ("k2", d**2 / 2), ("k3", np.exp(d) - d - 1)):
        np.testing.assert_allclose(losses.kl_estimate(logp, ref, kind), wanted, rtol=1e-5, atol=1e-6)
        assert (losses.kl_estimate(logp, logp, kind) == 0).all()
    with pytest.raises(ValueError, match="k4"):
        losses.kl_estimate(logp, ref, "k4")
    # Under the policy itself, k1 and k3 are the divergence on average.
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    for kind in ("k1", "k3"):
        assert p @ losses.kl_estimate(np.log(p), np.log(q), kind) == pytest.approx(p @ np.log(p / q), rel=1e-5)


def test_value_loss_and_its_twin():
    rng = np.random.default_rng(0)
    values, old, returns = rng.normal(size=(3, 4, 6))
    near = np.where(values > old + 0.2, old + 0.2, np.where(values < old - 0.2, old - 0.2, values))
    wanted = np.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    np.testing.assert_allclose(losses.value_loss(values, old, returns, 0.2), wanted, rtol=1e-5, atol=1e-6)


def test_losses_of_tokens_stay_finite():
    ends = np.array([0.0, -1e-9, -30.0, -1e5], np.float32)
    logp, old, advantages = (x.reshape(-1, 1) for x in np.meshgrid(ends, ends, np.array([-3, 0, 3], np.float32)))

    @jax.jit
    def found(logp_BT):
        def total(logp_BT):
            out = losses.clipped_surrogate(logp_BT, old, advantages, 0.2, 0.2)
            return jnp.sum(out.loss_BT) + sum(jnp.sum(losses.kl_estimate(logp_BT, old, kind)) for kind in ("k1", "k2", "k3"))

        return jax.value_and_grad(total)(logp_BT)

    value, slope = found(logp)
    assert np.isfinite(value) and np.isfinite(slope).all()
