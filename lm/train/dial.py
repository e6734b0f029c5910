"""One knob: dial.depth chooses the model, its batch, its learning rate, its weight decay and its length.

  width          aspect · depth (Kaplan et al. 2020, figure 5: the aspect ratio matters little), heads of model.head_dim,
                 hidden units 8/3 · width if gated, else 4 · width
  tokens D       20 per parameter (Hoffmann et al. 2022, table 3)
  batch          0.0306 · D^0.383 sequences of 2,048 tokens (Bergsma et al. 2025, "Power Lines", B_opt), with 1,000 steps at
                 least: small models lie below the range of that fit, and a schedule needs updates. Rows are a power of two.
  learning rate  lm/train/rates.py
  weight decay   λ = 1/(η·τ·steps) with τ = 1.084 · (D/N)^−0.527: weights average their updates over the fraction τ of the run
                 (Wang and Aitchison 2024; Bergsma et al. 2025, τ_opt). Models far below the 111 M parameters of that fit take
                 0.1 at most: the law gives them about 1, which costs 0.1 nats and more (docs/benchmarks.md)
  warm-up        a twentieth of the steps
Keys that the command line gives keep their values, and the others follow from them.
"""

import math
from collections.abc import Collection

import ml_collections

from data.text.batches import parse_sizes
from lm.errors import UserError
from lm.train.values import model_of

ROWS_OF, FEWEST_STEPS = 2048, 1000
SMALL, MAX_DECAY = 50_000_000, 0.1  # parameters, and their largest weight decay


def shape(config: ml_collections.ConfigDict, given: Collection[str]) -> None:
    """Set the model's sizes from dial.depth, if it is not 0. given: keys of the command line. Loads no JAX.

    Raises UserError if the config also names a model or epochs.
    """
    depth = config.dial.depth
    if not depth:
        return
    for key, what in (("init_from", "the model"), ("epochs", "the length")):
        if config[key]:
            raise UserError(f"dial.depth={depth} chooses {what}, and so does {key}={config[key]}: give one of them")
    model = config.model
    width = model.embed_dim if "model.embed_dim" in given else config.dial.aspect * depth
    head = model.head_dim or 64
    heads = model.num_heads if "model.num_heads" in given else max(1, width // head)
    hidden = 64 * math.ceil(width * (8 / 3 if model.gated else 4) / 64)
    sizes = dict(num_layers=depth, embed_dim=width, head_dim=head, num_heads=heads, num_kv_heads=heads, mlp_dim=hidden)
    model.update({key: value for key, value in sizes.items() if f"model.{key}" not in given})


def horizon(config: ml_collections.ConfigDict, given: Collection[str]) -> None:
    """Set batch, steps, warm-up, learning rate and weight decay from the model, and print all that the dial chose and why."""
    if not config.dial.depth:
        return
    from lm.model import sizing
    from lm.parallel.hosts import is_first
    from lm.train.rates import learning_rate

    counts = sizing.parameters(model_of(config))["active"]
    N = sum(counts.values()) - counts["mtp"]
    o, rows, why = config.optimizer, *batch_rows(config.dial.tokens_per_parameter * N, config.sequence_length)
    if "batch_size" not in given:
        config.batch_size = max(rows, config.accumulate)
    tokens = config.batch_size * config.sequence_length
    growth = parse_sizes(config.batch_warmup, config.batch_size)
    if "steps" not in given:
        config.steps = max(1, growth.batches(round(config.dial.tokens_per_parameter * N / config.sequence_length)))
    if "optimizer.warmup" not in given:
        o.warmup = config.steps // 20
    if "optimizer.learning_rate" not in given:
        o.learning_rate, _ = learning_rate(config)
    read = growth.start(config.steps) * config.sequence_length
    ratio = read / N
    if "optimizer.weight_decay" not in given:
        o.weight_decay = weight_decay(o.learning_rate, N, ratio, config.steps)
    if is_first():
        m = config.model
        print(
            f"dial.depth={config.dial.depth} chose the following, except for keys of the command line\n"
            f"  model          {m.num_layers} layers of width {m.embed_dim}, {m.num_heads} heads of {m.head_dim}, "
            f"{m.mlp_dim} hidden units: {N:,} active parameters\n"
            f"  length         {read:,} tokens, {ratio:.3g} per parameter (Hoffmann et al. 2022: 20)\n"
            f"  batch_size     {config.batch_size}: {tokens:,} tokens, {config.steps:,} steps; {why}\n"
            f"  learning_rate  {o.learning_rate:g} (lm/train/rates.py), warm-up over {o.warmup} steps\n"
            f"  weight_decay   {o.weight_decay:g}; by the law, weights average over {timescale(ratio):.2g} of the run "
            f"(Bergsma et al. 2025); models of less than {SMALL // 10**6} M parameters take {MAX_DECAY} at most",
            flush=True,
        )


def batch_rows(tokens: float, length: int) -> tuple[int, str]:
    """Return the rows of a batch, a power of two, for a run over so many tokens in rows of `length`, and the reason."""
    optimal, most = ROWS_OF * 0.0306 * tokens**0.383, tokens / FEWEST_STEPS
    law = f"0.0306·D^0.383 rows of {ROWS_OF:,} are {optimal:,.0f} tokens (Bergsma et al. 2025)"
    rows = 2 ** max(0, round(math.log2(min(optimal, most) / length)))
    return rows, law if optimal <= most else f"for {FEWEST_STEPS:,} steps, since {law}"


def timescale(tokens_per_parameter: float) -> float:
    """Return τ, the fraction of a run over which weights average their updates."""
    return 1.084 * tokens_per_parameter**-0.527


def weight_decay(rate: float, parameters: int, tokens_per_parameter: float, steps: int) -> float:
    """Return λ = 1/(η·τ·steps) with two digits, for small models MAX_DECAY at most; 0 if nothing is learnt."""
    law = float(f"{1 / (rate * timescale(tokens_per_parameter) * steps):.2g}") if rate and steps else 0.0
    return law if parameters >= SMALL else min(law, MAX_DECAY)
