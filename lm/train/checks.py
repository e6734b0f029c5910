"""Check what a run of train.py starts from and reads, without JAX, which takes seconds to load.

The other verbs check models and inputs with these functions too. Checks that need devices, a model or the data come later.
"""

import contextlib
import os
import shlex
from collections import Counter
from pathlib import Path

import ml_collections

from data.chat import records
from data.sources import files, open_sources, reading
from data.text.fingerprints import ready_dataset
from data.text.tokenizer import load_tokenizer
from data.text.weights import parse_weights
from lm.bucket.places import as_urls
from lm.cli.config_files import given_keys
from lm.convert.files import check_weights, is_adapter
from lm.errors import UserError, after, hub_hint, naming, no_base, no_model, runnable
from lm.files.gguf import find_gguf, open_gguf
from lm.runs.workdir import VERBS, check_record, flat, kind_of, read_config, record, steps_saved
from lm.train.values import check_length, check_values, model_of

FIRST_RECORDS = 100  # of a file, which are checked before JAX loads


# Keys whose default has changed since records without model.init were written.
NEW_DEFAULTS = ("model.qk_norm", *[f"optimizer.{key}" for key in ("name", "schedule", "warmup", "final", "decay", "b1")])


def keep_chosen(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Set dtype, accumulate and turns, where they are to be chosen, to those with which the run in the workdir began."""
    saved = record(workdir)[0] or {}
    config.dtype = saved.get("dtype", "auto") if config.dtype == "auto" else config.dtype
    config.accumulate = config.accumulate or saved.get("accumulate", 0)
    config.optimizer.turns = config.optimizer.turns or (saved.get("optimizer") or {}).get("turns", 0)


def keep_former_defaults(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Give a run that began before the defaults of NEW_DEFAULTS its recorded values, but for keys of the command line.

    One that began before head_rate goes on with the rates that embeddings and head had then, one before turns without them.
    """
    saved, _ = record(workdir)
    if not saved or not saved.get("optimizer"):
        return
    model = saved.get("model", {})
    if "turns" not in saved["optimizer"] and "optimizer.turns" not in given_keys():
        config.optimizer.turns = 1
    if "head_rate" not in saved["optimizer"]:
        wide = model.get("init") == "fan_in" and not model.get("tie_embeddings")
        usual = {"head_rate": 1.0, "embedding_rate": saved["optimizer"].get("embedding_rate") or (15.0 if wide else 1.0)}
        config.optimizer.update({key: rate for key, rate in usual.items() if f"optimizer.{key}" not in given_keys()})
    if "init" in saved.get("model", {"init"}):
        return
    before, given = flat(saved), given_keys()
    if config.optimizer.learning_rate is None:
        config.optimizer.learning_rate = before.get("optimizer.learning_rate")
    for key in NEW_DEFAULTS:
        if key in before and key not in given:
            config.update_from_flattened_dict({key: before[key]})
    if "model.init" not in given:
        config.model.init = "gpt2"


def check_training(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raise UserError for an invalid config of train.py, or one that differs from the run in the workdir."""
    check_values(config)
    keep_chosen(config, workdir)
    keep_former_defaults(config, workdir)
    if not config.init_from and not steps_saved(workdir):
        check_length(model_of(config), config.sequence_length)
    check_model("init_from", config.init_from, workdir)
    if not has_data(workdir) and config.data.input is not None and ready_dataset(config.data.input) is None:
        check_apart("data.input", config.data.input, workdir)
        check_files("data.input", config.data.input, config.data.text_key)
    check_tokenizer(config)
    parse_weights(config.data.weights)
    check_record(config, workdir, adopted=False)


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
    if is_adapter(folder):
        raise UserError(f"{key}={no_base(path)}")
    if not (folder / "config.json").exists():
        raise UserError(f"{key}={path} is no training run: it has no config.json; {_model_near(folder)}")
    kind = kind_of(read_config(folder))
    if kind == "published":
        with after(f"{key}="):
            check_weights(folder)
    elif kind in ("curate", "evaluate", "serve"):
        raise UserError(f"{key}={path} is {VERBS[kind]}, not a model; name a workdir of train.py or align.py")
    elif not steps_saved(folder):
        raise UserError(f"{key}={path} has no checkpoint yet; train it first: the same command again resumes it")


def check_writer(key: str, path: str) -> None:
    """Raise UserError if a path holds no model, or a reward model, which has no text to give."""
    check_model(key, path, None)
    config = read_config(Path(path))
    classifies = any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    if classifies or (config.get("model") or {}).get("score_head") == "reward":
        start = f", such as {config['init_from']}" if config.get("init_from") else ""
        raise UserError(
            f"{key}={path} is a reward model, which scores answers and writes none; name a model that writes{start}"
        )


def check_speaker(key: str, path: str) -> None:
    """Raise UserError if a path holds no model that answers; a model of train.py alone only continues text."""
    check_writer(key, path)
    if not answers(path):
        command = runnable(shlex.join(["python", "-m", "lm.generate", f"--checkpoint={path}", "--prompt=TEXT"]))
        raise UserError(
            f"{key}={path} is a base model, which has not learnt to answer: continue a text with {command}, or tune it first "
            "with align.py --config=configs/align/sft.py"
        )


def answers(path: str) -> bool:
    """Return whether a model may have learnt to answer: all but those that train.py alone has made."""
    config = read_config(Path(path))
    return kind_of(config) != "train" or bool(config.get("init_from"))


def _model_near(folder: Path) -> str:
    """Return which folder to name instead: the run around a checkpoint, or a model below."""
    if run := next((place for place in folder.parents if (place / "checkpoints").is_dir() and steps_saved(place)), None):
        return f"it lies in the run {run}: name that"
    below = [path.parent for pattern in ("*", "snapshots/*", "*/snapshots/*") for path in folder.glob(f"{pattern}/config.json")]
    if len(below) == 1:
        return f"did you mean {below[0]}?"
    return "name a workdir with a checkpoint, a Hugging Face folder or a GGUF file"


def check_files(key: str, input: str, text_key: str = "text") -> None:
    """Raise UserError if a text input is no file, no folder with files and no TFDS dataset, or begins with no text.

    Reads the first document of the first file of each part.
    """
    with naming(key):
        if not files.is_path(input.strip()):
            open_sources(input, text_key=text_key)
            return
        if is_run(Path(input.strip()).expanduser()):
            raise UserError(f"data.input={input} is a model, not text; to start from it set --config.init_from={input}")
        for path in files.first_files(input.strip()):
            _check_text(path, text_key)
            if os.path.isfile(os.path.expanduser(input.strip())) and os.path.getsize(path) == 0:
                raise UserError(f"data.input={input}: the file is empty; name files with text")


def _check_text(path: str, text_key: str) -> None:
    """Raise UserError if a file does not begin with a document. Records of align.py are named as such."""
    try:
        next(reading.read_file(path, path, text_key), None)
    except UserError:
        from data.chat.conversations import use_of

        record = None
        with contextlib.suppress(UserError):
            record = next(records.first_records(path), None)
        if record is None or text_key in record.values or not (use := use_of(record.values)):
            raise
        raise UserError(
            f"{record.where}: no {text_key!r}, keys are {reading.listed(record.values)}; {use} --config.init_from=MODEL "
            f"--config.data.input={path}, or set --config.data.text_key"
        ) from None


def is_run(folder: Path) -> bool:
    """Return whether a folder is the workdir of a model or a Hugging Face folder."""
    return (folder / "config.json").is_file() and kind_of(read_config(folder)) in ("train", "align", "import", "published")


def check_records(key: str, input: str, seed: int, kind: str) -> None:
    """Raise the same for an input of records, which may also be a built-in task. kind: see settings.example_kind.

    Reads the first FIRST_RECORDS of the first file of each part.
    """
    with naming(key):
        records.check(input, seed)
        first = list(records.first_records(input, FIRST_RECORDS))
        if first:
            from data.chat.conversations import examples_of

            for _ in examples_of(first, kind, Counter()):
                pass
        elif os.path.isfile(input):
            raise UserError(f"data.input={input}: the file is empty; write one JSON object a line")


def check_apart(key: str, input: str, workdir: Path) -> None:
    """Raise UserError if the workdir is or lies in a folder of the input, which would then read what the run writes."""
    there, here = as_urls(str(workdir)), workdir.resolve()
    if not files.is_path(input):
        return
    around = [url for url in files.urls(input) if f"{there}/".startswith(f"{url}/")]
    if around or any(here.is_relative_to(Path(folder).resolve()) for folder in files.folders(input)):
        raise UserError(f"--workdir={there} lies in {key}={input}, whose files the run reads: name a --workdir outside of it")


def has_data(workdir: Path) -> bool:
    """Return whether the run has prepared its data; then the input files are no longer needed."""
    return any(any(workdir.glob(f"data/*/{name}")) for name in ("dataset.json", "counts.json"))


def check_tokenizer(config: ml_collections.ConfigDict) -> None:
    """Raise UserError if the config names a tokenizer that is not there, or one that cannot be read."""
    if not config.tokenizer:
        return
    if not Path(config.tokenizer).exists():
        cure = "name a tokenizer.model, a tokenizer.json or a folder with one of them"
        raise UserError(f"tokenizer={config.tokenizer}: no such file or folder; {cure}{hub_hint(config.tokenizer)}")
    if not config.init_from:
        load_tokenizer(config.tokenizer)
