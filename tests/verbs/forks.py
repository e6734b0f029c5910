"""Start verbs as forks of one process whose imports are done, which spares each of them three seconds of a core.

A fork becomes what `python train.py …` or `python -m lm.chat …` would be: its own arguments, environment, streams, signals,
ending and exit code. JAX is imported, but has not looked for devices yet. `can_fork` says what is a process of its own instead.
"""

import contextlib
import fcntl
import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
WITH_JAX = (
    "lm.train.loop lm.reports.train lm.reports.align lm.reports.safety lm.reports.evaluate lm.reports.next_steps lm.align.run "
    "lm.evals.run lm.evals.in_loop lm.serve.run lm.convert.to_published lm.convert.to_workdir lm.infer.load lm.infer.generate "
    "data.text.pipeline lm.cli lm.runs.lock matplotlib.backends.backend_svg tree jaxlib.mlir.dialects.mhlo "
    "jaxlib.mlir.dialects.builtin jaxlib.mlir.extras.meta lm.parallel.join lm.train.dial lm.train.events "
    "lm.infer.prompts lm.infer.engine.open lm.align.reward_model lm.convert.to_gguf "
    "lm.convert.gguf.modelfile lm.evals.redteam.task lm.evals.tasks.generation lm.kernels.cpu.attention "
    "lm.kernels.cpu.products tensorflow_datasets.core.data_sources.array_record anyio._backends._asyncio encodings.utf_32_le "
    "gguf"
)
WITHOUT_JAX = (
    "data.recipe.run data.recipe.tokenized data.filters.heuristics.gopher data.filters.bias "
    "lm.reports.curate lm.reports.data_used lm.reports.page lm.reports.next_steps lm.align.checks "
    "lm.parallel.join lm.cli numba pyarrow.pandas_compat"
)
NO_JAX = "TESTS_NO_JAX"  # a variable of programs in which an import of JAX is an error
# Variables that are read when Python starts or when a library is imported.
FIXED = ("PYTHON", "LC_", "LANG", "LD_", "GLIBC_TUNABLES", "OPENBLAS", "OMP_", "MALLOC", "TFDS_")


class Fork:
    """A started verb, with what the tests use of subprocess.Popen."""

    def __init__(self, command: list[str], environment: dict[str, str], streams: list[int], folder: Path = REPOSITORY):
        """streams: descriptors of the input, the output and the errors. folder: where it runs, a copy of the repository."""
        self.args, self.returncode = command, None
        # curate.py forks its own workers where JAX is not loaded.
        jax = command[1] != "curate.py" and NO_JAX not in environment
        self._server = _server(WITH_JAX if jax else WITHOUT_JAX)
        request = {"command": list(map(str, command[1:])), "environment": environment, "folder": str(folder)}
        self.pid = self._server.ask(request, streams)
        self._ended = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        return self._ask_for_code(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._ask_for_code(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ask_for_code(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            os.close(self._ended)
            self.returncode = self._server.ask({"wait": self.pid})
        return self.returncode


def can_fork(command: list[str], environment: dict[str, str]) -> bool:
    """Return whether a fork does what a new process would: a script or module of this repository with this process's FIXED."""
    if not hasattr(os, "pidfd_open") or command[0] != sys.executable:
        return False
    if command[1] != "-m" and command[1] not in {path.name for path in REPOSITORY.glob("*.py")}:
        return False
    own, others = ({k: v for k, v in which.items() if k.startswith(FIXED)} for which in (os.environ, environment))
    return own == others


class _Server:
    """A connection to the process that has imported some modules. All workers of a run share it; the first one starts it."""

    def __init__(self, imports: str):
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        name = "\0" + hashlib.sha256(f"{run} {imports}".encode()).hexdigest()  # of no file
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, contextlib.suppress(OSError):
            listener.bind(name)  # refused if another worker has done so
            listener.listen(64)
            own = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
            command = [sys.executable, "-m", "tests.verbs.forks", str(listener.fileno()), *imports.split()]
            variables = own | {"JAX_PLATFORMS": "cpu"}
            subprocess.Popen(command, cwd=REPOSITORY, env=variables, pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL)
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        while self.channel.connect_ex(name):
            pass  # between bind and listen

    def ask(self, request: dict, descriptors: list[int] = ()) -> int:
        """Return the server's answer: a started process's id, or an ended one's exit code."""
        with _one_at_a_time:
            socket.send_fds(self.channel, [json.dumps(request).encode()], descriptors)
            return json.loads(self.channel.recv(1 << 10))


_one_at_a_time = threading.RLock()  # of the threads of a test
_servers = {}  # by this process, whose forks have connections of their own, and by what is imported


def _server(imports: str) -> _Server:
    key = os.getpid(), imports
    with _one_at_a_time:
        if key not in _servers:
            _servers[key] = _Server(imports)
        return _servers[key]


def load_ahead() -> None:
    """Do once what every verb does at its first report and its first function of numba."""
    import numba

    from lm.reports import page

    names = {"page", "parts"} | {module.rpartition(".")[2] for module in sys.argv if module.startswith("lm.reports.")}
    for template in page.environment().list_templates():
        if template.removesuffix(".html.j2") in names:
            page.environment().get_template(template)
    # numba imports all that it knows of Python's functions before it looks into its cache.
    numba.core.registry.cpu_target.typing_context.refresh()
    numba.core.registry.cpu_target.target_context.refresh()


def load_kernels() -> None:
    """Load the compiled kernels of serving, if that takes no time; else another process compiles them meanwhile, for all."""
    from lm.kernels.native.registered import loaded

    def load():
        for module in ("cpu.attention", "cpu.products", "cpu.sums"):
            loaded(module)

    child = os.fork()
    if child == 0:
        load()
        os._exit(0)
    if select.select([os.pidfd_open(child)], [], [], 3.0)[0]:
        os.waitpid(child, 0)
        load()


def serve(listener: socket.socket) -> dict | None:
    """Answer requests until no worker is left (None). Return in each fork, with the request that it is to carry out."""
    channels = [listener]
    while True:
        for channel in select.select(channels, [], [])[0]:
            if channel is listener:
                channels.append(listener.accept()[0])
                continue
            message, descriptors, *_ = socket.recv_fds(channel, 1 << 18, 3)
            if not message:
                channels.remove(channel)
                channel.close()
                if len(channels) == 1:
                    return None
                continue
            request = json.loads(message)
            if "wait" in request:
                answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            else:
                answer = os.fork()
                if answer == 0:
                    for other in channels:
                        other.close()
                    for target, descriptor in enumerate(descriptors):
                        os.dup2(descriptor, target)
                for descriptor in descriptors:
                    os.close(descriptor)
                if answer == 0:
                    return request
            channel.send(json.dumps(answer).encode())


def become(command: list[str], environment: dict[str, str], folder: str) -> None:
    """Run a script or `-m MODULE` with its arguments as the program of this process, whose streams are set already."""
    os.chdir(folder)
    if os.isatty(0):  # as the shell of a terminal starts a program, so that Ctrl-C reaches it
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    if "jax" in sys.modules:
        _configure(sys.modules["jax"].config, environment)
    elif NO_JAX in environment:
        sys.modules["jax"] = None
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def _configure(config, environment: dict[str, str]) -> None:
    """Set what JAX took from its variables when it was imported."""
    for name, text in environment.items():
        if name.startswith("JAX_") and name.lower() in config.values:
            kind = type(config.values[name.lower()])
            value = text.lower() in ("1", "true") if kind is bool else kind(text) if kind in (int, float) else text
            config.update(name.lower(), value)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    load_ahead()
    if "jax" in sys.modules:
        load_kernels()
    gc.collect()
    gc.freeze()  # so that the forks' collections do not copy the pages of what was imported
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        become(**request)
