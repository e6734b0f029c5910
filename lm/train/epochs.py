"""Steps from epochs: a config gives the length of a run as `steps`, or as `epochs`, from which the steps follow."""

import math

import ml_collections

from data.text.batches import Sizes, constant
from lm.parallel.hosts import is_first


def choose_steps(config: ml_collections.ConfigDict, rows: int, rows_per_step: int | Sizes | None = None) -> None:
    """Set config.steps from config.epochs if that is given, and print how often the run reads the training data.

    Args: rows: sequences, pairs or tasks of an epoch. rows_per_step: of them in a step; None: config.batch_size.
    """
    rows_per_step = rows_per_step or config.batch_size
    sizes = constant(rows_per_step) if isinstance(rows_per_step, int) else rows_per_step
    if config.epochs is not None:
        config.steps = sizes.batches(math.ceil(config.epochs * rows))
    if is_first():
        epochs, most = sizes.start(config.steps) / rows, f"{sizes.rows[-1]:,} rows" + (" at most" if sizes.ends else "")
        print(f"{config.steps:,} steps of {most} are {epochs:.3g} epochs of {rows:,} rows", flush=True)
