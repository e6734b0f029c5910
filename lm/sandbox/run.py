"""Runs a stranger's Python in a process of its own, with bounds on time, memory, output, files and processes.

What the code does is an outcome, never an exception here. It can compute, use the standard library, read its input and write
its output; and, where `strength` names namespaces and Landlock, write files in an empty folder of its own, which ends with
it. It can start no process or thread, open no socket, signal no one, and read nothing but Python's library.

The layers are what the machine gives: see `strength`. On Linux the seccomp filter is always there, for root too and inside a
container; without it nothing is run. On macOS there are limits and a session alone, which stops accidents, not attacks.
"""

import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

# What codes may name to have it loaded before the doors close. Others of the standard library can be imported as well where
# `strength` names Landlock, unless they need libraries of the system.
MODULES = (
    "__future__",
    "abc",
    "argparse",
    "array",
    "ast",
    "base64",
    "binascii",
    "bisect",
    "bz2",
    "calendar",
    "cmath",
    "codecs",
    "collections",
    "contextlib",
    "copy",
    "csv",
    "ctypes",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "errno",
    "fcntl",
    "fnmatch",
    "fractions",
    "functools",
    "glob",
    "graphlib",
    "gzip",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "keyword",
    "locale",
    "lzma",
    "math",
    "mmap",
    "numbers",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "platform",
    "pprint",
    "queue",
    "random",
    "re",
    "resource",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "traceback",
    "types",
    "typing",
    "unicodedata",
    "unittest",
    "urllib",
    "uuid",
    "warnings",
    "weakref",
    "xml",
    "zlib",
    "zoneinfo",
)
LAZILY = {"datetime": ("_strptime",), "time": ("_strptime",)}  # what these import only when it is needed

START = "import sys; sys.path.append({!r}); from confinement import supervisor; sys.path.pop(); supervisor.main()"

Outcome = Literal["ok", "error", "timeout", "memory", "killed", "refused"]


class Result(NamedTuple):
    """How a run ended.

    outcome: ok: ended with status 0. error: an exception or another status. timeout: took longer than it might. memory: an
        uncaught MemoryError. killed: ended by a signal, or by us since it wrote too much. refused: an uncaught
        PermissionError, so it asked for what it may not have; or it was not run at all.
    stdout, stderr: what it wrote, cut at the limit; in brackets at the end of stderr, why it was stopped.
    seconds: from its start to its end.
    value: `repr` of the last statement's value if that is an expression with a value, else "".
    finished: the code ran to its end. A grader must ask for it, since `sys.exit(0)` ahead of the tests is "ok" too.

    Code that sets out to can forge value and finished; it runs in the process that reports them.
    """

    outcome: Outcome
    stdout: str
    stderr: str
    seconds: float
    value: str = ""
    finished: bool = False


def run_python(
    code: str, *, stdin: str = "", timeout: float = 5.0, memory_mib: int = 256, output_limit: int = 64 << 10
) -> Result:
    """Runs `code` as a main program.

    Args:
        timeout: seconds of wall time, and of processor time.
        memory_mib: of address space, beside what the interpreter has.
        output_limit: bytes of stdout, of stderr and of the value.
    """
    return run_many([code], stdin=[stdin], timeout=timeout, memory_mib=memory_mib, output_limit=output_limit)[0]


def run_many(
    codes: Sequence[str],
    *,
    stdin: Sequence[str] | None = None,
    timeout: float = 5.0,
    memory_mib: int = 256,
    output_limit: int = 64 << 10,
    workers: int | None = None,
    without: Collection[str] = (),
) -> list[Result]:
    """Runs each of `codes` apart from the others, `workers` (default: one per core) at a time; results in the order of codes.

    One interpreter starts, and forks for each of them: a few milliseconds instead of tens.

    Args:
        stdin: a text for each of the codes.
        without: layers to leave out, of those that `strength` names; for tests of the others.
    """
    return [result for result, _ in _run(codes, stdin, timeout, memory_mib, output_limit, workers, without)]


@functools.cache
def strength(without: Collection[str] = ()) -> tuple[str, ...]:
    """The layers that are active on this machine for this user: session and limits always; on Linux also seccomp, no new
    privileges, capabilities (none are left) and a death signal (no child outlives us), and, where the kernel or the
    container gives them, landlock (which files) and namespaces (a folder of its own, no network devices)."""
    return _run([""], None, 10.0, 64, 1024, 1, without)[0][1]


def _run(
    codes: Sequence[str],
    stdin: Sequence[str] | None,
    timeout: float,
    memory_mib: int,
    output_limit: int,
    workers: int | None,
    without: Collection[str],
) -> list[tuple[Result, tuple[str, ...]]]:
    if not codes:
        return []
    workers = min(workers or os.cpu_count() or 1, len(codes))
    words = set(re.findall(r"\w+", " ".join(codes)))
    modules = [name for name in MODULES if name in words]
    request = {
        "jobs": [{"code": code, "stdin": text} for code, text in zip(codes, stdin or [""] * len(codes), strict=True)],
        "modules": [*modules, *(lazy for name in modules for lazy in LAZILY.get(name, ()))],
        "timeout": timeout,
        "memory_mib": memory_mib,
        "output_limit": output_limit,
        "workers": workers,
        "without": list(without),
        "parent": os.getpid(),
    }
    start = START.format(str(Path(__file__).parent))
    keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC0", **keep}  # so that a run can be repeated
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-s", "-S", "-P", "-X", "utf8", "-c", start],
                input=json.dumps(request).encode(),
                capture_output=True,
                cwd=folder,
                env=environment,
                start_new_session=True,
                timeout=30 + timeout * math.ceil(len(codes) / workers),
            )
            lines, complaint = done.stdout, done.stderr
        except subprocess.TimeoutExpired as error:
            lines, complaint = error.stdout or b"", b"the supervisor hangs"
    results = [(Result("refused", "", f"[not run: {complaint.decode(errors='replace')[-2000:]}]", 0.0), ())] * len(codes)
    for line in lines.splitlines():
        result = json.loads(line)
        number, active = result.pop("number"), result.pop("layers")
        results[number] = Result(**result), tuple(active)
    return results
