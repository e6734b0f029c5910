"""Prometheus itself scrapes /metrics of a small server, evaluates every panel's query, and loads the alert rules."""

import contextlib
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import portpicker
import pytest
import uvicorn
from fastapi import FastAPI

from lm.serve.metrics import CountRequests, Metrics
from tests.lm.serve.played_engine import PlayedEngine, handle
from tests.lm.serve.test_serve_metrics import DASHBOARDS, queries

PROMETHEUS = shutil.which("prometheus")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")]


@contextlib.contextmanager
def served(app):
    server = uvicorn.Server(uvicorn.Config(app, port=portpicker.pick_unused_port(), log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.config.port
    finally:
        server.should_exit = True
        thread.join()


def until(ask, seconds=60):
    """Return what `ask` returns as soon as it is true. An OSError, such as of a server that still starts, counts as false."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := ask():
                return found
        pause.wait(0.1)
    raise TimeoutError


def test_prometheus_reads_all_and_knows_every_query(tmp_path: Path):
    metrics, engine = Metrics("tiny"), PlayedEngine()
    metrics.watch(engine)
    app = FastAPI()
    app.add_middleware(CountRequests, metrics=metrics)
    app.include_router(metrics.router())
    port = portpicker.pick_unused_port()

    def ask(path, **query):
        address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    with served(app) as target:
        config = {
            "global": {"scrape_interval": "300ms", "scrape_timeout": "300ms", "evaluation_interval": "300ms"},
            "rule_files": [str(DASHBOARDS / "alerts.yaml")],
            "scrape_configs": [{"job_name": "lmcraft", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        command = [
            PROMETHEUS,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: ask("query", query='up{job="lmcraft"} == 1')["result"])
                for _ in range(5):
                    engine.finish(handle(6, "law"), "stop", 4)
                grown = 'lmcraft:request_success_total{adapter="law",finished_reason="stop",model_name="tiny"}'
                until(lambda: [one["value"][1] for one in ask("query", query=grown)["result"]] == ["5"])
                median = "histogram_quantile(0.5, sum by (le) (lmcraft:time_to_first_token_seconds_bucket))"
                assert 1.0 <= float(ask("query", query=median)["result"][0]["value"][1]) <= 2.5
                for place, query in queries():
                    if not query.startswith("label_values"):
                        plain = query.replace("$model_name", ".*").replace("$__rate_interval", "30s")
                        assert ask("query", query=plain)["resultType"] == "vector", place
                rules = until(lambda: [r for g in ask("rules")["groups"] for r in g["rules"] if r["health"] == "ok"])
                assert {"BehaviourChanged", "ServerDown"} <= {rule["name"] for rule in rules}
                assert all(one["health"] == "up" for one in ask("targets")["activeTargets"])
            finally:
                process.terminate()
