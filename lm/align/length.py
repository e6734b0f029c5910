"""The length of an alignment run and the rows of its batches: those of the config, or chosen from the data.

Runs on examples make EPOCHS passes over them. Their batches have so few rows that a pass is PASS_STEPS steps at least, because
the few chats of a person are a few rows, and a model learns from updates. Runs on tasks write their own data, so they have a
number of steps.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from lm.align.settings import TASK_ROWS, example_kind
from lm.cli.config_files import given_keys
from lm.parallel import hosts
from lm.parallel.mesh import row_ways

EPOCHS, PASS_STEPS = 3.0, 16
TASK_STEPS = 200
WARMUP, WARMUP_SHARE = 10, 0.1  # steps, and their largest share of a run
MAX_ROWS = {"conversation": 32, "pair": 16, "labelled": 16, "steps": 16}  # of a batch, by kind of example
UNITS = 32  # held-out batches
MANY_EPOCHS = 20  # more than the usual 1 to 5: the model begins to recite the examples


def adopt_length(config: ml_collections.ConfigDict, saved: dict[str, Any] | None, ways: int = 1) -> None:
    """Set steps or epochs, batch_size and warm-up if they are None: as recorded, or the length of a new run.

    ways: how many groups of devices share the rows of a batch (row_ways).
    """
    new_length = config.steps is None and config.epochs is None
    with_tasks = example_kind(config) == "task"
    given = given_keys()
    is_sliced = not with_tasks and "batch_size" in given and "accumulate" not in given
    if saved:
        if new_length:
            config.steps, config.epochs = saved["steps"], saved.get("epochs")
        if config.batch_size is None:
            config.batch_size, config.accumulate = saved["batch_size"], saved["accumulate"]
        elif is_sliced and config.batch_size == saved["batch_size"]:
            config.accumulate = saved["accumulate"]
        if config.optimizer.warmup is None:
            config.optimizer.warmup = saved["optimizer"]["warmup"]
    elif new_length and with_tasks:
        config.steps = TASK_STEPS
    elif new_length:
        config.epochs = EPOCHS
    if with_tasks and config.batch_size is None:
        config.batch_size = TASK_ROWS
    if is_sliced and not (saved and config.batch_size == saved["batch_size"]):
        slice_rows = max(1, MAX_ROWS[example_kind(config)] // config.accumulate)
        config.accumulate = max(1, min(config.accumulate, config.batch_size // slice_rows))
        while config.accumulate > 1 and config.batch_size % (config.accumulate * ways):
            config.accumulate -= 1


def choose_batch(config: ml_collections.ConfigDict, rows: int, mesh: Mesh) -> None:
    """Set config.batch_size for examples of so many rows, and config.accumulate, if batch_size is None.

    config.accumulate slices a batch of MAX_ROWS. A smaller batch has fewer slices of the same rows.
    """
    if config.batch_size is not None:
        return
    largest, ways = MAX_ROWS[example_kind(config)], row_ways(mesh)
    batch = max(1, min(largest, rows // PASS_STEPS))
    slice_rows = max(1, largest // (config.accumulate * ways)) * ways
    config.accumulate = max(1, batch // slice_rows)
    step = ways if batch < slice_rows else slice_rows
    config.batch_size = max(ways, batch // step * step)


def held_out_batch(config: ml_collections.ConfigDict, rows: int, mesh: Mesh) -> int:
    """Return the rows of a held-out batch, so few that there are UNITS batches if possible: they give the verdict's interval.

    KTO compares the examples of a batch with one another, so its batches are those of the training.
    """
    ways = row_ways(mesh)
    if example_kind(config) == "labelled":
        return config.batch_size
    return max(ways, min(config.batch_size, rows // UNITS) // ways * ways)


def units(columns: Mapping[str, np.ndarray]) -> tuple[Mapping[str, np.ndarray], int]:
    """Return held-out columns with a row for each conversation if they are few, since packed rows would be fewer still, and the
    tokens of the longest row."""
    ends = columns["ends"]
    if ends.ndim == 1 and len(ends) < UNITS and "segments" in columns:
        ends = np.unique([*ends, *(np.flatnonzero(np.diff(columns["segments"])) + 1)])
        columns = {**columns, "ends": ends}
    return columns, int(np.diff(ends, prepend=0).max()) if ends.ndim == 1 else 0


def choose_warmup(config: ml_collections.ConfigDict) -> None:
    """Set config.optimizer.warmup from config.steps if it is None."""
    if config.optimizer.warmup is None:
        config.optimizer.warmup = min(WARMUP, int(WARMUP_SHARE * config.steps))


def warn_of_length(config: ml_collections.ConfigDict, rows: int, rows_per_step: int) -> None:
    """Print a warning for each part of the plan that cannot be meant. rows: sequences, pairs or tasks of an epoch."""
    if not hosts.is_first():
        return
    epochs = config.steps * rows_per_step / rows
    if rows_per_step > rows:
        print(
            f"warning: a step reads {rows_per_step:,} rows, and the data have {rows:,}, so it repeats them: lower "
            "--config.batch_size, or leave it out",
            flush=True,
        )
    if epochs > MANY_EPOCHS and example_kind(config) != "task":
        steps = max(1, round(EPOCHS * rows / rows_per_step))
        print(
            f"warning: {config.steps:,} steps read the data {epochs:,.3g} times, and the model will recite them: set "
            f"--config.epochs={EPOCHS:g} ({steps:,} steps), or name more data",
            flush=True,
        )
