"""Check a config of align.py and its paths, without JAX, which takes seconds to load."""

from collections import Counter
from pathlib import Path

from data.chat import records
from data.chat.records import is_builtin
from data.sources import files
from lm.align import settings
from lm.errors import UserError, after, naming
from lm.evals.checks import check_evals
from lm.evals.judges.judges import check_answers, check_name
from lm.runs.workdir import check_record
from lm.train.checks import check_apart, check_model, check_records, check_tokenizer, has_data, keep_chosen
from lm.train.values import check_values


def check_alignment(config, workdir: Path) -> None:
    """Raise UserError for an invalid config of align.py, or one that differs from the run in the workdir."""
    check_values(config)
    keep_chosen(config, workdir)
    config.accumulate = config.accumulate or 1  # lm/align/length.py makes fewer slices of a smaller batch
    settings.check(config)
    check_model("init_from", config.init_from, workdir)
    if config.method == "distill":
        check_model("distill.teacher", config.distill.teacher, None)
    if config.method == "safety":
        _check_safety(config.safety)
    elif not has_data(workdir):
        check_records("data.input", config.data.input, config.seed, settings.example_kind(config))
        check_apart("data.input", config.data.input, workdir)
    _check_template(config.chat_template)
    check_tokenizer(config)
    _check_rewards(config, workdir)
    check_evals(config.evals)
    check_record(config, workdir, adopted=False)


def _check_template(path: str | None) -> None:
    if not path:
        return
    if not Path(path).is_file():
        raise UserError(f"chat_template={path}: no such file; name a Jinja file, or leave it out for the model's own template")
    from data.chat.template import check_syntax

    with after(f"chat_template={path}: "):
        check_syntax(Path(path).read_text(encoding="utf-8"))


def _check_rewards(config, workdir: Path) -> None:
    """Check names, options and weights of rewards, and the columns that ours read from the first record.

    Reward models are opened later.
    """
    from data.chat.conversations import examples_of
    from lm.align.rl.rewards import check_columns, parse_rewards

    parts = [part for part in map(str.strip, config.rewards.split(",")) if part]
    models = [part for part in parts if part.startswith("reward_model:")]
    for part in models:
        check_model("rewards", (part.rpartition("=")[0] or part).removeprefix("reward_model:").partition("?")[0], None)
    if functions := [part for part in parts if part not in models]:
        parse_rewards(",".join(functions))
    if config.method not in ("rl", "best_of") or has_data(workdir):
        return
    if ours := [part for part in functions if ".py" not in part]:
        for task in examples_of(records.first_records(config.data.input), "task", Counter()):
            check_columns(parse_rewards(",".join(ours)), task.prompt, task.columns)


def _check_safety(s) -> None:
    if s.constitution and not Path(s.constitution).is_file():
        raise UserError(f"safety.constitution={s.constitution}: no such file")
    for key in ("prompts", "failures", "text", "keep"):
        if s[key] and not is_builtin(s[key]) and files.is_path(s[key]):
            with naming(f"safety.{key}"):
                files.first_files(s[key], (*files.EXTENSIONS, ".json", ".csv", ".tsv", ".csv.gz", ".tsv.gz"))
    check_name(s.judge)
    check_answers(s.judge)
