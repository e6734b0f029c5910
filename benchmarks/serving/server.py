"""The server under load: start our own, read its metrics, and watch the memory of its process."""

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

REPO = Path(__file__).parents[2]
PERIOD = 1.0  # seconds between two looks at the memory
Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextlib.contextmanager
def started(flags: list[str], seconds: float = 600.0) -> Iterator[tuple[str, int]]:
    """Start serve.py on a free port; yield its URL and process id. SIGTERM ends it. Raises: SystemExit if it cannot start.

    flags: more flags of serve.py, which win over these.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [sys.executable, "serve.py", "--config=configs/serve/default.py", f"--workdir={folder}/work"]
        command += ["--config.port=0", *flags]
        with log.open("w") as out:
            process = subprocess.Popen(command, cwd=REPO, stdout=out, stderr=out, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        try:
            end = time.monotonic() + seconds
            while not (found := re.search(r"answers at (http://\S+)/v1\b", log.read_text(errors="replace"))):
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{' '.join(command)}\ndid not start:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.2)
            yield found[1], process.pid
            if process.poll() is not None:
                sys.exit(f"the server has ended by itself:\n{log.read_text(errors='replace')[-5000:]}")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            failed = [line for line in log.read_text(errors="replace").splitlines() if re.search(r"Traceback|ERROR", line)]
            if failed:
                print(f"the server's log has {len(failed)} errors; its end:\n{log.read_text()[-3000:]}", file=sys.stderr)


def parse_metrics(text: str) -> Metrics:
    """Return {(name without a prefix such as lmcraft: or vllm:, labels): value} of Prometheus' text format."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(one.name.rpartition(":")[2], frozenset(one.labels.items())): one.value for one in samples}


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the sum of all series of a metric that have these labels."""
    return sum(value for (other, has), value in metrics.items() if other == name and labels.items() <= dict(has).items())


class Memory:
    """Samples the resident memory of a process and its children until `stop`."""

    def __init__(self, pid: int):
        self.samples: list[tuple[float, int]] = []  # seconds since the start, bytes
        self._process, self._end = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        begin = time.monotonic()
        with contextlib.suppress(psutil.Error):
            while not self._end.wait(PERIOD):
                family = [self._process, *self._process.children(recursive=True)]
                self.samples.append((time.monotonic() - begin, sum(one.memory_info().rss for one in family)))

    def stop(self) -> list[int]:
        self._end.set()
        self._thread.join()
        return [size for _, size in self.samples]


def growth(samples: list[int]) -> tuple[float, float]:
    """Return (median of the samples at 30-40 % of the time, median of the last tenth). Memory that grows differs there."""
    count = len(samples)
    middle, last = samples[int(0.3 * count) : int(0.4 * count)], samples[int(0.9 * count) :]
    return statistics.median(middle or samples), statistics.median(last or samples)
