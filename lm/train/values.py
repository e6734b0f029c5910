"""Check the values of a training run's config, as far as possible without JAX."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from data.text.batches import parse_sizes
from lm.config import ModelConfig
from lm.errors import UserError
from lm.files.user_files import is_own
from lm.runs.own_code import check_names
from lm.train.trackers import parse_trackers

MAX = 2**31 - 1  # positions and ids of rows are int32
SEEDS = 2**63 - 1  # JAX's limit
CHOICES = {  # of keys of config.optimizer
    "name": ("normuon", "muon", "adamw", "lion"),
    "state_dtype": ("float32", "bfloat16", "int8"),
    "schedule": ("cosine", "wsd", "constant"),
}
BELOW_1 = ("data.valid_fraction", "optimizer.b1", "optimizer.b2", "optimizer.momentum", "ema")
ABOVE_0 = ("epochs", "dial.tokens_per_parameter")
# Minimum and maximum of each number.
RANGES = {
    "dial.depth": (0, 10_000), "dial.aspect": (1, MAX), "steps": (0, None), "sequence_length": (2, MAX), "batch_size": (1, MAX),
    "accumulate": (0, MAX), "seed": (0, SEEDS), "checkpoint_every": (0, None), "valid_every": (0, None),
    "valid_batches": (1, None), "max_skipped_in_row": (1, None), "optimizer.warmup": (0, None), "optimizer.turns": (0, 64),
    "guard.window": (16, 4096), "guard.warmup": (16, None),
    "guard.threshold": (1, None), "guard.high_steps": (0, None), "guard.rewinds": (0, 1000), "guard.lower_rate": (0, 1),
    "guard.lower_steps": (0, None), "keep_last": (1, None), "keep_every": (0, None),
    "keep_hours": (0, None), "watchdog.timeout": (0, None), "watchdog.other": (0, None), "watchdog.compare_every": (0, None),
    "watchdog.slower": (1, None), "evals.every": (0, None), "mesh.slices": (1, None), "data.max_bytes": (1, None),
    "data.max_valid_bytes": (0, None), "data.tokenizer_sample_bytes": (1, None), "data.new_pieces": (0, 1_000_000),
    "data.max_examples": (1, None), "data.max_valid_examples": (0, None), "rollout.max_new_tokens": (1, MAX),
    "rollout.max_prompt_tokens": (1, MAX), "rollout.max_turns": (1, MAX), "samples_every": (0, None), "num_samples": (0, None),
    "extend.theta": (0, None), "extend.yarn": (0, None),
}  # fmt: skip


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raise UserError for invalid values in a config of train.py or align.py."""
    check_ranges(config, RANGES)
    for key in BELOW_1:
        if not 0 <= (value := _value(config, key)) < 1:
            raise UserError(f"{key}={value} must be at least 0 and below 1")
    for key in ABOVE_0:
        if (value := _value(config, key)) is not None and not 0 < value < math.inf:
            raise UserError(f"{key}={value} must be above 0")
    if config.data.get("new_pieces"):
        asked = f"data.new_pieces={config.data.new_pieces}"
        if not config.init_from:
            raise UserError(f"{asked} needs init_from, a model whose vocabulary grows; for a new model, set model.vocab_size")
        if config.model.adapter.rank:
            raise UserError(
                f"{asked} needs training of all weights, since an adapter does not train the embedding: "
                "set model.adapter.rank=0"
            )
    _check_extend(config)
    parse_trackers(config.get("trackers", ""))  # raises UserError
    steps = profiled_steps(config.profile)
    if steps and config.epochs is None and config.steps is not None and steps[0] > config.steps:
        raise UserError(f"profile={config.profile}: the run has only {config.steps} steps")
    o = config.optimizer
    for key, values in CHOICES.items():
        if o[key] not in values and not (key == "name" and is_own(o[key])):
            near = difflib.get_close_matches(str(o[key]).lower(), values, n=1)
            own = "; a function of your own is written FILE.py:FUNCTION" if key == "name" else ""
            cure = f"; did you mean {near[0]}?" if near else own
            raise UserError(f"optimizer.{key}={o[key]!r} is none of {', '.join(values)}{cure}")
    check_names(config)  # raises UserError
    if o.learning_rate is not None and not (math.isfinite(o.learning_rate) and o.learning_rate >= 0):
        raise UserError(f"optimizer.learning_rate={o.learning_rate} must be a number that is not negative")
    parse_sizes(config.get("batch_warmup"), config.batch_size)  # raises UserError
    if not all(isinstance(prompt, str) for prompt in config.samples or ()):
        raise UserError(f"samples={config.samples} must be texts, such as ('def ', 'The ')")
    model_of(config)  # raises UserError if the model cannot be built


def check_ranges(config: ml_collections.ConfigDict, ranges: Mapping[str, tuple[float, float | None]]) -> None:
    """Raise UserError for a number at a dotted key that is not between its least and its greatest value (None: any)."""
    for key, (least, most) in ranges.items():
        value = _value(config, key)
        if value is not None and not (least <= value and (most is None or value <= most)):
            raise UserError(f"{key}={value} must be at least {least}" + (f" and at most {most}" if most is not None else ""))


def _check_extend(config: ml_collections.ConfigDict) -> None:
    """Raise UserError if the keys of `extend` contradict each other, or change the positions of no model."""
    if not config.get("extend") or not any(config.extend.values()):
        return
    asked = ", ".join(f"extend.{key}={value}" for key, value in config.extend.items() if value)
    if not config.init_from:
        raise UserError(f"{asked} needs init_from, whose positions it changes; for a new model, set model.rope")
    if all(config.extend.values()):
        raise UserError(f"{asked}: set one of the two")


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
    """Return the value of a dotted key; None if it, or its section, is not there."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if value is not None else None
    return value


def profiled_steps(text: str) -> range:
    """Return the steps that `config.profile` names: "" none, "10" one, "10-12" three. Raises UserError for other texts."""
    first, dash, last = text.partition("-")
    if not text:
        return range(0)
    if not first.isdecimal() or not (last or first).isdecimal() or (dash and not last):
        raise UserError(f"profile={text!r} is no range of steps, such as 10-12")
    steps = range(int(first), int(last or first) + 1)
    if not steps or steps[0] < 1:
        raise UserError(f"profile={text!r} is an empty range; steps count from 1, such as 10-12")
    return steps


def model_of(config: ml_collections.ConfigDict) -> ModelConfig:
    """Return the ModelConfig of a config. Raises UserError if the model cannot be built.

    Without JAX no device is known: dtype=auto is float32 here. An encoder's token_id of -1 is chosen later, with the tokenizer
    of init_from (lm/train/start.py).
    """
    values = config.model.to_dict()
    for number, name in enumerate(("vision", "audio")):
        if config.init_from and values[name]["num_layers"] and values[name]["token_id"] == -1:
            values[name]["token_id"] = number
    return ModelConfig(**values, dtype="float32" if config.dtype == "auto" else config.dtype)


def check_length(model: ModelConfig, sequence_length: int) -> None:
    """Raise UserError if sequences are longer than the model's context."""
    if sequence_length > model.max_positions:
        cure = "it has no more positions to learn" if model.positions == "learned" else "the context that the model is made for"
        raise UserError(
            f"sequence_length={sequence_length} is more than model.max_positions={model.max_positions}, {cure}: "
            "lower the first or raise the second"
        )
