"""Profile steps of a run: a trace of each process for XProf, TensorBoard or Perfetto.

    xprof --logdir=WORKDIR/profile      (pip install xprof)

WORKDIR/profile/plugins/profile/steps-FIRST-LAST/ gets two files a process: PROCESS-HOST.xplane.pb and, for Perfetto,
PROCESS-HOST.trace.json.gz. PROCESS counts from 0. Python functions are not traced, because that slows the host.
"""

import tempfile
from pathlib import Path

import jax

from lm.errors import UserError
from lm.files import saving
from lm.train.loop import Event, Run
from lm.train.values import profiled_steps


class Profile(Event):
    """Traces the steps that config.profile names, as far as this process runs them."""

    def start(self, run: Run) -> None:
        """Raises UserError if all steps are after the end of the run."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        run.at_end.callback(self._stop, run)
        steps, end = profiled_steps(run.config.profile), run.config.steps
        if steps and steps[0] > end:
            raise UserError(f"profile={run.config.profile}: the run has only {end} steps")
        here = [step for step in steps if run.begin < step <= end]
        self._first, self._last = (here[0], here[-1]) if here else (0, 0)

    def before(self, run: Run, step: int) -> None:
        if step == self._first:
            with run.pause("other"):  # or the trace would have the step before
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0
                self._folder = tempfile.TemporaryDirectory(prefix="lmcraft-profile-")
                jax.profiler.start_trace(self._folder.name, profiler_options=options)

    def after(self, run: Run, step: int) -> None:
        if step == self._last:
            with run.pause("other"):
                self._stop(run)

    def _stop(self, run: Run) -> None:
        """Write the trace, if one runs."""
        if self._folder is None:
            return
        with self._folder as folder:
            self._folder = None
            jax.profiler.stop_trace()
            if run.step < self._first:
                return
            session = traces(run.workdir) / f"steps-{self._first}-{run.step}"
            for file in Path(folder).rglob("*.*"):
                if file.is_file():  # the process in its name, because several of one host would have the same
                    saving.write(session / f"{jax.process_index()}-{file.name}", file.read_bytes())


def traces(workdir: Path) -> Path:
    """Return the folder of a run's traces, in the layout that XProf expects."""
    return workdir / "profile" / "plugins" / "profile"
