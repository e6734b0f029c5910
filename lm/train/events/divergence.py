"""Answer a bad step: report it, go back to a checkpoint (lm/train/rewind.py), or end the run."""

import numpy as np

from lm.errors import Ended
from lm.train.guard import RECURRING
from lm.train.run import Done, Event, Run


class Diverged(Ended):
    """The run cannot continue: too many steps in a row with a loss or gradient that is not finite, an update that overflowed,
    or a state to save that is not finite. step: the last one."""

    def __init__(self, step: int, text: str):
        super().__init__(text)
        self.step = step


class Divergence(Event):
    """Answers a bad step: reports it, goes back to a checkpoint, or ends the run."""

    def start(self, run: Run) -> None:
        if run.saved.guard_is_new and run.state.guard:
            run.log.say(
                f"step {run.begin}: the checkpoint has no spike guard of this form, so a new one starts (guard.warmup steps)"
            )

    def done(self, run: Run, done: Done) -> None:
        """Raises: Rewound; Diverged."""
        step, in_row, metrics = done.step, run.skipped_in_row, done.metrics
        loss, norm, spike = metrics["loss"], metrics["grad_norm"], metrics.get("spike", 0)
        is_finite, is_spike = np.isfinite(loss) and np.isfinite(norm), bool(spike > np.float32(run.config.guard.threshold))
        if in_row and is_finite and not is_spike:
            raise Diverged(  # immediately, since another batch would not help
                step,
                f"step {step}: loss and gradient are finite, but the update overflows at learning rate "
                f"{metrics['learning_rate']:g} and was left out; lower optimizer.learning_rate, {run.again()}",
            )
        if in_row and is_finite:
            run.log.say(
                f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: a spike, {spike:.3g} deviations above the "
                "level, update skipped"
            )
        elif in_row:
            run.log.say(f"step {step}: loss {loss} or gradient norm {norm} is not finite, update skipped")
        elif is_spike and metrics["recent"] < RECURRING + 2:  # the first ones only
            run.log.say(
                f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: {spike:.3g} deviations above the level. Such "
                "steps come back one by one, so they are data of another kind, and are not skipped any more"
            )
        if in_row >= run.config.max_skipped_in_row:
            _too_many_skipped(run, step, is_spike)
        _high_for_long(run, step, int(metrics.get("high_in_row", 0)))


def unsound(run: Run) -> None:
    """Rewind a run whose state cannot be saved, as after a flipped bit, or end it. Raises: Rewound; Diverged.

    If it was already rewound for this cause and nothing was saved since, other data do not help, and that rewind is undone. The
    run ends if the last steps failed too.
    """
    cause = "parameters or optimizer moments are not finite, or so large that their squares are not"
    if run.rewinds.in_vain(cause):
        run.rewinds.undo()
    elif not run.skipped_in_row:
        run.rewinds.rewind(run.step, run.step, cause, run.log.say)
    raise Diverged(run.step, f"step {run.step}: {cause}; they were not saved. Lower optimizer.learning_rate, {run.again()}")


def _too_many_skipped(run: Run, step: int, is_spike: bool) -> None:
    in_row = run.skipped_in_row
    cause = f"{in_row} steps in a row were skipped (max_skipped_in_row)"
    run.rewinds.rewind(step, step - in_row + 1, cause, run.log.say)
    if not is_spike:
        raise Diverged(
            step,
            f"{in_row} steps in a row (max_skipped_in_row) had a loss or gradient that is not finite, the last is step "
            f"{step}{_after_rewinds(run)}; lower optimizer.learning_rate or look at the data of these steps, {run.again()}",
        )
    run.log.say(
        f"step {step}: {cause}{_after_rewinds(run)}; the loss or the gradient norm seems to stay higher, so it is accepted now"
    )


def _high_for_long(run: Run, step: int, high: int) -> None:
    """high: accepted steps in a row with a high loss (lm/train/guard.py)."""
    most = run.config.guard.high_steps
    is_staged = ";" in (run.config.data.get("weights") or "")  # the level of the loss changes with the mixture
    if most and high >= most and not run.skipped_in_row and not is_staged:
        cause = f"the loss was high for {high} accepted steps in a row (guard.high_steps)"
        run.rewinds.rewind(step, step - high + 1, cause, run.log.say)
        if high == most:
            run.log.say(f"step {step}: {cause}{_after_rewinds(run)}")


def _after_rewinds(run: Run) -> str:
    return f", after {run.rewinds.count} rewinds (guard.rewinds)" if run.rewinds.count else ""
