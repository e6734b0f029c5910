"""Validate on held-out text: every config.valid_every steps, and all of it before the first step and at the end."""

from collections.abc import Callable

from flax import nnx

from lm.train.run import Event, Run
from lm.train.state import averaged

Validate = Callable[[nnx.State, int | None], dict[str, float]]


class Validation(Event):
    """validate: validate(params, batches or None for all) -> {name: number}."""

    def __init__(self, validate: Validate):
        self._validate = validate

    def before(self, run: Run, step: int) -> None:
        # Before the next step, not after the last one, so that a run that was stopped in between validates when it resumes.
        config, is_due = run.config, run.config.valid_every and step > 1 and (step - 1) % run.config.valid_every == 0
        first = step == 1 and (bool(config.init_from) if config.valid_first is None else config.valid_first)
        if first or is_due:
            with run.pause("validation"):
                # All of it before the first step, as at the end: the two are compared.
                numbers = self._validate(averaged(run.state), None if first else config.valid_batches)
                run.log.valid(step - 1, numbers)
                run.saved.losses.validated(step - 1, numbers)

    def end(self, run: Run) -> None:
        run.supervision.enter("validation")
        run.valid = self._validate(averaged(run.state), None)
        run.log.valid(run.step, run.valid)
