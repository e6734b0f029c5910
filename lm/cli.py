"""Code shared by the verbs: flags, one-line errors, exit codes.

Exit codes: 0 done; 2 an error that the user can fix, printed as one line; 1 the run itself failed; 128 + n stopped by signal n.
"""

import difflib
import errno
import gc
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from lm import compile_cache
from lm.errors import UserError

# Errors of the file system that the user can fix, whichever library raises them.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
# Libraries keep the number (OSError) or only its text; TFDS has its own text.
REFUSED = (*map(os.strerror, REFUSALS), "Not enough disk space")


def define_flags() -> None:
    """Define --config and --workdir."""
    flags.FLAGS.set_gnu_getopt(True)
    config_flags.DEFINE_config_file("config", None, "File with get_config(); set its keys with --config.KEY=VALUE.")
    flags.DEFINE_string("workdir", None, "Folder of the run; the same command again resumes it.")


class _Choice(flags.ArgumentParser):
    def __init__(self, choices: tuple[str, ...]):
        self.choices = choices

    def parse(self, argument: str) -> str | None:
        if argument in ("true", "false"):
            return self.choices[0] if argument == "true" else None
        if argument not in self.choices:
            raise ValueError(f"is none of {', '.join(self.choices)}")
        return argument


def define_choice(name: str, choices: tuple[str, ...], help: str) -> None:
    """Define --NAME=CHOICE; --NAME alone means the first choice. The flag is None if it is not given."""
    flags.DEFINE_flag(flags.Flag(_Choice(choices), None, name, None, help, boolean=True))


def parse(argv: list[str], needs_workdir: bool = True, unless: str = "") -> tuple[ml_collections.ConfigDict, Path | None]:
    """Return the resolved config and the workdir. Raises UserError for an unknown or missing key or a wrong type.

    unless: a flag that makes the workdir unnecessary.
    """
    path = _config_path(argv)
    if path is None:
        raise UserError("--config is missing: name a file such as configs/train/tiny.py")
    known = set(_keys(_load(path)))
    argv[:] = [_spelt_out(arg, known) for arg in argv]  # in place, because ml_collections reads sys.argv itself
    try:
        rest = flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(path, error)) from None
    except flags.Error as error:
        raise UserError(_one_line(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections names only the last part of the key, so search the whole config for it.
        raise UserError(_unknown_key(argv, path, error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: options are written --name=value")
    given = set(_keys(flags.FLAGS.config))  # differs from known if a whole section was set, such as --config.model.moe="{…}"
    for key in sorted(given - known):
        raise UserError(f"--config.{key}: no such key in {path}" + _nearest(key, sorted(known)))
    for key in sorted(known - given):
        raise UserError(f"--config.{key} is left out of its section: set single keys instead, such as --config.{key}=…")
    _choose_length(argv)
    if not needs_workdir or (unless and flags.FLAGS[unless].value):
        return flags.FLAGS.config, None
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: name the folder of the run")
    workdir = Path(flags.FLAGS.workdir)
    for folder in (workdir, *workdir.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--workdir={workdir}: {folder} is a file; name a folder")
    return flags.FLAGS.config, workdir


def parse_flags(argv: list[str]) -> None:
    """Parse the flags of a command without a config. Raises UserError for an unknown flag, wrong value or extra argument."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: options are written --name=value")


def run(
    main: Callable[[ml_collections.ConfigDict, Path | None], None], usage: str, needs_workdir: bool = True, unless: str = ""
) -> None:
    """Parse the flags and call main(config, workdir); print errors as one line and exit. --help prints `usage`."""
    define_flags()
    if wants_help(sys.argv):
        print(help_text(usage, sys.argv))
        return

    def parsed() -> None:
        config, workdir = parse(sys.argv, needs_workdir, unless)
        compile_cache.switch_on()
        main(config, workdir)

    guard(parsed)


def guard(call: Callable[[], None]) -> None:
    """Call `call`. Errors that the user can fix, and Ctrl-C, become one line and an exit code.

    In a job of several processes none returns before all are done, and an error on one ends all (lm/parallel/hosts.py).
    """
    sys.unraisablehook = _without_echoes
    # What a start imports stays: Python's usual thresholds spend a fifth of that time looking for garbage.
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    try:
        call()
        if (hosts := _hosts()) is not None:
            hosts.leave()
    except UserError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted; finished work is kept, run the same command to resume", 130)
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            if (hosts := _hosts()) is None or not hosts.several():
                raise
            fail(f"{type(error).__name__}: {error}", 1, traceback.format_exc())
        fail(f"{refusal}; finished work is kept, fix this and run the same command again", 2)


def fail(message: str, code: int, details: str = "") -> None:
    """Print `details` and one line, and end all processes of the job. Does not wait for threads, because they may hang."""
    sys.stdout.flush()
    line = f"{Path(sys.argv[0]).name}: {_one_line(message)}"
    if (hosts := _hosts()) is not None:
        hosts.end(line, code, details)
    print(details + line, file=sys.stderr, flush=True)
    os._exit(code)


def _hosts():
    """Return lm.parallel.hosts, or None if it was not imported: errors in flags are reported without loading JAX."""
    return sys.modules.get("lm.parallel.hosts")


def wants_help(argv: list[str]) -> bool:
    return any(arg in ("--help", "-h", "--helpfull", "-help") for arg in argv)


def help_text(usage: str, argv: list[str]) -> str:
    """Return the verb's docstring and flags, and with --config every key and its value."""
    lines = [usage.strip(), "", *(f"--{name}: {flags.FLAGS[name].help}" for name in ("config", "workdir"))]
    path = _config_path(argv)
    if path is None:
        return "\n".join([*lines, "", "With --config=FILE --help: the keys of that config and their values."])
    config = _load(path)
    lines += ["", f"Keys of {path}:"]
    lines += [f"  --config.{key}={_value(config, key)}" for key in _keys(config)]
    return "\n".join(lines)


def _without_echoes(unraisable) -> None:
    """Hide "Event loop is closed", which TensorStore's threads print after a save has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _refusal(error: BaseException | None) -> str | None:
    """Return "file: reason" if the error or one of its causes is a file system error in REFUSALS, else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            return f"{error.filename or _workdir()}: {error.strerror}"
        for reason in REFUSED:
            if reason in str(error):
                return f"{_workdir()}: {reason}"
        error = error.__cause__ or error.__context__
    return None


def _workdir() -> str:
    return flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else "a file"


def _config_path(argv: list[str]) -> str | None:
    path = next((arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")), None)
    if path is None and "--config" in argv[:-1]:
        path = argv[argv.index("--config") + 1]
    return path


def _spelt_out(arg: str, known: set[str]) -> str:
    """Expand --config.data=FILES to --config.data.input=FILES."""
    name, _, value = arg.partition("=")
    key = f"{name.removeprefix('--config.')}.input"
    short = name.startswith("--config.") and key in known and value and not value.startswith("{")
    return f"--config.{key}={value}" if short else arg


def _choose_length(argv: list[str]) -> None:
    """Let --config.steps replace the epochs of a config file. Raises UserError if both are given."""
    given = {arg.partition("=")[0] for arg in argv} & {"--config.steps", "--config.epochs"}
    if len(given) == 2:
        raise UserError("--config.steps and --config.epochs both say how long to train: give one of them")
    if "--config.steps" in given and "epochs" in flags.FLAGS.config:
        flags.FLAGS.config.epochs = None


def _check_config_file(path: str) -> None:
    if Path(path).is_file():
        return
    folder = Path(path).parent if Path(path).parent.is_dir() else Path("configs/train")
    known = [str(p) for p in sorted(folder.glob("*.py")) if p.name != "__init__.py"]
    raise UserError(f"--config={path}: no such file" + _nearest(path, known))


def _unknown_key(argv: list[str], path: str, error: Exception) -> str:
    """Return the error message for a --config.KEY that is not in the file's config, with the nearest key."""
    config = _load(path)
    known = sorted(_keys(config))
    for arg in argv:
        match = re.match(r"--(?:no)?config\.([^=]+)", arg)
        if match and match[1] not in known:
            return f"--config.{match[1]}: no such key in {path}" + _nearest(match[1], known)
    return f"--config={path}: {_one_line(error)}"


def _wrong_value(path: str, error: Exception) -> str:
    """Return the error message for a value of a wrong type, with the type and default from the config."""
    match = re.match(r"flag (--config\.([^=]+)=.*?): ", str(error))
    usual = _value(_load(path), match[2]) if match else None
    if isinstance(usual, ml_collections.ConfigDict):
        return f"{match[1]}: a section, not a key; its keys are {', '.join(_keys(usual, match[2] + '.'))}"
    if usual is None:
        return _one_line(error)
    return f"{match[1]}: must be of type {type(usual).__name__}, such as {usual}"


def _load(path: str) -> ml_collections.ConfigDict:
    """Return the config of FILE, or of FILE:ARGUMENT; the argument is passed to get_config."""
    file, *argument = path.split(":", 1)
    _check_config_file(file)
    scope: dict = {"__name__": "config", "__file__": file}
    exec(compile(Path(file).read_text(), file, "exec"), scope)
    if argument and not inspect.signature(scope["get_config"]).parameters:
        raise UserError(f"--config={path}: {file} takes no argument after a colon")
    try:
        return scope["get_config"](*argument)
    except KeyError as error:
        # From a locked section; ml_collections' message lists all its keys and values.
        unknown = re.match(r'Key "(.*?)" does not exist and cannot be added', str(error.args[0]))
        if unknown is None:
            raise
        near = re.search(r'Did you mean "(.*?)"', error.args[0])
        hint = f"; did you mean {near[1]}?" if near else ""
        raise UserError(f"--config={path}: the file sets {unknown[1]!r}, which is no key of its section{hint}") from None


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[str]:
    for key in config:
        value = config.get_ref(key).get()
        if isinstance(value, ml_collections.ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _value(config: ml_collections.ConfigDict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def _nearest(name: str, known: list[str]) -> str:
    by_end = difflib.get_close_matches(name.split(".")[-1], [key.split(".")[-1] for key in known], n=1, cutoff=0.6)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    near = near or [key for key in known if by_end and key.split(".")[-1] == by_end[0]]
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
