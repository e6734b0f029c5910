"""What the loop does about a bad step: report it, rewind, or end the run."""

from collections.abc import Callable, Mapping

import numpy as np

from lm.errors import Ended
from lm.train.guard import RECURRING
from lm.train.rewind import Rewinds


class Diverged(Ended):
    """The run cannot continue: too many steps in a row with a loss or gradient that is not finite, an update that overflowed,
    or a state to save that is not finite. step: the last one."""

    def __init__(self, step: int, text: str):
        super().__init__(text)
        self.step = step


def respond(
    step: int,
    metrics: Mapping[str, float],
    in_row: int,
    high: int,
    config,
    rewinds: Rewinds,
    say: Callable[[str], None],
    again: str,
) -> None:
    """Report a bad step, and rewind or end the run after too many.

    Args: in_row: steps in a row that were skipped, up to this one. high: accepted steps in a row with a high loss (guard.py).
    again: how to resume, the end of a message. Raises: Rewound; Diverged.
    """
    loss, norm = metrics["loss"], metrics["grad_norm"]
    finite, spiked = np.isfinite(loss) and np.isfinite(norm), metrics.get("spike", 0) > np.float32(config.guard.threshold)
    if in_row and finite and not spiked:
        raise Diverged(  # immediately, since another batch would not help
            step,
            f"step {step}: loss and gradient are finite, but the update overflows at learning rate "
            f"{metrics['learning_rate']:g} and was left out; lower optimizer.learning_rate, {again}",
        )
    if in_row and finite:
        say(
            f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: a spike, {metrics['spike']:.3g} deviations above the "
            "level, update skipped"
        )
    elif in_row:
        say(f"step {step}: loss {loss} or gradient norm {norm} is not finite, update skipped")
    elif spiked and metrics["recent"] < RECURRING + 2:  # the first ones only
        say(
            f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: {metrics['spike']:.3g} deviations above the level. Such "
            "steps come back one by one, so they are data of another kind, and are not skipped any more"
        )
    if in_row >= config.max_skipped_in_row:
        cause = f"{in_row} steps in a row were skipped (max_skipped_in_row)"
        rewinds.rewind(step, step - in_row + 1, cause, say)
        if not spiked:
            raise Diverged(
                step,
                f"{in_row} steps in a row (max_skipped_in_row) had a loss or gradient that is not finite, the last is step "
                f"{step}{_after(rewinds)}; lower optimizer.learning_rate or look at the data of these steps, {again}",
            )
        say(f"step {step}: {cause}{_after(rewinds)}; the loss or the gradient norm seems to stay higher, so it is accepted now")
    staged = ";" in (config.data.get("weights") or "")  # the level of the loss changes with the mixture
    if config.guard.high_steps and high >= config.guard.high_steps and not in_row and not staged:
        cause = f"the loss was high for {high} accepted steps in a row (guard.high_steps)"
        rewinds.rewind(step, step - high + 1, cause, say)
        if high == config.guard.high_steps:
            say(f"step {step}: {cause}{_after(rewinds)}")


def unsound(step: int, in_row: int, rewinds: Rewinds, say: Callable[[str], None], again: str) -> None:
    """Rewind a run whose state cannot be saved, as after a flipped bit, or end it. Raises: Rewound; Diverged.

    If it was already rewound for this cause and nothing was saved since, other data do not help, and that rewind is undone.
    in_row: as in `respond`; the run ends if the last steps failed too.
    """
    cause = "parameters or optimizer moments are not finite, or so large that their squares are not"
    if rewinds.in_vain(cause):
        rewinds.undo()
    elif not in_row:
        rewinds.rewind(step, step, cause, say)
    raise Diverged(step, f"step {step}: {cause}; they were not saved. Lower optimizer.learning_rate, {again}")


def _after(rewinds: Rewinds) -> str:
    return f", after {rewinds.count} rewinds (guard.rewinds)" if rewinds.count else ""
