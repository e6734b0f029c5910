"""The training loop: dispatch step n, then read the metrics of step n−1; validate, save, stop.

Steps are counted from 1: line n of the log is the n-th update, computed from batch n−1.
"""

import functools
import gc
import operator
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from lm import sizing
from lm.adapt import lora, quantize
from lm.bucket.places import with_urls
from lm.convert.base import reference
from lm.convert.source import open_source
from lm.errors import Stopped
from lm.model.linear import trainable
from lm.parallel import memory
from lm.parallel.context import sequences_whole
from lm.parallel.hosts import is_first
from lm.parallel.pipeline import schedule
from lm.train import compiler, find_nan, keeping
from lm.train.alerts import alert
from lm.train.divergence import Diverged as Diverged
from lm.train.divergence import respond, unsound
from lm.train.feed import Stream
from lm.train.metrics import Log
from lm.train.profile import Profile
from lm.train.rewind import Rewinds, Rewound
from lm.train.speed import mfu_formula, peak_flops
from lm.train.step import (
    Trainer,
    TrainState,
    abstract_state,
    averaged,
    model_config_of,
    sound,
    state_shardings,
    stored,
    unstored,
)
from lm.train.supervision import Supervision
from lm.train.values import check_length, check_values
from lm.workdir import check_record, steps_saved


def train(
    config: ml_collections.ConfigDict,
    trainer: Trainer,
    mesh,
    stream: Stream,
    validate: Callable | None,
    workdir: Path,
    start: Callable[[], nnx.State | None] = lambda: None,
    *,
    frozen=None,
    watch: Callable | None = None,
    measure: Callable | None = None,
) -> dict:
    """Train to `config.steps` from the newest complete checkpoint in `workdir`, else from start(), else from random weights.

    Args:
      stream: returns the batch of each step (lm/train/feed.py).
      validate: validate(params, batches or None for all) -> {name: number}, called every valid_every steps and at the end; also
        before the first step if config.valid_first says so, or is None and the run has an init_from.
      frozen: the third argument of the trainer's step.
      watch: watch(step, params) -> lines to print, called every config.samples_every steps.
      measure: measure(step, params) -> {name: number}, called every config.evals.every steps and at the end; logged like
        validation.
    Returns: {"params" (the averages with config.ema), "sources" (of the state), "step", "tokens", "skipped", "rewinds" (see
    lm/train/rewind.py), "valid" (the final validation or None), "tokens_per_second" (median), "num_params", "seconds"}.
    Raises: Stopped on SIGTERM or SIGINT; Diverged; UserError for a checkpoint that does not fit, or if all are damaged.
    """
    rewinds = Rewinds(config, workdir)
    stream = rewinds.shifted(stream)
    while True:
        try:
            return _train(config, trainer, mesh, stream, validate, workdir, start, rewinds, frozen, watch, measure)
        except Rewound:
            pass  # it was logged
        except Diverged as diverged:
            alert(workdir, "diverged", diverged.step, str(diverged), wait=True)
            raise
        gc.collect()  # the abandoned state, before the next one is restored


def _train(config, trainer, mesh, stream, validate, workdir, start, rewinds, frozen, watch, measure) -> dict:
    """Train as `train` does. Raises Rewound if the run must be resumed."""
    checkpoints, losses = keeping.opened(config, workdir)
    begin = rewinds.newest(checkpoints, losses)
    base = None  # a reference to the base weights of adapters, if checkpoints do not hold them

    learns = trainable(model_config_of(config))

    def kept(state: TrainState) -> dict:
        """Return the part of the state that checkpoints hold."""
        fields = stored(state, learns)
        return fields if base is None else fields | {"params": nnx.filter_state(fields["params"], learns)}

    if begin is None:
        if config.init_from and config.model.adapter.rank:
            base = reference(config.init_from, workdir)
        begin, tokens = 0, 0
        state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh), donate_argnums=0)(start())
    else:
        meta, abstract = checkpoints.meta(begin), abstract_state(trainer, mesh)
        keeping.check(meta, config, workdir, begin)
        base, tokens = meta.get("base"), meta["tokens"]
        average = nnx.filter_state(abstract.params, learns) if checkpoints.has(begin, "raw") else ()
        saved = abstract.guard if checkpoints.fits(begin, "guard", abstract.guard) else ()
        fields = checkpoints.restore(begin, kept(abstract._replace(average=average, guard=saved)))
        if base:
            fields["params"] = open_source(workdir, begin).load(abstract.params)
        state = unstored(fields, learns, bool(config.ema))
    guard_is_new = begin and not state.guard
    state = rewinds.ready(state, mesh)

    profile = Profile(config.profile, workdir, begin, config.steps)
    stream.start(begin)
    how = compiler.options(mesh.devices.flat[0])
    step_fn, sound_fn = jax.jit(trainer.step, donate_argnums=0, compiler_options=how), jax.jit(sound)
    num_params = sum(sizing.parameters(model_config_of(config))["total"].values())
    flops = sizing.flops_per_token(model_config_of(config), config.sequence_length)
    known_peak = peak_flops()
    log_ids = config.data.get("log_ids", False)
    log = Log(workdir, config, enabled=is_first(), step=begin)
    log.say(f"{num_params:,} parameters, {config.batch_size * config.sequence_length:,} tokens a step, {dict(mesh.shape)}")
    if text := losses.high(begin):
        log.say(text)
    if guard_is_new and state.guard:
        log.say(f"step {begin}: the checkpoint has no spike guard of this form, so a new one starts (guard.warmup steps)")
    if offloaded := [key for key in ("model.offload", "optimizer.offload") if operator.attrgetter(key)(config)]:
        log.say(f"{' and '.join(offloaded)}: {memory.explained()}")
    if mesh.shape["stage"] > 1:
        plan = schedule(model_config_of(config).pipeline, config.batch_size // config.accumulate, mesh)
        log.say(f"pipeline: {plan}")
    if known_peak:
        log.say(mfu_formula())
    rates: list[float] = []
    skipped, in_row = int(state.skipped), int(state.skipped_in_row)
    last_read = done = time.perf_counter()
    pending = None  # (step, metrics, ids) of the step that the devices are computing

    def read() -> float:
        """Wait for the dispatched step, if there is one, and log it. Return the time when the last step was done.

        The time is that of time.perf_counter. Raises Diverged or Rewound.
        """
        nonlocal pending, tokens, skipped, in_row, last_read, done
        if pending is None:
            return done
        before = run.enter("wait")
        (step, metrics, ids), pending = pending, None
        metrics = {name: float(value) for name, value in metrics.items()}
        watched, told = run.stepped(step)
        now = done = time.perf_counter()
        del metrics["weight"]
        trained, in_row, skipped = (int(metrics.pop(name)) for name in ("tokens", "skipped_in_row", "skipped"))
        rate = trained / (now - last_read)
        tokens, last_read = tokens + trained, now
        rates.append(rate)
        counted = {"skipped": skipped, "tokens": tokens, "tokens_per_second": rate, "tflops": rate * flops / 1e12}
        if known_peak:
            counted["mfu"] = rate * flops / known_peak[0]
        counted |= rewinds.counted(step) | {name: int(metrics[name]) for name in ("spikes",) if name in metrics}
        high, recent = int(metrics.pop("high_in_row", 0)), metrics.pop("recent", 0)
        losses.trained(metrics["loss"])
        log.train({"step": step, **metrics, **counted, **watched}, ids)
        for text in told:
            log.say(text)
        run.enter(before)
        respond(step, metrics | {"recent": recent}, in_row, high, config, rewinds, log.say, again())
        return done

    def again() -> str:
        return f"then run the same command: it resumes from step {checkpoints.latest() or 0}"

    def save(step: int) -> None:
        """Start to save the state. Raises Rewound or Diverged if it is not sound: it would replace a sound checkpoint."""
        before = run.enter("save")
        log.flush()
        if not sound_fn(state):
            unsound(step, in_row, rewinds, log.say, again())
        if text := losses.saving(step):
            log.say(text)
            alert(workdir, "high", step, text)
        about = {"config": config.to_dict(), "tokens": tokens, "fingerprints": keeping.fingerprints(workdir)}
        meta = with_urls(about | ({"base": base} if base else {}) | rewinds.meta())
        checkpoints.save(step, kept(state), meta)
        run.saved(step, before)

    stop = _Stop()
    run = Supervision(config, workdir, begin)
    started = time.perf_counter()
    step = begin
    try:
        if begin < config.steps:
            log.compiling()
        for step in range(begin + 1, config.steps + 1):
            # Validate before the next step, not after the last one, so that a run stopped in between validates when it resumes.
            first = step == 1 and (bool(config.init_from) if config.valid_first is None else config.valid_first)
            if validate and (first or (config.valid_every and step > 1 and (step - 1) % config.valid_every == 0)):
                run.enter("validation")
                read()
                # All of it before the first step, as at the end: the two are compared.
                found = validate(averaged(state), None if first else config.valid_batches)
                log.valid(step - 1, found)
                losses.validated(step - 1, found)
                last_read = time.perf_counter()
            if measure and config.evals.every and step > 1 and (step - 1) % config.evals.every == 0:
                run.enter("validation")
                read()
                with sequences_whole(averaged(state)) as params:
                    log.valid(step - 1, measure(step - 1, params))
                last_read = time.perf_counter()
            if watch and config.samples_every and (step - 1) % config.samples_every == 0:
                run.enter("other")
                read()
                with sequences_whole(averaged(state)) as params:
                    for text in watch(step - 1, params):
                        log.say(text)
                last_read = time.perf_counter()
            if step == profile.first:
                read()
                profile.start()
                last_read = time.perf_counter()
            run.enter(getattr(stream, "phase", "data"))
            with profile.step(step):
                batch, stream_metrics = stream.next(step, state.params, read)
                run.got(pending, first=step == begin + 1)
                state, metrics = step_fn(state, batch, frozen)
            if config.find_nan and not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
                for text in find_nan.explain(config, trainer.objective, state, batch, frozen):
                    log.say(f"step {step}: {text}")
            read()
            pending = (step, metrics | stream_metrics, stream.ids(step) if log_ids else None)
            if step == profile.last:
                read()
                profile.stop()
                last_read = time.perf_counter()
            due = config.checkpoint_every and step % config.checkpoint_every == 0
            signum = stop.requested(step)
            if due or signum or step == config.steps:
                read()
                if not in_row or signum or step == config.steps:  # else the loop may soon go back to the last checkpoint
                    save(step)
            if signum:
                run.enter("save")
                checkpoints.wait(functools.partial(save, step))
                name = signal.Signals(signum).name
                text = f"stopped by {name} after step {step}, which was saved; run the same command to resume"
                raise Stopped(text, signum)
        seconds = time.perf_counter() - started
        run.enter("validation")
        final = None
        if validate:
            final = validate(averaged(state), None)
            log.valid(step, final)
        with sequences_whole(averaged(state)) as params:
            if measure:
                log.valid(step, measure(step, params))
            for text in watch(step, params) if watch and step else ():
                log.say(text)
        run.enter("save")
        checkpoints.wait(functools.partial(save, step))
    finally:
        run.close(end=step >= config.steps)
        stream.close()
        log.close()
        stop.restore()
        checkpoints.close()
        profile.stop()
    rate = float(np.median(rates[1:])) if len(rates) > 1 else None
    return {
        "params": averaged(state),
        "sources": state.sources,
        "step": step,
        "tokens": tokens,
        "skipped": skipped,
        "rewinds": rewinds.meta().get("rewinds", []),
        "valid": final,
        "num_params": num_params,
        "tokens_per_second": rate,
        "seconds": seconds,
    }


class _Stop:
    """Records SIGTERM and SIGINT until the loop asks; several hosts all stop after the same step."""

    def __init__(self):
        self._signum = 0
        # With several hosts JAX's preemption service handles the signal.
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {signum: signal.signal(signum, self._note) for signum in signals}

    def _note(self, signum, frame):
        if self._signum:  # a second signal stops at once
            raise KeyboardInterrupt
        self._signum = signum

    def requested(self, step: int) -> int:
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._signum

    def restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


def check_config(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raise UserError for invalid values, and for a workdir that belongs to another run."""
    check_values(config)
    model = model_config_of(config)
    lora.check_targets(model)
    quantize.check_targets(model)
    if model.positions == "learned" or not steps_saved(workdir):
        check_length(model, config.sequence_length)
    check_record(config, workdir)
