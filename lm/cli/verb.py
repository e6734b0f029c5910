"""Code shared by the verbs: flags, one-line errors, exit codes.

Exit codes: 0 done; 2 an error that the user can fix, printed as one line; 1 the run itself failed; 128 + n stopped by signal n.
"""

import argparse
import contextlib
import errno
import gc
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import ml_collections
from absl import flags
from ml_collections import config_flags

from lm.bucket import copies, mirror
from lm.bucket.places import as_urls
from lm.cli import config_files, mistakes
from lm.errors import Ended, Stopped, UserError, out_of_memory, windows_hint
from lm.files import compile_cache

# Errors of the file system that the user can fix. Libraries keep the number (OSError) or only its text; TFDS has its own text.
REFUSALS = [getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EACCES EROFS ENOTDIR EISDIR EEXIST ELOOP EIO".split()]
REFUSED = (*map(os.strerror, REFUSALS), "Not enough disk space")
KERNELS = "LMCRAFT_KERNELS"  # the variable that lm/kernels/ops.py reads
TEXTS = ("--prompt", "--system")  # flags whose value is no path


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, whose errors are UserErrors of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the arguments")


def define_flags() -> None:
    """Define --config and --workdir."""
    flags.FLAGS.set_gnu_getopt(True)
    config_flags.DEFINE_config_file("config", None, "File with get_config(); set its keys with --config.KEY=VALUE.")
    flags.DEFINE_string("workdir", None, "Folder of the run, or gs://… or s3://…; the same command again resumes it.")
    flags.DEFINE_string("kernels", None, "Force backends: reference, or attention=blocks,product=xla (lm/kernels/ops.py).")


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


def parse(
    argv: list[str], needs_workdir: bool = True, unless: tuple[str, ...] = ()
) -> tuple[ml_collections.ConfigDict, Path | None]:
    """Return the resolved config and the workdir. Raises UserError for an unknown or missing key or a wrong type.

    unless: flags that make the workdir unnecessary.
    """
    verb = Path(argv[0]).stem
    argv[:] = [argv[0], *map(_tidied, argv[1:])]  # in place, because ml_collections reads sys.argv itself
    path = _config_path(argv)
    if path is None:
        stray = next((arg for arg in argv[1:] if arg.endswith(".py") and Path(arg).is_file()), None)
        raise UserError(f"--config is missing: did you mean --config={stray}?" if stray else config_files.missing(verb))
    found = config_files.find(path, verb)
    argv[:] = [
        f"--config={found}" if arg == f"--config={path}" else found if before == "--config" else arg
        for before, arg in zip(["", *argv], argv)
    ]
    config, path = config_files.load(found), found
    config_files.check_verb(config, path, verb)
    known = set(config_files.listed(config))
    argv[:] = [_spelt_out(arg, known) for arg in argv]
    try:
        rest = flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(mistakes.wrong_value(config, error)) from None
    except flags.UnrecognizedFlagError as error:
        raise UserError(mistakes.unknown_flag(error.flagname, config)) from None
    except flags.Error as error:
        raise UserError(mistakes.missing_value(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections names only the last part of the key, so search the whole config for it.
        raise UserError(mistakes.unknown_key(argv, path, config, error)) from None
    if len(rest) > 1:
        raise UserError(mistakes.stray(rest[1:], config))
    if flags.FLAGS.kernels is not None:
        os.environ[KERNELS] = flags.FLAGS.kernels  # read when a program is traced
    # This differs from `known` if a whole section was set, such as --config.model.moe="{…}".
    given = set(config_files.listed(flags.FLAGS.config))
    for key in sorted(given - known):
        raise UserError(f"--config.{key}: no such key in {path}" + mistakes.nearest(key, config))
    for key in sorted(known - given):
        raise UserError(f"--config.{key} is left out of its section: set single keys instead, such as --config.{key}=…")
    _choose_length(argv)
    if not needs_workdir or (any(flags.FLAGS[flag].value for flag in unless) and not flags.FLAGS.workdir):
        return flags.FLAGS.config, None
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: name the folder of the run, such as --workdir=runs/mine")
    workdir = mirror.workdir_of(flags.FLAGS.workdir, flags.FLAGS.config, verb, lambda line: fail(line, 2))
    check_folder(workdir, "workdir")
    return flags.FLAGS.config, workdir


def check_folder(folder: Path, flag: str) -> None:
    """Raise UserError if a folder cannot be written or made: it is a file, or its place is not writable."""
    if hint := windows_hint(folder):
        raise UserError(f"--{flag}={folder}{hint}")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"--{flag}={folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--{flag}={folder}: you may not write in {there}: name a folder elsewhere")


def parse_flags(argv: list[str], takes_arguments: bool = False) -> list[str]:
    """Parse the flags of a command without a config. Return the program and the arguments that are no flags.

    Raises UserError for an unknown flag or a wrong value, and for such arguments unless the command takes them.
    """
    try:
        rest = flags.FLAGS([arg if arg.startswith(TEXTS) else _tidied(arg) for arg in argv])
    except flags.UnrecognizedFlagError as error:
        raise UserError(mistakes.unknown_flag(error.flagname)) from None
    except flags.Error as error:
        raise UserError(mistakes.missing_value(error)) from None
    if len(rest) > 1 and not takes_arguments:
        raise UserError(mistakes.stray(rest[1:]))
    copies.fetch_models(flags.FLAGS)
    return rest


@contextlib.contextmanager
def command(usage: str, unless: tuple[str, ...] = ()) -> Iterator[tuple[ml_collections.ConfigDict, Path | None]]:
    """Parse the flags and yield (config, workdir); print errors of the block as one line and exit. --help prints `usage`.

    unless: flags with which no --workdir is needed.
    """
    define_flags()
    with guard():
        if wants_help(sys.argv):
            print(help_text(usage, sys.argv))
            sys.exit()
        config, workdir = parse(sys.argv, unless=unless)
        copies.fetch(config, flags.FLAGS.workdir)
        compile_cache.switch_on()
        yield config, workdir


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Make one line and an exit code of errors of the block that the user can fix, and of Ctrl-C.

    In a job of several processes none returns before all are done, and an error on one ends all (lm/parallel/hosts.py).
    """
    sys.unraisablehook = _without_echoes
    # What a start imports stays: Python's usual thresholds spend a fifth of that time looking for garbage.
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    try:
        yield
        if problem := mirror.finish():
            raise UserError(problem)
        if (hosts := _hosts()) is not None:
            hosts.leave()
        sys.stdout.flush()
    except UserError as error:
        fail(str(error), 2)
    except Ended as ended:
        if isinstance(ended, Stopped) and (hosts := _hosts()) is not None:
            hosts.leave()
        fail(str(ended), ended.code)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        fail("the reader of the output has left", 128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        fail("interrupted; finished work is kept, run the same command to resume", 130)
    except Exception as error:
        config = flags.FLAGS.config if "config" in flags.FLAGS else None
        if line := out_of_memory(error, set(config_files.listed(config)) if config is not None else ()):
            fail(f"{line}; finished work is kept", 1)
        refusal = _refusal(error)
        if refusal is None:
            if (hosts := _hosts()) is None or not hosts.several():
                mirror.finish()
                raise
            fail(f"{type(error).__name__}: {error}", 1, traceback.format_exc())
        code = 1 if os.strerror(errno.EIO) in refusal else 2  # a start on another host may cure a failing disk
        fail(f"{refusal}; finished work is kept, fix this and run the same command again", code)


def _reader_has_left() -> bool:
    """Return whether nobody reads the standard output any more, as after `| head`. What is left of it is then dropped."""
    output = sys.__stdout__.fileno()
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def fail(message: str, code: int, details: str = "") -> None:
    """Print `details` and one line, and end all processes of the job. Does not wait for threads, because they may hang."""
    sys.stdout.flush()
    message = "; ".join(filter(None, (mistakes.one_line(message), mirror.finish())))
    line = f"{_program()}: {as_urls(message)}"
    if (hosts := _hosts()) is not None:
        hosts.end(line, code, details)
    print(details + line, file=sys.stderr, flush=True)
    os._exit(code)


def _program() -> str:
    """Return the name of this command: train.py, or of python -m data.tasks, whose file is __main__.py, data.tasks."""
    name = Path(sys.argv[0]).name
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return module.name.removesuffix(".__main__") if name == "__main__.py" and module else name


def _hosts():
    """Return lm.parallel.hosts, or None if it was not imported: errors in flags are reported without loading JAX."""
    return sys.modules.get("lm.parallel.hosts")


def run(main: Callable[[], object], usage: str | None, values: flags.FlagValues = flags.FLAGS) -> None:
    """Run the main function of a program, or for --help print its docstring, `usage`, and its flags, `values`."""
    if wants_help(sys.argv):
        print(f"{usage}\n{values.main_module_help()}")
    else:
        with guard():
            main()


def wants_help(argv: list[str]) -> bool:
    return any(arg in ("--help", "-h", "--helpfull", "-help") for arg in argv)


def help_text(usage: str, argv: list[str]) -> str:
    """Return the verb's docstring and flags, and with --config every key and its value."""
    lines = [usage.strip(), "", *(f"--{name}: {flags.FLAGS[name].help}" for name in ("config", "workdir"))]
    path = _config_path(list(map(_tidied, argv)))
    if path is None:
        return "\n".join([*lines, "", "With --config=FILE --help: the keys of that config and their values."])
    path = config_files.find(path, Path(argv[0]).stem)
    config = config_files.load(path)
    lines += ["", f"Keys of {path}:"]
    lines += [f"  --config.{key}={config_files.value(config, key)}" for key in config_files.listed(config)]
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
    return None if path and path.startswith("-") else path or None


def _tidied(arg: str) -> str:
    """Write -config=… with two dashes, and expand ~/, which a shell leaves alone after "="."""
    if re.match(r"-(config|workdir|describe)\b", arg):
        arg = f"-{arg}"
    name, equals, value = arg.partition("=")
    return f"{name}={os.path.expanduser(value)}" if equals and name.startswith("-") and value.startswith("~/") else arg


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
