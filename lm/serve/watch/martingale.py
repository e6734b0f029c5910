"""Detect a change in a stream of numbers, with a bound on false alarms that holds for ever.

The null hypothesis: the reference values and the live values are exchangeable, in whatever distribution. A detector turns each
live value z into a conformal p-value, its rank among all values before it (ties and itself broken by a uniform θ):

    p = (#{z_i > z} + θ · (#{z_i = z} + 1)) / (n + 1)

Under the null, these p-values are independent and uniform, exactly and for every n (Vovk, Gammerman and Shafer, "Algorithmic
Learning in a Random World", 2005, theorem 8.2). So a bet f with ∫₀¹ f = 1 that begins at time t, E_t = f(p_t) · f(p_t+1) ·
…, is a martingale: a test martingale for exchangeability (Vovk, Nouretdinov and Gammerman, "Testing Exchangeability
On-Line", 2003).
Nobody knows when a change begins, nor what it looks like. So the detector holds, from the start, the share w_t of its capital
back for a bet that begins at t, and spreads each over several f:

    capital = (1 − Σ_{s ≤ t} w_s) + mean over f of Σ_{s ≤ t} w_s · E_s,     Σ w ≤ 1

It is a martingale that begins at 1. Ville's inequality ("Étude critique de la notion de collectif", 1939) bounds its path:
P(capital ever reaches 1/α) ≤ α. With weights that do not sum to 1 the same recursion is Shiryaev and Roberts' statistic, which
bounds the mean time between false alarms only (Shin, Ramdas and Rinaldo, "E-detectors", 2024).

The price of ignorance is small: a change after t values with K bets costs log(1/w_t) + log K nats more evidence, about
log t + 2 log log t + log K.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xxhash

BINS = 1024  # values in [0, 1] are rounded down to bins; exchangeable values stay exchangeable
# A bet says that p falls below `cut` with the probability cut^power, instead of cut. Rates that jump from `cut` to its square
# root are bet on best by the power ½. Cuts from 0.005 to ½ serve events from rare ones to the median.
CUTS, POWERS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), (0.25, 0.5, 0.75)
_CUT, _MASS = (np.array(values) for values in zip(*((cut, cut**power) for cut in CUTS for power in POWERS), strict=True))
_BELOW, _ABOVE = _MASS / _CUT, (1 - _MASS) / (1 - _CUT)
BETS = 4 * len(_CUT)  # larger values, smaller ones, values at both ends, values in the middle


def weight(t: int) -> float:
    """Return w_t of t = 1, 2, …: 1/log₂(t+1) − 1/log₂(t+2), about 1/(t log² t). They sum to 1."""
    return 1 / math.log2(t + 1) - 1 / math.log2(t + 2)


def factors(p: float) -> np.ndarray:
    """Return float64 [BETS]: f(p) of each bet. Each integrates to 1 over p in [0, 1]."""
    folded = abs(2 * p - 1)
    q = np.array([p, 1 - p, 1 - folded, folded])[:, None]
    return np.where(q < _CUT, _BELOW, _ABOVE).ravel()


class Detector:
    """A detector of change for one stream. Memory and time for a value do not grow with the stream."""

    def __init__(self, reference: Iterable[float], seed: int = 0):
        """reference: values in [0, 1], without a change. seed: of the θ."""
        self.seed, self.seen, self.cash = seed, 0, 1.0
        self.accounts = np.zeros(BETS)
        self.bag = np.zeros(BINS, np.int64)  # all values until now
        for value in reference:
            self.bag[_bin(value)] += 1

    def add(self, value: float) -> float:
        """Take a live value in [0, 1] and return the capital: the evidence against "nothing has changed", 1 at the start."""
        place = _bin(value)
        self.seen += 1
        theta = xxhash.xxh3_64_intdigest(f"{self.seed} {self.seen}".encode()) / 2**64
        above = int(self.bag[place + 1 :].sum())
        p = (above + theta * (int(self.bag[place]) + 1)) / (int(self.bag.sum()) + 1)
        self.bag[place] += 1
        share = weight(self.seen)
        self.cash -= share
        self.accounts = (self.accounts + share) * factors(p)
        return self.capital

    @property
    def capital(self) -> float:
        return max(self.cash, 0.0) + float(self.accounts.sum()) / BETS

    def state(self) -> dict[str, Any]:
        """Return what `restored` needs, as JSON."""
        places = np.flatnonzero(self.bag)
        return {
            "seed": self.seed,
            "seen": self.seen,
            "cash": self.cash,
            "accounts": self.accounts.tolist(),
            "bag": {int(place): int(self.bag[place]) for place in places},
        }


def restored(state: Mapping[str, Any]) -> Detector:
    """Return the detector that `state` was taken of. It goes on as if it had never stopped, so its bound holds across restarts.

    Raises: KeyError, TypeError, ValueError: not a state of this version.
    """
    detector = Detector((), int(state["seed"]))
    detector.seen, detector.cash = int(state["seen"]), float(state["cash"])
    accounts = np.array(state["accounts"], np.float64)
    if accounts.shape != (BETS,):
        raise ValueError("another number of bets")
    detector.accounts = accounts
    for place, count in state["bag"].items():
        detector.bag[int(place)] = int(count)
    return detector


def _bin(value: float) -> int:
    return min(BINS - 1, max(0, int(value * BINS)))
