"""Differential privacy of a training, with one item as the unit: how much noise it takes, and the random numbers of it.

DP-Adam: Adam on the gradients of DP-SGD (Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1). Each
update draws every item with probability q (Poisson sampling), clips each item's gradient to norm C, adds Gaussian noise of
standard deviation σ·C to the sum, and divides by q times the number of items. Whoever sees the adapter then learns about any
one item only what (ε, δ) allows, between stores that differ by that item. The accountant is Google's dp-accounting, by
Rényi divergences (Mironov et al. 2019). Its privacy loss distributions would need a tenth less noise, and minutes to find it.

(ε, δ) bounds the rare worst case. A bound for the usual case comes from the trade-off function f: the least rate of misses of
an attack on membership at each rate of false alarms (Dong, Roth and Su 2022, "Gaussian differential privacy", section 2). The
area under the ROC curve of any attack is at most 1 − ∫f. The noise obeys both limits.

The numbers come from Philox with a 128-bit key, from a secret of the store and the ids of its items. So the same items give the
same noise, and other items another: two adapters, before and after an item was forgotten, are two releases, whose ε add up.
"""

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np

from lm.errors import UserError

LARGEST = 1000.0  # σ


def noise_multiplier(epsilon: float, delta: float, rate: float, updates: int, attack: float = 1.0) -> float:
    """Return a σ with which `updates` updates at sampling rate q are (ε, δ)-private, and no attack has an area above `attack`.

    It is the smallest σ for (ε, δ), rounded up to a thousandth, or else at most 2 % above the smallest one for `attack`.
    Raises: UserError if dp-accounting is missing, or no σ below 1,000 is enough.
    """
    low = _for_epsilon(epsilon, delta, rate, updates)
    if attack_bound(low, rate, updates) <= attack:
        return low
    high = 2 * low
    while attack_bound(high, rate, updates) > attack:
        low, high = high, 2 * high
        if high > LARGEST:
            raise UserError(f"--attack={attack:g} is too small for {updates} updates: raise it, or lower --epochs")
    while high > 1.02 * low:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if attack_bound(middle, rate, updates) > attack else (low, middle)
    return float(np.ceil(high * 1000) / 1000)


def attack_bound(sigma: float, rate: float, updates: int) -> float:
    """Return 1 − ∫f: no attack that tells whether an item was trained on has a larger area under its ROC curve.

    f(α) = max over ε ≥ 0 of 0, 1 − δ(ε) − e^ε·α, and e^−ε·(1 − δ(ε) − α) (Dong, Roth and Su 2022, section 2).
    A grid of ε gives a lower f, and dp-accounting gives a larger δ(ε), so the bound holds. The integral errs by less than 1e-4.
    """
    from dp_accounting.pld import privacy_loss_distribution

    one = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, value_discretization_interval=1e-3, sampling_prob=rate, use_connect_dots=True
    )
    epsilons = np.linspace(0.0, 12.0, 400)
    deltas = np.asarray(one.self_compose(updates).get_delta_for_epsilon(epsilons.tolist()))
    alarms = np.union1d(np.logspace(-7, 0, 1500), np.linspace(0, 1, 1500))
    misses = np.zeros_like(alarms)
    for epsilon, delta in zip(epsilons, deltas, strict=True):
        misses = np.maximum(misses, 1 - delta - np.exp(epsilon) * alarms)
        misses = np.maximum(misses, np.exp(-epsilon) * (1 - delta - alarms))
    return float(1 - np.trapezoid(misses, alarms))


def _for_epsilon(epsilon: float, delta: float, rate: float, updates: int) -> float:
    accounting = _accounting()
    try:
        found = accounting.calibrate_dp_mechanism(
            _accountant,
            lambda sigma: _event(sigma, rate, updates),
            epsilon,
            delta,
            accounting.ExplicitBracketInterval(0.1, LARGEST),
            tol=1e-3,
        )
    except (ValueError, accounting.mechanism_calibration.NoBracketIntervalFoundError):
        raise UserError(f"--epsilon={epsilon:g} is too small for {updates} updates: raise it, or lower --epochs") from None
    return float(np.ceil(found * 1000) / 1000)


def spent(sigma: float, delta: float, rate: float, updates: int) -> float:
    """Return the ε of a training with noise multiplier σ."""
    return float(_accountant().compose(_event(sigma, rate, updates)).get_epsilon(delta))


def generator(secret: bytes, ids: Sequence[str], use: str) -> np.random.Generator:
    """Return the source of random numbers for a use, such as noise, of a training on items."""
    text = "\n".join([use, *sorted(ids)]).encode()
    key = hmac.new(secret, text, hashlib.sha256).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big")))


def _accounting():
    try:
        import dp_accounting
    except ImportError:
        raise UserError("--epsilon needs dp-accounting: pip install -r requirements/personal.txt") from None
    return dp_accounting


def _accountant():
    """Return an accountant by whole orders alone: fractional ones may not converge, and say so at length."""
    return _accounting().rdp.RdpAccountant([*range(2, 65), 80, 96, 128, 192, 256, 512])


def _event(sigma: float, rate: float, updates: int):
    accounting = _accounting()
    one = accounting.GaussianDpEvent(sigma)
    drawn = accounting.PoissonSampledDpEvent(rate, one) if rate < 1 else one
    return accounting.SelfComposedDpEvent(drawn, updates)
