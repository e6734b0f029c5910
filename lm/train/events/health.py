"""Account for the time of a run, compare its hosts, and end it if it hangs."""

from lm.train.run import Done, Event, Run
from lm.train.supervision import Supervision


class Health(Event):
    """Keeps `run.supervision`, which Run and other events tell the phases."""

    def start(self, run: Run) -> None:
        run.supervision = Supervision(run.config, run.workdir, run.begin)

    def done(self, run: Run, done: Done) -> None:
        numbers, told = run.supervision.stepped(done.step)
        done.line |= numbers
        for text in told:
            run.log.say(text)

    def close(self, run: Run) -> None:
        run.supervision.close(end=run.step >= run.config.steps)
