"""How many turns the layers take in NorMuon (muon.py), for a run that leaves it open.

NorMuon's products do not depend on the batch: the smaller it is, the larger is their share of a step. Twice as many turns save
half of them, and cost no more quality than 1 % of the steps is worth, as far as was measured (docs/recipe.md). So turns are
doubled while that saves more than 3 % of a step's products.
"""

import math

import jax
import ml_collections

from lm.model import sizing
from lm.model.transformer import skeleton
from lm.parallel.hosts import from_first
from lm.train.optimizers.muon import POLAR_EXPRESS, is_variable, matrix_axes
from lm.train.values import model_of

SHARE, MOST = 1 / 16, 4  # of the products of a step; more turns were not measured


def choose_turns(config: ml_collections.ConfigDict) -> str:
    """Set config.optimizer.turns if it is 0: to 1, 2 or 4, the fewest that leave NorMuon SHARE of a step's products.

    Return what was chosen and why, "" for nothing.
    """
    o = config.optimizer
    o.turns = from_first(lambda: o.turns)  # which alone may have the record of a run
    if o.turns:
        return ""
    o.turns = 1
    if o.name != "normuon" or not config.batch_size:
        return ""
    tokens = config.batch_size * config.sequence_length
    share = products(config) / (tokens * sizing.flops_per_token(model_of(config), config.sequence_length))
    while share / o.turns > SHARE and o.turns < MOST:
        o.turns *= 2
    return f"optimizer.turns={o.turns}, chosen for {tokens:,} tokens a step: NorMuon has {share / o.turns:.1%} of the products"


def products(config: ml_collections.ConfigDict) -> float:
    """Return the FLOPs with which NorMuon orthogonalises every matrix of the model once.

    A step of Newton–Schulz with m ≤ n: half of X·Xᵀ and of A², which are symmetric, and a product with X (muon.py).
    """
    total = 0.0
    for variable in jax.tree.leaves(skeleton(model_of(config))[1], is_leaf=is_variable):
        if is_variable(variable) and (axes := matrix_axes(variable)):
            shape = variable.get_value().shape
            inputs = math.prod(shape[axes.stacked : axes.stacked + axes.inputs])
            outputs = math.prod(shape[axes.stacked + axes.inputs :])
            m, n = sorted((inputs, outputs))
            total += math.prod(shape[: axes.stacked]) * len(POLAR_EXPRESS) * (3 * m**2 * n + m**3)
    return total
