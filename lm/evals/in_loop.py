"""Run evaluation tasks during training, every config.evals.every steps and at the end.

Metrics are logged beside validation's as valid_TASK/METRIC. evals/step-NNNNNN.json holds the full results. Tasks and what
runs them are imported where there are some.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flax import nnx

from data.text.tokenizer import Tokenizer
from lm.errors import after
from lm.files import saving
from lm.files.saving import plain
from lm.parallel import hosts

if TYPE_CHECKING:
    from lm.evals.task import Task

Measure = Callable[[int, nnx.State], dict[str, float]]


class Evals(NamedTuple):
    """Opened tasks of config.evals, and the chat template as Encoding takes it."""

    tasks: "list[Task]"
    template: str | None


def open_evals(config) -> Evals | None:
    """Open the tasks of config.evals, or return None if there are none. Raises UserError before a run begins."""
    evals = config.evals
    if not evals.tasks:
        return None
    from lm.evals.checks import settings_of, template_of
    from lm.evals.tasks.catalogue import open_tasks

    with after("evals: "):
        return Evals(open_tasks(evals.tasks, settings_of(evals))[0], template_of(evals.chat_template))


def measuring(evals: Evals | None, workdir: Path, graph, tokenizer: Tokenizer) -> Measure | None:
    """Return measure(step, params) -> {"TASK/METRIC": value}, which runs on the current mesh; None without tasks."""
    if evals is None:
        return None
    from lm.evals.engine.encoding import Encoding
    from lm.evals.engine.model_subject import ModelSubject
    from lm.evals.stats.measures import is_number, metrics

    def measure(step: int, params: nnx.State) -> dict[str, float]:
        encoding = Encoding(tokenizer, template=evals.template)
        subject = ModelSubject(nnx.merge(graph, params), encoding, name=workdir.name, progress=False)
        results = {task.name: plain(task.run(subject).results) for task in evals.tasks}
        if hosts.is_first():
            (workdir / "evals").mkdir(exist_ok=True)
            saving.write_json(workdir / "evals" / f"step-{step:06d}.json", results)
        return {
            f"{name}/{metric}": result[metric]
            for name, result in results.items()
            for metric in metrics(result)
            if is_number(result.get(metric))
        }

    return measure
