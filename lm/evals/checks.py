"""Parse and check a config of evaluate.py, and the section `evals` of a run, without JAX, which takes seconds to load."""

import math
from pathlib import Path

import yaml

from lm.errors import UserError, after
from lm.evals.judges.judges import check_answers, check_name
from lm.evals.task import TaskSettings
from lm.evals.tasks.catalogue import check_tasks
from lm.runs.workdir import check_record
from lm.train.checks import check_writer
from lm.train.values import MAX, SEEDS, check_ranges


def check_evaluation(config, workdir: Path) -> None:
    """Raise UserError for an invalid config of evaluate.py, or one that differs from the evaluation in the workdir."""
    if not config.checkpoint:
        raise UserError("--config.checkpoint is missing: name a workdir, a Hugging Face folder or a GGUF file")
    check_ranges(config, {"seed": (0, SEEDS), "max_length": (1, MAX), "batch_tokens": (1, MAX)})
    budgets = config.thought_budgets
    if not all(isinstance(tokens, int) and 0 <= tokens <= MAX for tokens in budgets) or len({*budgets}) < len(budgets):
        raise UserError(f"thought_budgets={tuple(budgets)} must be different numbers of tokens in 0…{MAX}, such as (0,256)")
    settings = settings_of(config)
    others_of(config, workdir)
    template_of(config.chat_template)
    check_writer("checkpoint", config.checkpoint)
    check_name(config.judge)
    check_answers(config.judge)
    check_tasks(config.tasks, settings)
    check_record(config, workdir)


def check_evals(evals) -> None:
    """Raise UserError if the section `evals` of a training run names a task or a file that is not there."""
    if not evals.tasks:
        return
    try:
        settings = settings_of(evals)
        template_of(evals.chat_template)
        check_tasks(evals.tasks, settings)
    except UserError as error:
        raise UserError(f"evals: {error}".replace("data_dir", "evals.data_dir")) from None


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
    check_ranges(config, {"num_fewshot": (0, None)})
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
    from lm.evals import compare

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
