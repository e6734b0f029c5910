"""Check a config's values and paths without JAX, which takes seconds to load.

The verbs call this first. Checks that need devices, a model or the data come later.
"""

from pathlib import Path

from data.chat.records import EXTENSIONS, is_builtin, read_builtin
from data.sources import files, open_sources
from data.text.fingerprints import ready_dataset
from data.text.tokenizer import load_tokenizer
from data.text.weights import parse_weights
from lm.align import settings
from lm.errors import UserError, naming, no_model
from lm.evals.judges.judges import check_name
from lm.gguf_file import find_gguf, open_gguf
from lm.train.values import MOST, SEEDS, check_length, check_values, model_of
from lm.workdir import check_record, kind_of, read_config, steps_saved


def check_training(config, workdir: Path) -> None:
    """Raise UserError for an invalid config of train.py, or one that differs from the run in the workdir."""
    check_values(config)
    if not config.init_from and not steps_saved(workdir):
        check_length(model_of(config), config.sequence_length)
    check_model("init_from", config.init_from, workdir)
    if not _stands(workdir) and config.data.input is not None and ready_dataset(config.data.input) is None:
        check_files("data.input", config.data.input, config.data.text_key)
    _check_tokenizer(config)
    parse_weights(config.data.weights)
    _check_evals(config.evals)
    check_record(config, workdir, adopted=False)


def check_alignment(config, workdir: Path) -> None:
    """Raise UserError for an invalid config of align.py, or one that differs from the run in the workdir."""
    check_values(config)
    settings.check(config)
    check_model("init_from", config.init_from, workdir)
    if config.method == "distill":
        check_model("distill.teacher", config.distill.teacher, None)
    if config.method == "safety":
        _check_safety(config.safety)
    elif not _stands(workdir):
        check_records("data.input", config.data.input, config.seed)
    _check_file("chat_template", config.chat_template)
    _check_tokenizer(config)
    _check_rewards(config.rewards)
    _check_evals(config.evals)
    check_record(config, workdir, adopted=False)


def check_evaluation(config, workdir: Path) -> None:
    """Raise UserError for an invalid config of evaluate.py, or one that differs from the evaluation in the workdir."""
    from lm.evals.asked import check_tasks, others_of, settings_of, template_of

    if not config.checkpoint:
        raise UserError("--config.checkpoint is missing: name a workdir, a Hugging Face folder or a GGUF file")
    if not 0 <= config.seed <= SEEDS:
        raise UserError(f"seed={config.seed} must be in 0…{SEEDS}")
    for key in ("max_length", "batch_tokens"):
        if config[key] is not None and not 1 <= config[key] <= MOST:
            raise UserError(f"{key}={config[key]} must be in 1…{MOST}")
    settings = settings_of(config)
    others_of(config, workdir)
    template_of(config.chat_template)
    check_model("checkpoint", config.checkpoint, None)
    check_name(config.judge)
    check_tasks(config.tasks, settings)
    check_record(config, workdir)


def check_model(key: str, path: str | None, workdir: Path | None) -> None:
    """Raise UserError if a path holds no model. Not checked if the run in `workdir` already has a checkpoint."""
    if not path or (workdir and steps_saved(workdir)):
        return
    folder = Path(path)
    if (file := find_gguf(folder)) is not None:
        with naming(key):
            open_gguf(file)
        return
    if not folder.is_dir():
        raise UserError(f"{key}={no_model(path)}")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").exists():
        return  # opening it gives a better message
    if not (folder / "config.json").exists():
        raise UserError(f"{key}={path} is no training run: it has no config.json")
    if not steps_saved(folder) and kind_of(read_config(folder)) != "published":
        raise UserError(f"{key}={path} has no checkpoint yet; train it first")


def check_files(key: str, input: str, text_key: str = "text") -> None:
    """Raise UserError if a text input is no file, no folder with files and no TFDS dataset. Reads no content."""
    with naming(key):
        if files.is_path(input.strip()):
            files.check(input.strip())
        else:
            open_sources(input, text_key=text_key)


def check_records(key: str, input: str, seed: int) -> None:
    """Raise the same for an input of records, which may also be a built-in task."""
    with naming(key):
        if is_builtin(input):
            next(read_builtin(input, "train", seed))
        elif files.is_path(input) or input.endswith(EXTENSIONS):
            files.check(input, EXTENSIONS)
        elif "/" in input:
            from data.sources import tfds_source

            if not tfds_source.is_known(input):
                raise files.missing(input)


def _stands(workdir: Path) -> bool:
    """Return whether the run has prepared its data; then the input files are no longer needed."""
    return any(any(workdir.glob(f"data/*/{name}")) for name in ("dataset.json", "counts.json"))


def _check_tokenizer(config) -> None:
    if config.tokenizer and not config.init_from:
        load_tokenizer(config.tokenizer)
    elif config.tokenizer and not Path(config.tokenizer).exists():
        raise UserError(f"tokenizer={config.tokenizer}: no such file or folder")


def _check_file(key: str, path: str | None) -> None:
    if path and not Path(path).is_file():
        raise UserError(f"{key}={path}: no such file")


def _check_evals(evals) -> None:
    from lm.evals.asked import check_tasks, settings_of, template_of

    if not evals.tasks:
        return
    try:
        settings = settings_of(evals)
        template_of(evals.chat_template)
        check_tasks(evals.tasks, settings)
    except UserError as error:
        raise UserError(f"evals: {error}") from None


def _check_rewards(text: str) -> None:
    """Check names, options and weights of rewards. The user's own files and reward models are opened later."""
    from lm.align.rl.rewards import parse_rewards

    own = []
    for part in filter(None, map(str.strip, text.split(","))):
        spec = part.rpartition("=")[0] or part
        if spec.startswith("reward_model:"):
            check_model("rewards", spec.removeprefix("reward_model:").partition("?")[0], None)
        elif ".py:" in spec:
            _check_file("rewards", spec.partition("?")[0].rpartition(":")[0])
        else:
            own.append(part)
    if own:
        parse_rewards(",".join(own))


def _check_safety(s) -> None:
    _check_file("safety.constitution", s.constitution)
    for key in ("prompts", "failures", "text", "keep"):
        if s[key] and not is_builtin(s[key]) and files.is_path(s[key]):
            with naming(f"safety.{key}"):
                files.check(s[key], (*files.EXTENSIONS, ".json", ".csv", ".tsv", ".csv.gz", ".tsv.gz"))
    check_name(s.judge)
