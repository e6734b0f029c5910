"""Tasks by name: a declarative file of lm/evals/tasks/specs, or the user's own, and the data that it names.

A task file is YAML: `kind` says which module below reads the rest of it. The same name may stand several times with other
settings only through files of one's own.
"""

import difflib
import importlib
from pathlib import Path
from typing import Any

import yaml

from lm.errors import UserError
from lm.evals.outcome import Task, TaskSettings

FOLDER = Path(__file__).parent / "specs"

# Of each kind of task, the module whose build(name, spec, settings) makes it; imported when it is asked for.
KINDS = {
    "choice": "lm.evals.tasks.choice",
    "generation": "lm.evals.tasks.generation",
    "rolling": "lm.evals.tasks.perplexity",
    "ifeval": "lm.evals.tasks.following",
    "code": "lm.evals.tasks.code",
    "bbq": "lm.evals.bias.bbq",
    "pairs": "lm.evals.bias.pairs",
    "stereoset": "lm.evals.bias.stereoset",
    "winobias": "lm.evals.bias.winobias",
    "continuations": "lm.evals.bias.continuations",
    "counterfactual": "lm.evals.bias.counterfactual",
    "closed_book": "lm.evals.factuality.closed_book",
    "support": "lm.evals.factuality.support",
    "selfcheck": "lm.evals.factuality.selfcheck",
    "cloze": "lm.evals.factuality.cloze",
    "coherence": "lm.evals.coherence.task",
    "redteam": "lm.evals.redteam.task",
}


def open_task(name: str, settings: TaskSettings) -> Task:
    """The task of that name, or of a path to a .yaml file; harness:NAME or harness:FILE.yaml is lm-evaluation-harness's.

    Raises: UserError for a name that there is not and for a file that cannot be used.
    """
    if name.startswith("harness:"):
        from lm.evals.tasks import harness

        return harness.build(name, {}, settings)
    path = path_of(name)
    spec = read_spec(path, name)
    return importlib.import_module(KINDS[spec["kind"]]).build(path.stem, spec, settings)


def path_of(name: str) -> Path:
    name = name.removeprefix("harness:")
    return Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"


def text_of(name: str) -> str:
    """What the task's file says; of a task of the harness without one, its name."""
    path = path_of(name)
    return path.read_text(encoding="utf-8") if path.is_file() else name


def read_spec(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"task {name!r}: no such task" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}")
        )
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(spec, dict) or spec.get("kind") not in KINDS:
        raise UserError(
            f"{path}: needs `kind`, one of {', '.join(KINDS)}; lm-evaluation-harness's files are named harness:{path}"
        )
    return spec
