"""What the five verbs share: flags, one-line errors, exit codes.

Exit codes: 0 done; 2 something the user can mend, said in one line; 1 the run itself failed; 128 + n stopped by signal n.
"""

import difflib
import errno
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

# What a file system may refuse; whatever layer it surfaces in, the user can mend it.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
# The libraries between keep the number (OSError), or only its words; TFDS has words of its own.
REFUSED = (*map(os.strerror, REFUSALS), "Not enough disk space")


def define_flags() -> None:
    """--config and --workdir."""
    flags.FLAGS.set_gnu_getopt(True)
    config_flags.DEFINE_config_file("config", None, "File with get_config(); set its keys with --config.KEY=VALUE.")
    flags.DEFINE_string("workdir", None, "Folder that the run lives in; the same line again resumes it.")


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
    """--NAME=CHOICE, or --NAME for the first of them; the flag is None where it is not given."""
    flags.DEFINE_flag(flags.Flag(_Choice(choices), None, name, None, help, boolean=True))


def parse(argv: list[str], needs_workdir: bool = True, unless: str = "") -> tuple[ml_collections.ConfigDict, Path | None]:
    """The resolved config and the workdir. Raises UserError for what is misspelt, of a wrong type, or missing.

    unless: a flag with which no workdir is needed.
    """
    path = _config_path(argv)
    if path is None:
        raise UserError("--config is missing: name a file such as configs/train/tiny.py")
    known = set(_keys(_load(path)))
    argv[:] = [_spelt_out(arg, known) for arg in argv]  # in place: ml_collections looks into sys.argv itself
    try:
        rest = flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(path, error)) from None
    except flags.Error as error:
        raise UserError(_one_line(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections says only the last part of the key; ours is looked for in the whole config.
        raise UserError(_unknown_key(argv, path, error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: options are written --name=value")
    given = set(_keys(flags.FLAGS.config))  # others than known with a whole section, such as --config.model.moe="{…}"
    for key in sorted(given - known):
        raise UserError(f"--config.{key}: no such key in {path}" + _nearest(key, sorted(known)))
    for key in sorted(known - given):
        raise UserError(f"--config.{key} is left out of its section: set single keys instead, such as --config.{key}=…")
    if not needs_workdir or (unless and flags.FLAGS[unless].value):
        return flags.FLAGS.config, None
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: name the folder that the run lives in")
    workdir = Path(flags.FLAGS.workdir)
    for folder in (workdir, *workdir.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--workdir={workdir}: {folder} is a file; name a folder")
    return flags.FLAGS.config, workdir


def run(
    main: Callable[[ml_collections.ConfigDict, Path | None], None], usage: str, needs_workdir: bool = True, unless: str = ""
) -> None:
    """Parses, calls main(config, workdir), and turns its errors into a line and an exit code; --help prints `usage`."""
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
    """Calls; what the user can mend, and Ctrl-C, become a line and an exit code.

    Of several processes none returns before all are done, and an error on one of them ends all (lm/parallel/hosts.py).
    """
    sys.unraisablehook = _without_echoes
    try:
        call()
        if (hosts := _hosts()) is not None:
            hosts.leave()
    except UserError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted; what was complete is kept, run the same line to go on", 130)
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            if (hosts := _hosts()) is None or not hosts.several():
                raise
            fail(f"{type(error).__name__}: {error}", 1, traceback.format_exc())
        fail(f"{refusal}; what was complete is kept, mend it and run the same line again", 2)


def fail(message: str, code: int, details: str = "") -> None:
    """Ends the process, and all others of its job, with one line below `details`; waits for no thread, which may be stuck."""
    sys.stdout.flush()
    line = f"{Path(sys.argv[0]).name}: {_one_line(message)}"
    if (hosts := _hosts()) is not None:
        hosts.end(line, code, details)
    print(details + line, file=sys.stderr, flush=True)
    os._exit(code)


def _hosts():
    """lm.parallel.hosts, or None where JAX was not read: a mistake in the flags is answered without it."""
    return sys.modules.get("lm.parallel.hosts")


def wants_help(argv: list[str]) -> bool:
    return any(arg in ("--help", "-h", "--helpfull", "-help") for arg in argv)


def help_text(usage: str, argv: list[str]) -> str:
    """The verb's docstring, its flags, and every key with its value where a config is named."""
    lines = [usage.strip(), "", *(f"--{name}: {flags.FLAGS[name].help}" for name in ("config", "workdir"))]
    path = _config_path(argv)
    if path is None:
        return "\n".join([*lines, "", "With --config=FILE --help: the keys of that config and their values."])
    config = _load(path)
    lines += ["", f"Keys of {path}:"]
    lines += [f"  --config.{key}={_value(config, key)}" for key in _keys(config)]
    return "\n".join(lines)


def _without_echoes(unraisable) -> None:
    """TensorStore's threads go on reporting to the event loop of a save that has failed, and print that it is closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _refusal(error: BaseException | None) -> str | None:
    """Which file, and why, if the error or one that it came from is a refusal of the file system."""
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
    """--config.data=FILES is short for --config.data.input=FILES."""
    name, _, value = arg.partition("=")
    key = f"{name.removeprefix('--config.')}.input"
    short = name.startswith("--config.") and key in known and value and not value.startswith("{")
    return f"--config.{key}={value}" if short else arg


def _check_config_file(path: str) -> None:
    if Path(path).is_file():
        return
    folder = Path(path).parent if Path(path).parent.is_dir() else Path("configs/train")
    known = [str(p) for p in sorted(folder.glob("*.py")) if p.name != "__init__.py"]
    raise UserError(f"--config={path}: no such file" + _nearest(path, known))


def _unknown_key(argv: list[str], path: str, error: Exception) -> str:
    """Finds the --config.KEY that is not in the file's config, and the key nearest to it."""
    config = _load(path)
    known = sorted(_keys(config))
    for arg in argv:
        match = re.match(r"--(?:no)?config\.([^=]+)", arg)
        if match and match[1] not in known:
            return f"--config.{match[1]}: no such key in {path}" + _nearest(match[1], known)
    return f"--config={path}: {_one_line(error)}"


def _wrong_value(path: str, error: Exception) -> str:
    """absl names the key and Python's complaint; what the key is like stands in the config."""
    match = re.match(r"flag (--config\.([^=]+)=.*?): ", str(error))
    usual = _value(_load(path), match[2]) if match else None
    if isinstance(usual, ml_collections.ConfigDict):
        return f"{match[1]}: a section, not a key; its keys are {', '.join(_keys(usual, match[2] + '.'))}"
    if usual is None:
        return _one_line(error)
    return f"{match[1]}: must be of type {type(usual).__name__}, such as {usual}"


def _load(path: str) -> ml_collections.ConfigDict:
    """The config of FILE, or of FILE:ARGUMENT, which is given to its get_config."""
    file, *argument = path.split(":", 1)
    _check_config_file(file)
    scope: dict = {"__name__": "config", "__file__": file}
    exec(compile(Path(file).read_text(), file, "exec"), scope)
    if argument and not inspect.signature(scope["get_config"]).parameters:
        raise UserError(f"--config={path}: {file} takes no argument after a colon")
    try:
        return scope["get_config"](*argument)
    except KeyError as error:
        # Of a locked section; ml_collections tells all its keys and values.
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
