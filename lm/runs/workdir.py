"""The folder of a run and its recorded config: a run resumes only with the same values of the IDENTITY keys.

Nothing here loads JAX, so errors show at once.
"""

import contextlib
import copy
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.bucket.places import as_urls, with_paths, with_urls
from lm.cli.config_files import verb_of
from lm.config import model_keys
from lm.errors import UserError
from lm.files.saving import set_aside, write_json
from lm.files.untrusted import MAX_BYTES, check_inside, read_json, shown

# The identity of a run. A resumed run must have the same values of these keys and sections as config.json: the weights, the
# tokenizer and the prepared data of the workdir depend on them. All other keys may change.
IDENTITY = tuple(
    "method objective init_from extend tokenizer chat_template seed sequence_length data model optimizer.name optimizer.turns "
    "optimizer.state_dtype sft.thoughts preference.loss reward.kind rl.algorithm distill.kind distill.teacher "
    "checkpoint".split()
)
# Keys and sections that do not shape what a run learns: layout over devices, memory, logs, what is measured and what is kept.
# The dial is compared by the keys that it sets. A run without a step left to train refuses other values of all other keys.
WITHOUT_EFFECT = tuple(
    "accumulate dial mesh watchdog find_nan profile optimizer.offload preference.share_prompts rl.share_prompts "
    "rl.sampling_devices rl.sampling_tensor data.log_ids model.scan_layers model.remat model.remat_matmuls_last model.offload "
    "model.pipeline model.context_attention evals trackers samples samples_every num_samples valid_every valid_first "
    "valid_batches checkpoint_every keep_last keep_every keep_hours keep_best".split()
)
# Keys of IDENTITY sections that may change when a run resumes: those without effect, the data mixture, the precision of
# products, weights of auxiliary losses, and the maximum context (the checkpoint itself checks the table of learned positions).
RESUMABLE_KEYS = WITHOUT_EFFECT + tuple(
    "data.weights model.quantized_training model.moe.balance_loss model.moe.router_z_loss model.moe.bias_rate "
    "model.moe.capacity_factor model.max_positions".split()
)
# Only trained weights depend on these, so they may change until the first checkpoint.
UNTIL_TRAINED = ("model", "sequence_length", "optimizer.name", "optimizer.turns", "optimizer.state_dtype")
# The values that keys of IDENTITY had before records had them.
FORMER = {"extend.theta": 0.0, "extend.yarn": 0.0, "optimizer.turns": 1}

RECORD, TOKENIZERS = "config.json", ("tokenizer.model", "tokenizer.json")
KEPT = "best_of/conversations.jsonl"  # the training data of best_of
VERBS = {
    "curate": "a corpus",
    "train": "a run of train.py",
    "align": "a run of align.py",
    "evaluate": "an evaluation",
    "serve": "a server",
    "import": "an imported model",
}


# The record.


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json in a workdir or a Hugging Face folder; {} if there is no such file.

    If the file of a workdir is damaged, return the config in the newest checkpoint. Raises UserError if there is none.
    """
    try:
        value = read_json(folder / RECORD)
        check_inside(folder, folder / RECORD)
        if isinstance(value, dict) and (kind_of(value) or not (folder / "checkpoints").is_dir()):
            return with_paths(value)
        problem = "is not the config of a run" if isinstance(value, dict) else "is no JSON object"
    except (FileNotFoundError, NotADirectoryError):  # a GGUF file has settings, but no config
        return {}
    except (UserError, OSError) as error:
        is_other = isinstance(error, OSError) and error.errno not in (errno.EISDIR, errno.ELOOP)  # such as no permission
        if is_other or isinstance(error, UserError) and not (folder / "checkpoints").is_dir():
            raise
        problem = f"cannot be read ({error})"
    except (ValueError, RecursionError) as error:
        problem = f"cannot be read as JSON: {error if (folder / RECORD).stat().st_size else 'it is empty'}"
    saved, _ = _of_checkpoint(folder)
    if saved is None:
        raise UserError(
            f"{folder / RECORD} {problem}, and no checkpoint in the workdir holds the run's config: restore the file, or "
            "delete it to start again"
        )
    return saved


def record(workdir: Path) -> tuple[dict[str, Any] | None, Path]:
    """Return (the config of the run in the workdir or None, the folder that holds it). Raises the errors of `read_config`."""
    if os.path.lexists(workdir / RECORD):
        return read_config(workdir), workdir
    return _of_checkpoint(workdir)


def _of_checkpoint(workdir: Path) -> tuple[dict[str, Any] | None, Path]:
    """Return the config in the newest checkpoint with readable metadata, and that checkpoint's folder."""
    for step in reversed(steps_saved(workdir)):
        folder = workdir / "checkpoints" / str(step)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
            saved = read_json(folder / "meta" / "metadata")["config"]
            if isinstance(saved, dict) and kind_of(saved):
                return with_paths(saved), folder
    return None, workdir


def steps_saved(workdir: Path) -> list[int]:
    """Return the steps of the checkpoints in a workdir, ascending."""
    with contextlib.suppress(OSError):
        return sorted(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdecimal())
    return []


def repair(workdir: Path) -> None:
    """Replace a damaged config.json by the config of the newest checkpoint. The damaged file is renamed, not deleted."""
    path = workdir / RECORD
    if not os.path.lexists(path):
        return
    found = read_config(workdir)
    with contextlib.suppress(OSError, ValueError, RecursionError, UserError):
        value = read_json(path)
        if isinstance(value, dict) and with_paths(value) == found:
            return
    aside = set_aside(path)
    write_json(path, with_urls(found))
    print(
        f"{shown(path)} is damaged: it is now {shown(aside.name)}, and the config of the newest checkpoint is in its place",
        flush=True,
    )


def kept_json(path: Path, fits: Callable[[Any], bool] = lambda value: True) -> Any | None:
    """Return the JSON of a run's internal file; None if it is missing or damaged. A damaged file is reported and renamed.

    fits: whether a value is what the run writes there.
    """
    try:
        value = read_json(path, MAX_BYTES)
        if not fits(value):
            raise ValueError("another value than the run writes")
        return value
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        print(f"{shown(path)} is damaged: it is now {shown(set_aside(path).name)}, and is made again", flush=True)
        return None


def kind_of(config: Mapping[str, Any]) -> str:
    """Return the origin of a config: a verb, "import", "published" (Hugging Face), or "" for none of them."""
    if "model_type" in config or "architectures" in config:
        return "published"
    is_run = isinstance(config.get("model"), Mapping) and isinstance(config.get("dtype"), str)
    return verb_of(config) or ("import" if is_run else "")


def recorded(config, workdir: Path):
    """Return the config as its run records it. best_of is recorded as supervised fine-tuning on its selected answers."""
    if config.get("method") != "best_of":
        return config
    learning = copy.deepcopy(config)
    learning.method = "sft"
    learning.data.input, learning.data.valid_fraction, learning.data.max_examples = str(workdir / KEPT), 0.0, None
    return learning


def read_object(path: Path, cure: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises UserError with the text `cure` if it is damaged."""
    try:
        value = read_json(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {cure}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (no JSON object): {cure}")
    return value


def check_record(config, workdir: Path, *, adopted: bool = True) -> None:
    """Raise UserError if the config cannot resume the run in the workdir: it belongs to another run or another verb.

    adopted: whether the config already has the model keys of `init_from` (lm.train.start.adopt). If not, they are not compared.
    """
    new = recorded(config, workdir).to_dict()
    saved, where = check_kind(new, workdir)
    if saved is None:
        return
    if config.get("method") == "best_of" and str(saved["data"].get("input")).endswith(KEPT):  # the workdir may have moved
        saved["data"]["input"] = new["data"]["input"]
    if _same_tokenizer(workdir, new.get("tokenizer")):
        saved["tokenizer"] = new["tokenizer"]
    if new.get("init_from") and not adopted:
        saved = {key: value for key, value in saved.items() if key != "model"}
    check_resumable(saved, new, where, trained=bool(steps_saved(workdir)))


def check_kind(new: dict[str, Any], workdir: Path) -> tuple[dict[str, Any] | None, Path]:
    """Return `record`. Raises UserError if the workdir is that of another verb, or holds the model that the config reads."""
    for key in ("init_from", "checkpoint", "distill.teacher"):
        _check_apart(key, flat(new).get(key), workdir)
    saved, where = record(workdir)
    if saved is None:
        return None, where
    ours, theirs = kind_of(new), kind_of(saved)
    if theirs == "published":
        raise UserError(f"--workdir={workdir} is a Hugging Face checkpoint: name a new folder for the run")
    if theirs == "import":
        raise UserError(f"--workdir={workdir} is an imported model: name a new folder, and --config.init_from={workdir}")
    if ours != theirs:
        what = VERBS.get(theirs, "no run")
        raise UserError(f"--workdir={workdir}: its {RECORD} is that of {what}, not of {VERBS[ours]}: use another --workdir")
    return saved, where


def check_resumable(old: dict, new: dict, where: Path, *, trained: bool = True) -> None:
    """Raise UserError if two configs are of different runs. The error names the key, both values and `where`.

    A model key that the saved config lacks had its default, one of FORMER its value there. trained: there are weights that
    depend on UNTIL_TRAINED keys.
    """
    fixed = [section for section in IDENTITY if trained or section not in UNTIL_TRAINED]
    before, after = _compared(old), _compared(new)
    for key, value in before.items():
        if _within(key, RESUMABLE_KEYS) or not _within(key, fixed):
            continue
        is_model = key.startswith("model.")
        if is_model and key not in after:
            raise UserError(f"{key} of {where} is unknown here: a checkpoint of another version; use another --workdir")
        if key not in after or _same(value, after[key]):
            continue
        what = "a checkpoint of another architecture" if is_model else "the run there is another one"
        cure = f"leave out --config.{key}" if value is None else f"set --config.{key}={value}"
        raise UserError(
            f"{key} is {value} in {where} and {after[key]} in this config: {what}; {cure}, or use another --workdir"
        )


def _check_apart(key: str, path: str | None, workdir: Path) -> None:
    """Raise UserError if a run would overwrite the model that it reads."""
    if not path or not os.path.exists(path):
        return
    start, own = Path(path).resolve(), workdir.resolve()
    if start == own:
        raise UserError(f"{key}={path} is the workdir itself, which the run would overwrite: use another --workdir")
    if own in start.parents:
        raise UserError(f"{key}={path} lies in --workdir={workdir}, which the run writes: use another --workdir")
    for folder in (start / "checkpoints", start / "data"):
        if folder == own or folder in own.parents:
            raise UserError(f"--workdir={workdir} lies in {folder}, which belongs to {key}: use another --workdir")


def _same_tokenizer(workdir: Path, given: str | None) -> bool:
    """Return whether the given tokenizer has exactly the bytes of the workdir's tokenizer."""
    files = [Path(given or "")] if given and Path(given).is_file() else [Path(given or "") / name for name in TOKENIZERS]
    own = [(workdir / name).read_bytes() for name in TOKENIZERS if (workdir / name).is_file()]
    return bool(given) and any(file.is_file() and file.read_bytes() in own for file in files)


def check_result(config, workdir: Path) -> None:
    """Raise UserError if no step is left to train, and the run had other values of keys that shape its result.

    An interrupted run may end early, by fewer steps. config: with the learning rate that the run will have.
    """
    (saved, _), last = record(workdir), max(steps_saved(workdir), default=0)
    if saved is None or not last:
        return
    epochs, before = config.epochs, saved.get("epochs")
    if epochs is not None and (before is None or epochs > before):
        return
    if last < (config.steps if epochs is None else saved["steps"]):
        return
    lengths = ("steps", "epochs") if last < saved["steps"] else ("epochs",) if epochs is None else ("steps",)
    free = (*WITHOUT_EFFECT, *lengths)
    changed = [
        line
        for key, line in _changed(saved, config.to_dict()).items()
        if not _within(key, free) and (_within(key, RESUMABLE_KEYS) or not _within(key, IDENTITY))  # the others: check_record
    ]
    if changed:
        raise UserError(
            f"--workdir={workdir} is trained to its last step, {last}, with other values than this config has: "
            f"{', '.join(changed)}; use another --workdir for a new run, set the old values, or raise steps or epochs"
        )


def _changed(old: dict, new: dict) -> dict[str, str]:
    """Return "key: old → new" for every key whose value has changed, by key."""
    before, after = _compared(old), _compared(new)
    changed = [key for key in before if key in after and not _same(before[key], after[key])]
    return {key: f"{key}: {before[key]} → {after[key]}" for key in changed}


def _within(key: str, sections: Iterable[str]) -> bool:
    """Return whether a dotted key is one of the keys, or lies in one of the sections."""
    return any(key == section or key.startswith(section + ".") for section in sections)


def save_record(config, workdir: Path) -> None:
    """Write config.json, and print the keys that have changed."""
    saved = read_config(workdir)
    for line in _changed(saved, config.to_dict()).values():
        print(f"changed: {shown(as_urls(line))}", flush=True)
    write_json(workdir / RECORD, with_urls(config.to_dict()))


def finished(config, workdir: Path) -> dict[str, Any] | None:
    """Return the report.json of a finished run, and print that it is finished; None if it is not.

    A run without a report, or with a damaged last checkpoint, is not finished. The steps of a run in epochs are recorded.
    Raises: UserError if it has made another result than the config asks for (`check_result`).
    """
    check_result(config, workdir)
    steps = config.steps
    try:
        report = read_json(workdir / "report.json", MAX_BYTES)
        step, done = report["training"]["steps"], report["finished"]
        if config.epochs is not None:
            steps = step if report["config"].get("epochs") == config.epochs else step + 1
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not done or step < steps or step not in steps_saved(workdir) or not (workdir / "report.html").is_file():
        return None
    from lm.parallel import hosts
    from lm.runs.damage import damage

    if damage(workdir / "checkpoints" / str(step)):
        return None
    if hosts.is_first():
        cure = "raise steps or epochs to train on, or use another --workdir"
        print(f"{as_urls(str(workdir))} is finished at step {step}: {cure}", flush=True)
    return report


def _compared(config: dict) -> dict[str, Any]:
    """Return a config as JSON values by dotted key, with missing keys of the model and of FORMER. Only normuon has turns."""
    config = json.loads(json.dumps(config, default=str))
    if isinstance(config.get("model"), dict):
        sections = {key: value for key, value in model_keys().items() if isinstance(value, dict)}
        broken = [key for key in sections if not isinstance(config["model"].get(key, {}), dict)]
        known = {key: value for key, value in config["model"].items() if key not in broken}
        config["model"] = json.loads(json.dumps(model_keys(**known))) | {key: config["model"][key] for key in broken}
    if config.get("init_from"):
        config["tokenizer"] = config.get("tokenizer") or config["init_from"]
    values = FORMER | flat(config)
    if values.get("optimizer.name") != "normuon":
        del values["optimizer.turns"]
    return values


def flat(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names."""
    found = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one == other or os.path.realpath(one) == os.path.realpath(other)
    return json.dumps(one) == json.dumps(other) or one == other
