"""Run codes, each in a confined child, several at a time. This process has one thread and no secrets, so it can fork safely.

The request is JSON on standard input, {"jobs": [{"code", "checked"}], "modules", "timeout", …}. Each result is written
as a line of JSON when it is ready. The child itself reports `finished` and `value`, so hostile code can forge them. The
supervisor measures how the child ended, its time and its output.

A checked job has two children. The program loads and answers calls (lm/sandbox/confinement/calls.py); the test calls it, and
its report is the job's. The program has no way to the test's report: no descriptor, no signal, no file, no memory. It cannot
know the test either: this process never reads it, but the test's own child does, from the file ../tests/NUMBER.
"""

import ast
import builtins
import collections
import contextlib
import fcntl
import importlib
import json
import linecache
import os
import resource
import selectors
import shutil
import signal
import sys
import sysconfig
import time
import traceback
import types
from dataclasses import dataclass, field

from . import calls, layers

NAME, TEST = "<code>", "<test>"  # file names in tracebacks
OUT, ERR, REPORT, HEAR, SAY, RULES = 1, 2, 3, 4, 5, 6  # file descriptors of a child; HEAR and SAY join a program and its test
PROGRAM, CHECK = "program", "test"  # roles of the children of a checked job
HIGH = 64  # above all of them
OPEN_FILES, MAX_WORKERS = 4096, 512  # of this process; a child has four pipes
# a child's report: outcome. gone: the program of this test has ended.
ENDED = {"finished": "ok", "ok": "ok", "error": "error", "memory": "memory", "refused": "refused", "gone": "error"}


@dataclass
class Run:
    """A running child. `written`: the bytes read from each of its pipes."""

    number: int
    role: str
    pid: int
    folder: str
    started: float
    pipes: dict[int, int]  # our end -> the child's file descriptor
    written: dict[int, bytearray] = field(default_factory=lambda: {OUT: bytearray(), ERR: bytearray(), REPORT: bytearray()})
    stopped: str = ""  # "timeout" or "killed", if we stopped it; "done": it is a program, and its test has ended
    note: str = ""
    status: int | None = None  # from waitpid


def main() -> None:
    request = json.load(sys.stdin)
    parent = request["parent"]
    # Import the named modules before confinement, for all children: extension modules need system libraries, which a child
    # cannot load later.
    for name in request["modules"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    os.environ.clear()
    sys.dont_write_bytecode = True
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if "namespaces" not in request["without"] and sys.platform == "linux":
        with contextlib.suppress(OSError):
            layers.enter_namespaces()
    if sys.platform == "linux":
        layers.die_with(parent)
    supervise(request)


def supervise(request: dict) -> None:
    waiting = collections.deque(enumerate(request.pop("jobs")))
    running: dict[int, Run] = {}
    results: dict[int, dict[str, dict]] = {}  # by number of the job and role; the other half of a checked job may still run
    selector = selectors.DefaultSelector()
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)  # receives a byte whenever a child ends
    selector.register(woken, selectors.EVENT_READ)
    on_linux = sys.platform == "linux" and "landlock" not in request["without"]
    request["rules"] = layers.rules_of(readable(), os.getcwd()) if on_linux else -1
    request["memory_bytes"] = own_memory() + (request["memory_mib"] << 20)
    limit, timeout = request["output_limit"], request["timeout"]

    while waiting or running:
        while waiting and len({run.number for run in running.values()}) < min(request["workers"], MAX_WORKERS):
            number, job = waiting.popleft()
            for run in begin(number, job, request, selector, lambda: (waiting.clear(), running.clear(), selector.close())):
                running[run.pid] = run
        alive = [run.started for run in running.values() if not run.stopped]
        wait = max(0.0, min(alive) + timeout - time.monotonic()) if alive else None
        for key, _ in selector.select(wait):
            if key.fd == woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 1 << 12)
            elif drain(key.data, key.fd, limit, selector):
                stop(key.data, "killed", too_much(limit))
        now = time.monotonic()
        for run in list(running.values()):
            if not run.stopped and now - run.started >= timeout:
                stop(run, "timeout", f"stopped after {timeout:g} s")
            if not ended(run):
                continue
            del running[run.pid]
            halves = results.setdefault(run.number, {})
            halves[run.role] = collect(run, limit, selector)
            if run.role == CHECK:
                for other in running.values():
                    if other.number == run.number:
                        stop(other, "done", "")
            if len(halves) == 2 or not run.role:
                result = joined(halves) if run.role else halves[""]
                del results[run.number], result["gone"]
                print(json.dumps(result), flush=True)


def begin(number: int, job: dict, request: dict, selector: selectors.BaseSelector, forget) -> list[Run]:
    """Start the one child of a job, or the two of a checked one."""
    if not job["checked"]:
        return [start(number, "", job, {}, request, selector, forget)]
    (hear, asks), (listen, says) = os.pipe(), os.pipe()
    ends = {PROGRAM: {HEAR: hear, SAY: says}, CHECK: {HEAR: listen, SAY: asks}}
    found = [start(number, role, job, own, request, selector, forget) for role, own in ends.items()]
    for end in (hear, asks, listen, says):
        os.close(end)
    return found


def start(
    number: int, role: str, job: dict, ends: dict[int, int], request: dict, selector: selectors.BaseSelector, forget
) -> Run:
    """Fork a child. ends: more of its file descriptors, by number."""
    folder = os.path.join(os.getcwd(), f"{number}{role}")
    os.mkdir(folder, 0o700)
    pairs = {fd: os.pipe() for fd in (OUT, ERR, REPORT)}
    nothing = os.open(os.devnull, os.O_RDONLY)
    supervisor = os.getpid()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            forget()  # this child must not see the other jobs
            ends = {fd: pair[1] for fd, pair in pairs.items()} | {0: nothing} | ends
            inside(f"../tests/{number}" if role == CHECK else job["code"], role, folder, supervisor, ends, request)
        finally:
            os._exit(70)  # reached only if a layer failed
    os.close(nothing)
    for reading, writing in pairs.values():
        os.close(writing)
        os.set_blocking(reading, False)
    run = Run(number, role, pid, folder, started, {reading: fd for fd, (reading, _) in pairs.items()})
    for end in run.pipes:
        selector.register(end, selectors.EVENT_READ, run)
    return run


def inside(code: str, role: str, folder: str, supervisor: int, ends: dict[int, int], request: dict) -> None:
    """Confine this child, run the code and report. code: of a test, the name of its file."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    if request["rules"] >= 0:
        ends = ends | {RULES: request["rules"]}
    above = {fd: fcntl.fcntl(end, fcntl.F_DUPFD, HIGH) for fd, end in ends.items()}  # so that none has the number of another
    for fd, end in above.items():
        os.dup2(end, fd, inheritable=False)
    os.closerange(max(ends) + 1, OPEN_FILES)
    for fd in set(range(max(ends))) - ends.keys():  # what this process has there, such as the pipe that wakes it
        with contextlib.suppress(OSError):
            os.close(fd)
    if role == CHECK:
        with open(code, encoding="utf-8", errors="surrogatepass") as file:
            test = json.load(file)
    active = layers.confine(
        folder,
        RULES if RULES in ends else -1,
        supervisor,
        seconds=request["timeout"],
        memory_bytes=request["memory_bytes"],
        without=request["without"],
    )
    os.write(REPORT, json.dumps(["session", *active]).encode() + b"\n")
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = open(OUT, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1)
    sys.stderr = open(ERR, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    word, value = check(test) if role == CHECK else execute(code, NAME, module.__dict__)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    with open(REPORT, "wb", closefd=False) as report:
        report.write(f"{word}\n".encode() + value.encode("utf-8", "replace")[: request["output_limit"]])
    if role == PROGRAM and word == "finished":
        peer = calls.Peer(HEAR, SAY, module.__dict__)
        with contextlib.suppress(calls.Gone):
            peer.ready()
            peer.serve()
    os._exit(ENDED[word] != "ok")


def check(test: dict) -> tuple[str, str]:
    """Run a test against the program at the other end of the pipes. Return like `execute`, and "gone" if it has ended."""
    peer = calls.Peer(HEAR, SAY, None)
    names = calls.Names(peer)
    try:
        peer.wait()
        with contextlib.suppress(Exception):  # what follows it is not here; then its names are those of the program
            exec(compile(test["setup"], TEST, "exec", dont_inherit=True), names)
        if test["entry_point"]:
            names[test["entry_point"]] = peer.ask("name", test["entry_point"])
    except calls.Gone:
        return "gone", ""
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "error", ""
    word, value = execute(test["test"], TEST, names)
    return ("gone", "") if peer.gone else (word, value)


def execute(code: str, name: str, namespace: dict) -> tuple[str, str]:
    """Run the code. Return (a key of ENDED, repr of the last statement's value if it is an expression other than None)."""
    sys.argv = [name]
    builtins.exit = builtins.quit = sys.exit
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)
        value = None
        if last:
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
        return "finished", "" if value is None else repr(value)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return ("error" if error.code else "ok"), ""
    except BaseException as error:
        place = error.__traceback__
        while place and place.tb_frame.f_code.co_filename != name:
            place = place.tb_next
        with contextlib.suppress(BaseException):
            traceback.print_exception(type(error), error, place)
        return "memory" if isinstance(error, MemoryError) else "refused" if isinstance(error, PermissionError) else "error", ""


def drain(run: Run, end: int, limit: int, selector: selectors.BaseSelector) -> bool:
    """Read the available output. Return whether it exceeds the limit; a report may be longer by its own lines."""
    into = run.written[run.pipes[end]]
    most = limit + (1 << 12 if run.pipes[end] == REPORT else 0)
    try:
        while len(into) <= most:
            some = os.read(end, most + 1 - len(into))
            if not some:
                break
            into += some
    except BlockingIOError:
        return False
    close(run, end, selector)
    return len(into) > most


def too_much(limit: int) -> str:
    return f"stopped: it wrote more than {limit} bytes"


def close(run: Run, end: int, selector: selectors.BaseSelector) -> None:
    selector.unregister(end)
    os.close(end)
    del run.pipes[end]


def stop(run: Run, outcome: str, note: str) -> None:
    if not run.stopped:
        run.stopped, run.note = outcome, note
    for kill in (os.killpg, os.kill):  # the group may not exist yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(run.pid, signal.SIGKILL)


def ended(run: Run) -> bool:
    """Return whether the child has ended. If so, kill the rest of its process group and reap the child."""
    if hasattr(os, "waitid"):
        if os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
    else:  # macOS; in theory the group's number may already be reused
        pid, status = os.waitpid(run.pid, os.WNOHANG)
        if not pid:
            return False
        run.status = status
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(run.pid, signal.SIGKILL)
    if run.status is None:
        run.status = os.waitpid(run.pid, 0)[1]
    return True


def collect(run: Run, limit: int, selector: selectors.BaseSelector) -> dict:
    seconds = time.monotonic() - run.started
    if any([drain(run, end, limit, selector) for end in list(run.pipes)]) and not run.stopped:
        run.stopped, run.note = "killed", too_much(limit)
    for end in list(run.pipes):
        close(run, end, selector)
    shutil.rmtree(run.folder, ignore_errors=True)

    active, _, report = run.written[REPORT].partition(b"\n")
    word, _, value = report.decode("utf-8", "ignore").partition("\n")
    code = os.waitstatus_to_exitcode(run.status)
    if run.stopped and (run.stopped != "done" or code < 0):  # a program may have ended itself before its test did
        outcome = run.stopped
    elif code == -signal.SIGXCPU:
        outcome, run.note = "timeout", "stopped: its time was used up"
    elif code < 0:
        outcome, run.note = "killed", f"ended by {signal.Signals(-code).name}"
    elif not active:
        outcome, run.note = "refused", "not run: the sandbox could not be set up"
    else:
        outcome = ENDED.get(word, "error" if code else "ok")
    stdout, stderr = (run.written[fd][:limit].decode("utf-8", "replace") for fd in (OUT, ERR))
    if run.note:
        stderr += ("\n" if stderr and not stderr.endswith("\n") else "") + f"[{run.note}]"
    return {
        "number": run.number,
        "gone": word == "gone",
        "outcome": outcome,
        "stdout": stdout,
        "stderr": stderr,
        "seconds": seconds,
        "value": value,
        "finished": outcome == "ok" and word == "finished",
        "layers": json.loads(active or "[]"),
    }


def joined(halves: dict[str, dict]) -> dict:
    """Return the result of a checked job from those of its program and its test.

    The verdict is the test's. If the program ended first, the outcome is the program's, and nothing is finished.
    """
    program, test = halves[PROGRAM], halves[CHECK]
    seconds = max(program["seconds"], test["seconds"])
    if test["gone"] or program["outcome"] in ("killed", "timeout"):
        if program["outcome"] == "done":
            program |= {"outcome": "error", "stderr": f"{program['stderr']}[stopped: it sent what is no answer]"}
        return program | {"finished": False, "value": "", "seconds": seconds}
    stdout, stderr = (program[key] + test[key] for key in ("stdout", "stderr"))
    return test | {"stdout": stdout, "stderr": stderr, "value": "", "seconds": seconds}


def readable() -> list[str]:
    """Return the paths of Python's own library, without installed packages."""
    files = ["/usr/share/zoneinfo"]
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        installed = {"site-packages", "dist-packages"}
        files += [f"{folder}/", *(f"{folder}/{name}" for name in os.listdir(folder) if name not in installed)]
    return files


def own_memory() -> int:
    """Return the bytes of address space of this process; 256 MiB if the system does not report it."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 256 << 20
