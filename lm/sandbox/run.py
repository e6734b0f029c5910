"""Run untrusted Python in a separate process, with limits on time, memory, output, files and processes.

Errors of the code are reported as an outcome, never raised here. The code can compute, use the standard library, read its input
and write its output. If `strength` names namespaces and Landlock, it can also write files in its own empty folder, which is
deleted afterwards. It cannot start a process or thread, open a socket, signal another process, or read any file except Python's
library.

The layers of confinement depend on the machine: see `strength`. On Linux the seccomp filter is required, also for root and
inside a container; without it nothing runs. On macOS there are only limits and a session: they stop accidents, not attacks.
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

# Modules that are imported before confinement if the code names them. With Landlock (see `strength`) the code can import other
# modules of the standard library too, unless they need system libraries.
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
LAZILY = {"datetime": ("_strptime",), "time": ("_strptime",)}  # modules that these import later, on first use

START = "import sys; sys.path.append({!r}); from confinement import supervisor; sys.path.pop(); supervisor.main()"

Outcome = Literal["ok", "error", "timeout", "memory", "killed", "refused"]


class Result(NamedTuple):
    """The result of a run.

    outcome: ok: exit status 0. error: an exception or another status. timeout: exceeded the time limit. memory: an uncaught
        MemoryError. killed: ended by a signal, or by us because it wrote too much. refused: an uncaught PermissionError, which
        means a forbidden operation; or the code was not run at all.
    stdout, stderr: its output, cut at the limit; stderr ends with the reason in brackets if the run was stopped.
    seconds: wall time of the run.
    value: `repr` of the last statement's value if it is an expression other than None, else "".
    finished: whether the code ran to its end. A grader must check it, because `sys.exit(0)` before the tests is also "ok".

    Malicious code can forge value and finished, because it runs in the process that reports them.
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
    """Run `code` as a main program.

    Args:
        timeout: limit in seconds, for wall time and for processor time.
        memory_mib: address space in addition to the interpreter's own.
        output_limit: bytes, for each of stdout, stderr and the value.
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
    """Run each of `codes` in its own process, `workers` (default: one per core) at a time. Return results in order of codes.

    One interpreter starts and forks for each code: a few milliseconds instead of tens.

    Args:
        stdin: one text per code.
        without: layers of `strength` to leave out, for tests of the others.
    """
    return [result for result, _ in _run(codes, stdin, timeout, memory_mib, output_limit, workers, without)]


@functools.cache
def strength(without: Collection[str] = ()) -> tuple[str, ...]:
    """Return the layers that are active on this machine for this user.

    Always: session and limits. On Linux also: seccomp, no new privileges, capabilities (all dropped) and a death signal (no
    child outlives us). If the kernel or the container supports them: landlock (readable files) and namespaces (a private
    folder, no network devices).
    """
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
    environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC0", **keep}  # for reproducible runs
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
