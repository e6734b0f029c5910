"""Find tasks by name: a file in lm/evals/tasks/specs or the user's own, and its data.

A task file is YAML; `kind` selects the module that reads the rest. To run one task twice with different settings, write files
with different names.
"""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lm.errors import UserError, near_path
from lm.evals.task import Task, TaskSettings
from lm.evals.tasks.items import check_folder
from lm.evals.tasks.settings import FILE_KEYS, check

FOLDER = Path(__file__).parent / "specs"

# {kind of task: the module whose build(name, spec, settings) makes it}. A module is imported when it is first needed.
KINDS = {
    "choice": "lm.evals.tasks.choice",
    "generation": "lm.evals.tasks.generation",
    "rolling": "lm.evals.tasks.perplexity",
    "ifeval": "lm.evals.tasks.ifeval.task",
    "code": "lm.evals.tasks.code",
    "coherence": "lm.evals.tasks.coherence",
    "environment": "lm.evals.tasks.acting",
    "bbq": "lm.evals.bias.bbq",
    "pairs": "lm.evals.bias.pairs",
    "stereoset": "lm.evals.bias.stereoset",
    "winobias": "lm.evals.bias.winobias",
    "continuations": "lm.evals.bias.continuations",
    "closed_book": "lm.evals.factuality.closed_book",
    "support": "lm.evals.factuality.support",
    "selfcheck": "lm.evals.factuality.selfcheck",
    "redteam": "lm.evals.redteam.task",
}
# Kinds of quizzes that users write, whose modules load without JAX, and the keys that they need.
QUIZZES, QUIZ_KEYS = ("choice", "generation"), ("data", "doc_to_text", "doc_to_target", "metric_list")


def open_tasks(names: str, settings: TaskSettings) -> tuple[list[Task], dict[str, str]]:
    """Open a comma-separated list of tasks. Return them and {task name: its file's text, or the name of a harness task}.

    Raises: UserError.
    """
    wanted = names_of(names)
    tasks = [open_task(name, settings) for name in wanted]
    called: dict[str, str] = {}
    for name, task in zip(wanted, tasks, strict=True):
        if task.name in called:
            raise UserError(f"tasks: {called[task.name]} and {name} are both named {task.name}; rename one of the files")
        called[task.name] = name
    paths = {name: path_of(spelling) for name, spelling in called.items()}
    texts = {name: path.read_text(encoding="utf-8") if path.is_file() else called[name] for name, path in paths.items()}
    return tasks, texts


def open_task(name: str, settings: TaskSettings) -> Task:
    """Open a task by its name or the path of a .yaml file. harness:NAME and harness:FILE.yaml open lm-evaluation-harness's.

    Raises: UserError for an unknown name or an invalid file.
    """
    if name.startswith("harness:"):
        from lm.evals.tasks import harness

        return harness.build(name, settings)
    path = path_of(name)
    spec = read_spec(path, name)
    return importlib.import_module(KINDS[spec["kind"]]).build(path.stem, spec, settings)


def names_of(names: str) -> list[str]:
    """Return the unique names of a comma-separated list. Raises UserError if there is none."""
    parts = names.split(",") if ".y" in names else names.replace(",", " ").split()  # the path of a task may have spaces
    wanted = list(dict.fromkeys(spelt(name.strip()) for name in parts if name.strip()))
    if not wanted:
        raise UserError("--config.tasks is missing: name tasks, such as mmlu,bbq; lm/evals/tasks/specs has them all")
    return wanted


def check_tasks(names: str, settings: TaskSettings) -> None:
    """Raise UserError for a task that does not exist, has an invalid file, or lacks its data. Reads no data."""
    for name in names_of(names):
        if not name.startswith("harness:"):
            path = path_of(name)
            spec = read_spec(path, name)
            if path.parent != FOLDER and spec["kind"] in QUIZZES:
                keys = FILE_KEYS | importlib.import_module(KINDS[spec["kind"]]).KEYS
                check(f"task {path.stem}", spec, keys, needed(spec, settings))
            check_folder(path.stem, spec, settings)


def needed(spec: Mapping[str, Any], settings: TaskSettings) -> list[str]:
    """Return the keys that the user's file of a quiz needs, but those that the config gives it."""
    elsewhere = {*(settings.options.get(spec["kind"]) or {}), *(["data"] if settings.data_dir or spec.get("items") else [])}
    return [key for key in QUIZ_KEYS if key not in elsewhere]


def spelt(name: str) -> str:
    """Return the name of a task of ours as its file spells it, MMLU as mmlu; another name as it is."""
    ours = name.lower().replace("-", "_")
    return ours if (FOLDER / f"{ours}.yaml").is_file() else name


def path_of(name: str) -> Path:
    name = name.removeprefix("harness:")
    return Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"


def _no_task(path: Path) -> str:
    """Return why a path is no task's file, and which file to name instead."""
    if not path.exists():
        near = near_path(path)
        return (
            f"no such file; did you mean {near}?"
            if near
            else "no such file; name a task's .yaml file, as docs/evaluate.md tells"
        )
    what = "a folder, not a task" if path.is_dir() else "data, not a task"
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path.with_suffix(".yaml")]
    files = [file for file in files if file.is_file()]
    cure = f"name {' or '.join(map(str, files))}" if files else "write a .yaml file that names it, as docs/evaluate.md tells"
    return f"{what}; {cure}"


def read_spec(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        if path.parent != FOLDER:
            raise UserError(f"task {name!r}: {_no_task(Path(name))}")
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        near = [task for task in known if task.startswith(f"{name.lower()}_")]
        near = near or difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"task {name!r}: no such task; {hint}")
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(spec, dict) or spec.get("kind") not in KINDS:
        others = [key for key in QUIZ_KEYS if spec.get(key) is None] if isinstance(spec, dict) else []
        too = f", and with {' or '.join(QUIZZES)} also {', '.join(others)}" if others else ""
        raise UserError(
            f"{path}: needs `kind`, one of {', '.join(KINDS)}{too}; lm-evaluation-harness's files are named harness:{path}"
        )
    beside = path.parent / str(spec.get("data", ""))
    return spec | {"data": str(beside)} if beside.is_file() else spec
