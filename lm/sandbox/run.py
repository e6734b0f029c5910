"""Run untrusted Python in a separate process, with limits on time, memory, output, files and processes; grade it by a test.

Errors of the code are reported as an outcome, never raised here. The code can compute, use the standard library and write its
output. If `strength` names namespaces and Landlock, it can also write files in its own empty folder, which is deleted
afterwards. It cannot start a process or thread, open a socket, signal another process, or read any file but
Python's library.

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
MODULES = tuple(
    "__future__ abc argparse array ast base64 binascii bisect bz2 calendar cmath codecs collections contextlib copy "
    "csv ctypes dataclasses datetime decimal difflib enum errno fcntl fnmatch fractions functools glob graphlib gzip "
    "hashlib heapq hmac html inspect io ipaddress itertools json keyword locale lzma math mmap numbers operator os "
    "pathlib pickle platform pprint queue random re resource secrets select shutil signal socket sqlite3 statistics "
    "string struct subprocess tempfile textwrap threading time timeit traceback types typing unicodedata unittest "
    "urllib uuid warnings weakref xml zlib zoneinfo".split()
)
LAZILY = {"datetime": ("_strptime",), "time": ("_strptime",)}  # modules that these import later, on first use

OUTPUT_LIMIT = 64 << 10  # bytes, for each of stdout, stderr and the value of a run
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
    finished: whether the code ran to its end, because `sys.exit(0)` in the middle is also "ok". Of `check_many`: whether the
        program passed.

    Of `run_many`, malicious code can forge value and finished, because it runs in the process that reports them. A grader must
    use `check_many`.
    """

    outcome: Outcome
    stdout: str
    stderr: str
    seconds: float
    value: str = ""
    finished: bool = False


class Check(NamedTuple):
    """A program, which is not trusted, and its test.

    test: Python that calls `entry_point`, a name of the program, and raises an exception if an answer is wrong.
    setup: Python that the test needs, such as the beginning of the program that its author was given. Names that neither it nor
        the test defines are those of the standard library, and last those of the program.
    """

    code: str
    test: str
    setup: str = ""
    entry_point: str = ""


def function_check(prompt: str, completion: str, test: str, entry_point: str) -> Check:
    """Return the check of a completion in HumanEval's form, whose test defines check(candidate)."""
    return Check(f"{prompt}{completion}\n", f"{test}\ncheck({entry_point})\n", prompt, entry_point)


def run_many(
    codes: Sequence[str], *, timeout: float = 5.0, memory_mib: int = 256, without: Collection[str] = ()
) -> list[Result]:
    """Run each of `codes` as a main program in its own process, one on each core at a time. Return results in order of codes.

    timeout: limit in seconds, for wall time and for processor time. memory_mib: address space in addition to the interpreter's
    own. without: layers of `strength` to leave out, for tests of the others.
    """
    return [result for result, _ in _run([Check(code, "") for code in codes], timeout, memory_mib, without)]


def check_many(
    checks: Sequence[Check], *, timeout: float = 5.0, memory_mib: int = 256, without: Collection[str] = ()
) -> list[Result]:
    """Run each program against its test, in two processes. `finished` says whether it passed.

    The verdict is that of the test's process, which the program cannot reach: it can open no file of the test, send it no
    signal, and not read its memory, and it holds no descriptor but its own and the two pipes by which it is called. It sees
    only the arguments of its calls, never the test or an expected answer. Its answers arrive as plain data (see
    lm/sandbox/confinement/calls.py), so that an object that is equal to everything is of no use. This holds on Linux; on macOS
    there is no confinement.

    What a program can still do: know the benchmark's answers by heart; change the lists, dicts and sets that it is given, which
    a test may then read; and answer as it likes where a test asks its own objects and functions: whether two of its objects are
    equal, or what a function returns that only the program defines. A test that looks at no answer passes everything.

    Args: those of `run_many`; each limit holds for each of the two processes, and the time for both at once.
    """
    return [result for result, _ in _run(checks, timeout, memory_mib, without, checked=True)]


@functools.cache
def strength(without: Collection[str] = ()) -> tuple[str, ...]:
    """Return the layers that are active on this machine for this user.

    Always: session and limits. On Linux also: seccomp, no new privileges, capabilities (all dropped) and a death signal (no
    child outlives us). If the kernel or the container supports them: landlock (readable files) and namespaces (a private
    folder, no network devices).
    """
    return _run([Check("", "")], 10.0, 64, without)[0][1]


def _run(
    checks: Sequence[Check], timeout: float, memory_mib: int, without: Collection[str], checked: bool = False
) -> list[tuple[Result, tuple[str, ...]]]:
    if not checks:
        return []
    workers = min(os.cpu_count() or 1, len(checks))
    words = set(re.findall(r"\w+", " ".join(part for check in checks for part in check)))
    modules = [name for name in MODULES if name in words]
    request = {
        "jobs": [{"code": check.code, "checked": checked} for check in checks],
        "modules": [*modules, *(lazy for name in modules for lazy in LAZILY.get(name, ()))],
        "timeout": timeout,
        "memory_mib": memory_mib,
        "output_limit": OUTPUT_LIMIT,
        "workers": workers,
        "without": list(without),
        "parent": os.getpid(),
    }
    start = START.format(str(Path(__file__).parent))
    keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC0", **keep}  # for reproducible runs
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        runs, tests = Path(folder, "runs"), Path(folder, "tests")  # a program may read neither tests nor the runs of others
        runs.mkdir()
        tests.mkdir()
        for number, check in enumerate(checks if checked else ()):
            test = {"test": check.test, "setup": check.setup, "entry_point": check.entry_point}
            (tests / str(number)).write_text(json.dumps(test), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-s", "-S", "-P", "-X", "utf8", "-c", start],
                input=json.dumps(request).encode(),
                capture_output=True,
                cwd=runs,
                env=environment,
                start_new_session=True,
                timeout=30 + timeout * math.ceil(len(checks) / workers),
            )
            lines, complaint = done.stdout, done.stderr
        except subprocess.TimeoutExpired as error:
            lines, complaint = error.stdout or b"", b"the supervisor hangs"
    results = [(Result("refused", "", f"[not run: {complaint.decode(errors='replace')[-2000:]}]", 0.0), ())] * len(checks)
    for line in lines.splitlines():
        result = json.loads(line)
        number, active = result.pop("number"), result.pop("layers")
        results[number] = Result(**result), tuple(active)
    return results
