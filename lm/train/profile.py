"""Profile steps of a run: a trace of each process for XProf, TensorBoard or Perfetto.

    xprof --logdir=WORKDIR/profile      (pip install xprof)

WORKDIR/profile/plugins/profile/steps-FIRST-LAST/ gets two files a process: PROCESS-HOST.xplane.pb and, for Perfetto,
PROCESS-HOST.trace.json.gz. PROCESS counts from 0. Python functions are not traced, because that slows the host.
"""

import tempfile
from pathlib import Path

import jax

from lm import saving
from lm.errors import UserError
from lm.train.values import profiled_steps

STEP = "train"  # name of the annotation of a step; its step_num is the step


class Profile:
    """Traces the steps that `config.profile` names, as far as this process runs them."""

    def __init__(self, steps: str, workdir: Path, begin: int, end: int):
        """steps: see `profiled_steps`. begin: steps done before. end: the run's last. Raises UserError if all are after it."""
        self._workdir, wanted = workdir, profiled_steps(steps)
        if wanted and wanted[0] > end:
            raise UserError(f"profile={steps}: the run has only {end} steps")
        here = [step for step in wanted if begin < step <= end]
        self.first, self.last = (here[0], here[-1]) if here else (0, 0)
        self._traced: list[int] = []
        self._folder = None

    def start(self) -> None:
        """Start the trace. The devices must have finished earlier steps, or these would be in it."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        self._folder = tempfile.TemporaryDirectory(prefix="lmcraft-profile-")
        jax.profiler.start_trace(self._folder.name, profiler_options=options)

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Return a context manager that names what runs in it as a step."""
        if self._folder:
            self._traced.append(step)
        return jax.profiler.StepTraceAnnotation(STEP, step_num=step)

    def stop(self) -> None:
        """Write the trace, if one runs. The devices must have finished its steps."""
        if self._folder is None:
            return
        with self._folder as folder:
            self._folder = None
            jax.profiler.stop_trace()
            if not self._traced:
                return
            session = traces(self._workdir) / f"steps-{self._traced[0]}-{self._traced[-1]}"
            for file in Path(folder).rglob("*.*"):
                if file.is_file():  # the process in its name, because several of one host would have the same
                    saving.write(session / f"{jax.process_index()}-{file.name}", file.read_bytes())


def traces(workdir: Path) -> Path:
    """Return the folder of a run's traces, in the layout that XProf expects."""
    return workdir / "profile" / "plugins" / "profile"
