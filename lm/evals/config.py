"""Parse an evaluation's config: settings, tasks, and runs to compare with. Nothing here loads JAX."""

import math
from pathlib import Path

import yaml

from lm.errors import UserError, after
from lm.evals import compare
from lm.evals.task import Task, TaskSettings
from lm.evals.tasks.catalogue import open_task, path_of, read_spec, spelt, text_of
from lm.evals.tasks.items import check_folder


def settings_of(config) -> TaskSettings:
    """Return the task settings of a config, or of a section with some of its keys. Raises UserError for invalid values."""
    try:
        options = yaml.safe_load(config.options) if config.options else {}
    except yaml.YAMLError as error:
        raise UserError(f"options={config.options!r}: {error}") from None
    if not isinstance(options, dict) or not all(isinstance(value, dict) for value in options.values()):
        raise UserError(f"options={config.options!r}: write YAML such as 'redteam: {{samples: 2}}'")
    if config.limit is not None and not 0 < config.limit < math.inf:
        raise UserError(f"limit={config.limit} must be above 0: a number of items, or below 1 a share of them")
    if config.num_fewshot is not None and config.num_fewshot < 0:
        raise UserError(f"num_fewshot={config.num_fewshot} must be at least 0")
    if config.data_dir and not Path(config.data_dir).is_dir():
        raise UserError(f"data_dir={config.data_dir}: no such folder; name the one whose folders are named after the tasks")
    if config.get("dtype") not in (None, "bfloat16", "float32"):
        raise UserError(f"dtype={config.dtype!r} is neither bfloat16 nor float32")
    return TaskSettings(
        data_dir=Path(config.data_dir) if config.data_dir else None,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        chat=bool(config.chat_template),
        system=config.get("system_instruction", ""),
        fewshot_as_multiturn=config.get("fewshot_as_multiturn", False),
        seed=config.get("seed", TaskSettings().seed),
        judge=config.judge,
        options=options,
    )


def open_tasks(names: str, settings: TaskSettings) -> tuple[list[Task], dict[str, str]]:
    """Open a comma-separated list of tasks. Return the tasks and {task name: its file's text}. Raises UserError."""
    wanted = names_of(names)
    tasks = [open_task(name, settings) for name in wanted]
    called: dict[str, str] = {}
    for name, task in zip(wanted, tasks, strict=True):
        if task.name in called:
            raise UserError(f"tasks: {called[task.name]} and {name} are both named {task.name}; rename one of the files")
        called[task.name] = name
    return tasks, {name: text_of(spelling) for name, spelling in called.items()}


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
            check_folder(path.stem, read_spec(path, name), settings)


def template_of(name: str) -> str | None:
    """Return the `template` argument of Engine: None, "plain" or a template. Raises UserError if the file is missing."""
    if name in ("", "own"):
        return None
    if name == "plain":
        return "plain"
    path = Path(name)
    if not path.is_file():
        raise UserError(f"chat_template={name}: no such file; own, plain, or the path of a Jinja template")
    return path.read_text(encoding="utf-8")


def others_of(config, workdir: Path) -> list[tuple[str, dict, Path]]:
    """Return (name, results, samples) of each run to compare with. Raises UserError if one is missing."""
    others = []
    for name in (config.compare or "").split(","):
        if not name.strip():
            continue
        folder = Path(name.strip())
        if folder.resolve() == workdir.resolve():
            raise UserError(f"compare={name}: this is the workdir itself; name another evaluation")
        with after("compare: "):
            others.append((folder.name, compare.read_results(folder), folder / "samples.jsonl"))
    return others
