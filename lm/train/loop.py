"""The training loop: read batch n, dispatch step n, then wait for step n−1, which was computed meanwhile.

Steps are counted from 1: line n of the log is the n-th update, computed from batch n−1. All else that happens beside the steps
is an event (lm/train/events): the log, validation, checkpoints, what is done about a bad step.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from lm.adapt import lora, quantize
from lm.runs.workdir import check_record, steps_saved
from lm.train import compiler
from lm.train.alerts import alert
from lm.train.events import usual
from lm.train.events.divergence import Diverged as Diverged
from lm.train.events.profile import STEP
from lm.train.feed import Stream
from lm.train.rewind import Rewinds, Rewound
from lm.train.run import Event, Run
from lm.train.state import averaged
from lm.train.step import Trainer, model_config_of
from lm.train.values import check_length, check_values


def train(
    config: ml_collections.ConfigDict,
    trainer: Trainer,
    mesh: Mesh,
    stream: Stream,
    workdir: Path,
    start: Callable[[], nnx.State | None] = lambda: None,
    events: Sequence[Event] | None = None,
    frozen: Any = None,
) -> dict[str, Any]:
    """Train to `config.steps` from the newest complete checkpoint in `workdir`, else from start(), else from random weights.

    Args:
      stream: returns the batch of each step (lm/train/feed.py).
      events: what is done beside the steps, in this order. None: those of lm.train.events.usual.
      frozen: the third argument of the trainer's step.
    Returns: {"params" (the averages with config.ema), "sources" (of the state), "step", "tokens", "skipped", "rewinds" (see
    lm/train/rewind.py), "valid" (the final validation or None), "tokens_per_second" (median), "num_params", "seconds"}.
    Raises: Stopped on SIGTERM or SIGINT; Diverged; UserError for a checkpoint that does not fit, or if all are damaged.
    """
    rewinds = Rewinds(config, workdir)
    while True:
        run = Run(config, trainer, mesh, workdir, frozen, usual() if events is None else events, rewinds)
        try:
            return _train(run, stream, start)
        except Rewound:
            pass  # it was logged
        except Diverged as diverged:
            alert(workdir, "diverged", diverged.step, str(diverged), wait=True)
            raise
        del run
        gc.collect()  # the abandoned state, before the next one is restored


def _train(run: Run, stream: Stream, start: Callable[[], nnx.State | None]) -> dict[str, Any]:
    """Train as `train` does. Raises Rewound if the run must be resumed."""
    config, logs_ids = run.config, run.config.data.get("log_ids", False)
    options = compiler.options(run.mesh.devices.flat[0])
    step_fn = jax.jit(run.trainer.step, donate_argnums=0, compiler_options=options)
    with contextlib.ExitStack() as at_end:
        at_end.callback(run.saved.checkpoints.close)
        run.restore(start)
        batches = run.rewinds.shifted(stream)  # step n may read a later batch than n−1
        batches.start(run.begin)
        at_end.callback(batches.close)
        at_end.callback(run.close)
        run.start()
        began = time.perf_counter()
        for step in range(run.begin + 1, config.steps + 1):
            run.tell("before", step)
            with jax.profiler.StepTraceAnnotation(STEP, step_num=step):
                run.supervision.enter(getattr(stream, "phase", "data"))
                batch, numbers = batches.next(step, run.state.params, run.read)
                run.got_batch()
                state, metrics = step_fn(run.state, batch, run.frozen)
            run.dispatched(state, batch, metrics | numbers, batches.ids(step) if logs_ids else None)
            run.tell("after", step)
        seconds = time.perf_counter() - began
        run.tell("end")
    rates = run.tokens_per_second
    return {
        "params": averaged(run.state),
        "sources": run.state.sources,
        "step": run.step,
        "tokens": run.tokens,
        "skipped": run.skipped,
        "rewinds": run.rewinds.meta().get("rewinds", []),
        "valid": run.valid,
        "num_params": run.num_params,
        "tokens_per_second": float(np.median(rates[1:])) if len(rates) > 1 else None,
        "seconds": seconds,
    }


def check_config(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raise UserError for invalid values, and for a workdir that belongs to another run."""
    check_values(config)
    model = model_config_of(config)
    lora.check_targets(model)
    quantize.check_targets(model)
    if model.positions == "learned" or not steps_saved(workdir):
        check_length(model, config.sequence_length)
    check_record(config, workdir)
