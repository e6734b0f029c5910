"""Differential privacy of a training, with one item as the unit: how much noise it takes, and the random numbers of it.

DP-Adam: Adam on the gradients of DP-SGD (Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1). Each
update draws every item with probability q (Poisson sampling), clips each item's gradient to norm C, adds Gaussian noise of
standard deviation σ·C to the sum, and divides by q times the number of items. Whoever sees the adapter then learns about any
one item only what (ε, δ) allows, between stores that differ by that item. The accountant is Google's dp-accounting, by
Rényi divergences (Mironov et al. 2019). Its privacy loss distributions would need a tenth less noise, and minutes to find it.

The numbers come from Philox with a 128-bit key, from a secret of the store and the ids of its items. So the same items give the
same noise, and other items another: two adapters, before and after an item was forgotten, are two releases, whose ε add up.
"""

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np

from lm.errors import UserError


def noise_multiplier(epsilon: float, delta: float, rate: float, updates: int) -> float:
    """Return the smallest σ, rounded up to a thousandth, with which `updates` updates at sampling rate q are (ε, δ)-private.

    Raises: UserError if dp-accounting is missing, or no σ below 1,000 is enough.
    """
    accounting = _accounting()
    try:
        found = accounting.calibrate_dp_mechanism(
            _accountant,
            lambda sigma: _event(sigma, rate, updates),
            epsilon,
            delta,
            accounting.ExplicitBracketInterval(0.1, 1000.0),
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
        raise UserError("--epsilon needs dp-accounting: pip install -r requirements-personal.txt") from None
    return dp_accounting


def _accountant():
    """Return an accountant by whole orders alone: fractional ones may not converge, and say so at length."""
    return _accounting().rdp.RdpAccountant([*range(2, 65), 80, 96, 128, 192, 256, 512])


def _event(sigma: float, rate: float, updates: int):
    accounting = _accounting()
    one = accounting.GaussianDpEvent(sigma)
    drawn = accounting.PoissonSampledDpEvent(rate, one) if rate < 1 else one
    return accounting.SelfComposedDpEvent(drawn, updates)
