"""What the five verbs share: flags, one-line errors, exit codes.

Exit codes: 0 done; 2 something the user can mend, said in one line; 1 the run itself failed; 128 + n stopped by signal n.
"""

import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from lm.errors import UserError


def define_flags(usage: str) -> None:
    """--config and --workdir, and `usage` as the text of --help."""
    flags.FLAGS.set_gnu_getopt(True)
    sys.modules["__main__"].__doc__ = usage
    config_flags.DEFINE_config_file("config", None, "File with get_config(); set its keys with --config.KEY=VALUE.")
    flags.DEFINE_string("workdir", None, "Folder that the run lives in; the same line again resumes it.")


def parse(argv: list[str]) -> tuple[ml_collections.ConfigDict, Path]:
    """The resolved config and the workdir. Raises UserError for what is misspelt, of a wrong type, or missing."""
    path = next((arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")), None)
    if path is None and "--config" in argv[:-1]:
        path = argv[argv.index("--config") + 1]
    wants_help = any(arg in ("--help", "-h", "--helpfull", "-help") for arg in argv)
    if not wants_help:
        if path is None:
            raise UserError("--config is missing: name a file such as configs/train/tiny.py")
        _check_config_file(path.split(":")[0])
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(_one_line(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections says only the last part of the key; ours is looked for in the whole config.
        raise UserError(_unknown_key(argv, path, error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: options are written --name=value")
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: name the folder that the run lives in")
    return flags.FLAGS.config, Path(flags.FLAGS.workdir)


def run(main: Callable[[ml_collections.ConfigDict, Path], None], usage: str) -> None:
    """Parses, calls main(config, workdir), and turns its errors into a line and an exit code."""
    define_flags(usage)
    try:
        main(*parse(sys.argv))
    except UserError as error:
        fail(str(error), 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
            raise
        fail(f"{error.filename or 'a file'}: {error.strerror}; nothing that was complete is lost, mend it and run again", 2)


def fail(message: str, code: int) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr)
    sys.stdout.flush()
    os._exit(code) if code >= 128 else sys.exit(code)


def write_json(path: Path, value: object) -> None:
    """Writes beside, then renames."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(beside, path)


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


def _load(path: str) -> ml_collections.ConfigDict:
    scope: dict = {"__name__": "config", "__file__": path}
    exec(compile(Path(path).read_text(), path, "exec"), scope)
    return scope["get_config"]()


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[str]:
    for key in config:
        value = config.get_ref(key).get()
        if isinstance(value, ml_collections.ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _nearest(name: str, known: list[str]) -> str:
    by_end = difflib.get_close_matches(name.split(".")[-1], [key.split(".")[-1] for key in known], n=1, cutoff=0.6)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    near = near or [key for key in known if by_end and key.split(".")[-1] == by_end[0]]
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
