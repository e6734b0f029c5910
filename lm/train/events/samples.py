"""Let the model write samples every config.samples_every steps and at the end."""

from collections.abc import Callable, Sequence

from flax import nnx

from lm.parallel.context import sequences_whole
from lm.train.loop import Event, Run
from lm.train.update import averaged

Write = Callable[[int, nnx.State], Sequence[str]]


class Samples(Event):
    """write: write(step, params) -> lines to print."""

    def __init__(self, write: Write):
        self._write = write

    def before(self, run: Run, step: int) -> None:
        if run.config.samples_every and (step - 1) % run.config.samples_every == 0:
            with run.pause("other"):
                self._say(run, step - 1)

    def end(self, run: Run) -> None:
        if run.step:
            self._say(run, run.step)

    def _say(self, run: Run, step: int) -> None:
        with sequences_whole(averaged(run.state)) as params:
            for text in self._write(step, params):
                run.log.say(text)
