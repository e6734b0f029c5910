"""Run evaluation tasks (lm/evals/in_loop.py) every config.evals.every steps and at the end."""

from collections.abc import Callable

from flax import nnx

from lm.train.run import Event, Run

Measure = Callable[[int, nnx.State], dict[str, float]]


class Evaluations(Event):
    """measure: measure(step, params) -> {name: number}; logged like validation."""

    def __init__(self, measure: Measure):
        self._measure = measure

    def before(self, run: Run, step: int) -> None:
        every = run.config.evals.every
        if every and step > 1 and (step - 1) % every == 0:
            with run.pause("validation"):
                self._log(run, step - 1)

    def end(self, run: Run) -> None:
        run.supervision.enter("validation")
        self._log(run, run.step)

    def _log(self, run: Run, step: int) -> None:
        with run.whole_params() as params:
            run.log.valid(step, self._measure(step, params))
