"""Check a config of evaluate.py, and the section `evals` of a run, without JAX, which takes seconds to load."""

from pathlib import Path

from lm.errors import UserError
from lm.evals.judges.judges import check_answers, check_name
from lm.runs.workdir import check_record
from lm.train.checks import check_writer
from lm.train.values import MAX, SEEDS


def check_evaluation(config, workdir: Path) -> None:
    """Raise UserError for an invalid config of evaluate.py, or one that differs from the evaluation in the workdir."""
    from lm.evals.config import check_tasks, others_of, settings_of, template_of

    if not config.checkpoint:
        raise UserError("--config.checkpoint is missing: name a workdir, a Hugging Face folder or a GGUF file")
    if not 0 <= config.seed <= SEEDS:
        raise UserError(f"seed={config.seed} must be in 0…{SEEDS}")
    for key in ("max_length", "batch_tokens"):
        if config[key] is not None and not 1 <= config[key] <= MAX:
            raise UserError(f"{key}={config[key]} must be in 1…{MAX}")
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
    from lm.evals.config import check_tasks, settings_of, template_of

    if not evals.tasks:
        return
    try:
        settings = settings_of(evals)
        template_of(evals.chat_template)
        check_tasks(evals.tasks, settings)
    except UserError as error:
        raise UserError(f"evals: {error}".replace("data_dir", "evals.data_dir")) from None
