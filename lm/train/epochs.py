"""Steps from epochs: a config gives the length of a run as `steps`, or as `epochs`, from which the steps follow."""

import math

from lm.parallel.hosts import is_first


def choose_steps(config, rows: int, rows_per_step: int | None = None) -> None:
    """Set config.steps from config.epochs if that is given, and print how often the run reads the training data.

    Args: rows: sequences, pairs or tasks of an epoch. rows_per_step: of them in a step; None: config.batch_size.
    """
    rows_per_step = rows_per_step or config.batch_size
    if config.epochs is not None:
        config.steps = math.ceil(config.epochs * rows / rows_per_step)
    if is_first():
        epochs = config.steps * rows_per_step / rows
        print(f"{config.steps:,} steps of {rows_per_step:,} rows are {epochs:.3g} epochs of {rows:,} rows", flush=True)
