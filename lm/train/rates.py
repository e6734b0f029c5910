"""The learning rate of a run that names none. It follows the objective, the model's size and the weights it starts from.

With N active parameters, tables of values left out:
  random weights  13.4 · N^−1/2 for the default recipe, normuon and model.init=fan_in: fitted to models of 1 to 10 M weights
                  (docs/recipe.md). The head learns at (N/1.4e6)^1/3 times that rate and embeddings at 15 times the head's: the
                  best rate of matrices falls faster with the size than theirs.
                  0.128 · N^−1/4 for others. The exponent is that of DeepSeek LLM (Bi et al. 2024, figure 3): the rate falls as
                  compute^−1/8, and compute grows with N². The factor is fitted to models of 1 to 30 M parameters; smaller
                  ones use the rate of 1 M.
  continued       0.3 times the latter. The full rate would first undo what was learnt (Ibrahim et al. 2024).
  fine-tuned      rate · (7e9 / N)^power of FINE_TUNING, at most the rate of continued training. The rates at 7 B are usual
                  ones (Alpaca, Tülu 3, TRL); the powers are fitted to benchmarks/alignment.py with 0.5 M parameters.
  adapters        ten times the rate of all weights of a 7 B model (Schulman et al. 2025), or that of all weights if higher.
μP (model.mup_base_dim) scales rates by width already, so N is that of a model as narrow as its base.
"""

import dataclasses

import ml_collections

from lm.config import ModelConfig
from lm.model import sizing
from lm.parallel.hosts import is_first
from lm.train.values import model_of

SEVEN = 7e9
FINE_TUNING = {  # objective: (rate of all weights of a model of 7 B parameters, power)
    "sft": (2e-5, 0.5),
    "distill": (2e-5, 0.5),
    "reward": (1e-5, 0.5),
    "orpo": (8e-6, 0.5),  # its loss contains that of sft
    "preference": (1e-6, 0.5),
    "rl": (1e-6, 0.6),
}
CONTINUED, ADAPTERS = 0.3, 10
SMALLEST = 1.4e6  # active parameters; the smallest model to which the rates of the default recipe were fitted
WIDE = 15.0  # of embeddings that begin with a std of 0.8, times the rate of the head


def choose_rate(config: ml_collections.ConfigDict) -> None:
    """Set the rates of config.optimizer that are None, and print the first. The config has the model keys of init_from."""
    o = config.optimizer
    if o.head_rate is None:
        embedding, o.head_rate = relative_rates(config)
        o.embedding_rate = embedding if o.embedding_rate is None else o.embedding_rate
    if o.learning_rate is not None:
        return
    config.optimizer.learning_rate, why = learning_rate(config)
    if is_first():
        print(f"optimizer.learning_rate={config.optimizer.learning_rate:g}, chosen for {why}", flush=True)


def learning_rate(config: ml_collections.ConfigDict) -> tuple[float, str]:
    """Return the learning rate (two digits) for the objective, size and starting point of a config, and these in words."""
    model = model_of(config)
    size = _size(model)
    usual = 0.128 * max(size, 1e6) ** -0.25
    millions = f"{size / 1e6:,.3g} M active parameters"
    if not config.init_from:
        fitted = 13.4 * max(size, 1e6) ** -0.5
        return _rounded(fitted if _is_default(config) else usual), f"random weights, {millions}"
    objective = _objective(config)
    rate = usual * CONTINUED
    if objective is not None:
        at_seven, power = FINE_TUNING[objective]
        rate = min(rate, at_seven * (SEVEN / size) ** power)
    if model.adapter.rank:
        rate = max(rate, ADAPTERS * FINE_TUNING[objective or "sft"][0])
    weights = "adapters of trained weights" if model.adapter.rank else "trained weights"
    return _rounded(rate), f"{objective or 'continued training'}, {weights}, {millions}"


def relative_rates(config: ml_collections.ConfigDict) -> tuple[float, float]:
    """Return the learning rates of embeddings and of the head, as multiples of that of the other weights."""
    model = model_of(config)
    if model.init != "fan_in" or model.tie_embeddings:
        return 1.0, 1.0
    head = _rounded(max(1.0, _size(model) / SMALLEST) ** (1 / 3)) if _is_default(config) else 1.0
    return WIDE * head, head


def _is_default(config: ml_collections.ConfigDict) -> bool:
    """Return whether random weights learn by the default recipe, of which the rates were fitted."""
    return config.optimizer.name == "normuon" and config.model.init == "fan_in" and not config.init_from


def _objective(config: ml_collections.ConfigDict) -> str | None:
    """Return the key of FINE_TUNING; None for the objective of pretraining."""
    method = config.get("method")
    if method == "preference" and config.preference.loss == "orpo":
        return "orpo"
    return "sft" if method == "best_of" else method


def _size(model: ModelConfig) -> float:
    model = dataclasses.replace(model, value_embeddings=0)  # tables that add no width
    active = sum(sizing.parameters(model)["active"].values())
    return active * (model.mup_base_dim / model.embed_dim) ** 2 if model.mup_base_dim else active


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
