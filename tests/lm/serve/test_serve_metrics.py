import asyncio
import fnmatch
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lm.infer.engine.request import Full, Times
from lm.serve import metrics as serve_metrics
from lm.serve.api.protocol import ApiError
from lm.serve.api.service import Service
from lm.serve.metrics import CountRequests, Metrics, one_two_five
from lm.serve.watch import charts
from tests.lm.serve.played_engine import PlayedEngine, handle

DASHBOARDS = Path(serve_metrics.__file__).parent / "dashboards"
PROMTOOL = shutil.which("promtool")
# The names of vLLM 0.33.0, "vllm:NAME" in its sources, without the suffix of counters.
VLLM = Path(__file__).with_name("vllm_metrics.txt").read_text().split()
# Names in PromQL that are not metrics.
WORDS = {"sum", "max", "min", "by", "rate", "histogram_quantile", "absent", "min_over_time", "and", "or", "le", "label_values"}


def values(text):
    """{name{labels}: value} of Prometheus' text format."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


@pytest.fixture
def played():
    metrics, engine = Metrics("tiny"), PlayedEngine()
    metrics.watch(engine)
    return metrics, engine


def test_names_and_values_are_those_that_vllms_dashboards_read(played):
    metrics, engine = played
    engine.finish(handle(5, "law"), "stop", 3)
    engine.finish(handle(7), "length", 8)
    found = values(metrics.text().decode())
    of = 'model_name="tiny"'
    expected = {
        f"lmcraft:num_requests_running{{{of}}}": 1,
        f"lmcraft:num_requests_waiting{{{of}}}": 2,
        f"lmcraft:kv_cache_usage_perc{{{of}}}": 0.25,
        f"lmcraft:prompt_tokens_total{{{of}}}": 12,
        f"lmcraft:generation_tokens_total{{{of}}}": 11,
        f"lmcraft:prefix_cache_queries_total{{{of}}}": 0,
        f"lmcraft:prefix_cache_hits_total{{{of}}}": 0,
        f"lmcraft:num_preemptions_total{{{of}}}": 0,
        f'lmcraft:request_success_total{{adapter="law",finished_reason="stop",{of}}}': 1,
        f'lmcraft:request_success_total{{adapter="",finished_reason="length",{of}}}': 1,
        f'lmcraft:time_to_first_token_seconds_sum{{adapter="law",{of}}}': 2.0,
        f'lmcraft:time_to_first_token_seconds_bucket{{adapter="law",le="2.5",{of}}}': 1,
        f'lmcraft:time_to_first_token_seconds_bucket{{adapter="law",le="1.0",{of}}}': 0,
        f'lmcraft:e2e_request_latency_seconds_sum{{adapter="law",{of}}}': 6.0,
        f'lmcraft:request_queue_time_seconds_sum{{adapter="law",{of}}}': 0.5,
        f'lmcraft:request_prefill_time_seconds_sum{{adapter="law",{of}}}': 1.5,
        f'lmcraft:request_inference_time_seconds_sum{{adapter="law",{of}}}': 5.5,
        f'lmcraft:request_time_per_output_token_seconds_sum{{adapter="law",{of}}}': 2.0,
        f'lmcraft:request_params_max_tokens_sum{{adapter="law",{of}}}': 8,
        f'lmcraft:request_prefill_kv_computed_tokens_sum{{adapter="law",{of}}}': 5,
        f"lmcraft:prompt_tokens_cached_total{{{of}}}": 0,
        f'lmcraft:prompt_tokens_cached_by_source_total{{{of},source="device"}}': 0,
        f'lmcraft:request_num_preemptions_count{{adapter="law",{of}}}': 1,
        f"lmcraft:spec_decode_num_draft_tokens_total{{{of}}}": 0,
        f"lmcraft:spec_decode_num_accepted_tokens_total{{{of}}}": 0,
        f'lmcraft:spec_decode_num_accepted_tokens_per_pos_total{{{of},position="0"}}': 4,
        f'lmcraft:spec_decode_num_accepted_tokens_per_pos_total{{{of},position="1"}}': 0,
        f'lmcraft:num_requests_waiting_by_reason{{{of},reason="deferred"}}': 1,
        f'lmcraft:prompt_tokens_by_source_total{{{of},source="local_compute"}}': 12,
        f'lmcraft:cache_config_info{{block_size="16",{of},num_gpu_blocks="12"}}': 1,
        f'lmcraft:request_decode_time_seconds_sum{{adapter="law",{of}}}': 4.0,
        f'lmcraft:request_prompt_tokens_sum{{adapter="law",{of}}}': 5,
        f'lmcraft:request_generation_tokens_sum{{adapter="",{of}}}': 8,
        f"lmcraft:iteration_tokens_total_sum{{{of}}}": 11,
        f"lmcraft:iteration_tokens_total_count{{{of}}}": 2,
    }
    assert {name: found[name] for name in expected} == expected


def test_each_of_vllms_names_is_served_or_documented_as_missing(played):
    exported = {family.name.removeprefix("lmcraft:") for family in played[0].registry.collect()}
    text = Path("docs/monitoring.md").read_text()
    table = text[text.index("no counterpart:") : text.index("[lm/serve/dashboards/grafana.json]")]
    patterns = re.findall(r"`([a-z0-9_]+\*?)`", "".join(line.split("|")[1] for line in table.splitlines() if "`" in line))
    missing = {pattern: fnmatch.filter(VLLM, pattern) for pattern in patterns}
    assert all(missing.values()), [pattern for pattern, names in missing.items() if not names]
    assert set(VLLM) - exported == {name for names in missing.values() for name in names}


def test_requests_that_find_the_queue_full_are_counted(played):
    metrics = played[0]
    service = Service(MagicMock(submit=MagicMock(side_effect=Full)), "tiny")
    service.watch = MagicMock(metrics=metrics)

    async def ask():
        async with service.run([handle().request]):
            pass

    with pytest.raises(ApiError, match="queue is full"):
        asyncio.run(ask())
    assert (
        values(metrics.text().decode())['lmcraft:admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"}']
        == 1
    )


def test_a_request_that_was_cancelled_in_the_queue_has_no_times_of_what_did_not_happen(played):
    metrics, engine = played
    engine.finish(handle(4), "cancelled", 0, Times(submitted=1.0, finished=3.0))
    text = metrics.text().decode()
    assert 'finished_reason="cancelled"' in text and "lmcraft:e2e_request_latency_seconds_count{" in text
    assert "lmcraft:time_to_first_token_seconds_count{" not in text and "lmcraft:request_queue_time_seconds_count{" not in text


def test_each_server_has_a_registry_of_its_own():
    assert b"lmcraft" in Metrics("a").text() and b'model_name="a"' not in Metrics("b").text()


def test_http_requests_are_counted_by_route_and_status_and_paths_make_no_series():
    metrics = Metrics("tiny")
    app = FastAPI()
    app.add_middleware(CountRequests, metrics=metrics)
    app.include_router(metrics.router())

    @app.get("/items/{name}")
    def item(name: str):
        if name == "broken":
            raise RuntimeError("on purpose")
        return name

    client = TestClient(app, raise_server_exceptions=False)
    for path in ("/items/a", "/items/b", "/items/broken", "/nothing/1", "/nothing/2"):
        client.get(path)
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")  # OpenMetrics has no ":" in names
    found = {name: value for name, value in values(answer.text).items() if name.startswith("lmcraft:http_requests_total{")}
    of = 'method="GET",model_name="tiny"'
    assert found == {
        f'lmcraft:http_requests_total{{{of},route="/items/{{name}}",status="200"}}': 2,
        f'lmcraft:http_requests_total{{{of},route="/items/{{name}}",status="500"}}': 1,
        f'lmcraft:http_requests_total{{{of},route="unmatched",status="404"}}': 2,
    }


def test_counts_of_many_threads_add_up(played):
    metrics, engine = played
    threads = [threading.Thread(target=lambda: [engine.finish(handle(), "stop", 2) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = 'lmcraft:request_generation_tokens_count{adapter="",model_name="tiny"}'
    assert values(metrics.text().decode())[count] == 400


def test_buckets_of_lengths():
    assert one_two_five(1024) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def exported(metrics):
    """The names of all samples that Prometheus may find: from the families' types."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", metrics.text().decode(), re.MULTILINE):
        names |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return names


def queries():
    """(place, query) of every panel, variable and alert."""
    board = json.loads((DASHBOARDS / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]
    for group in yaml.safe_load((DASHBOARDS / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def names_in(query):
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", query)
    bare = re.sub(r"by \([^)]*\)", "", bare)
    return {name for name in re.findall(r"[A-Za-z_:][\w:]*", bare) if name not in WORDS and name != "model_name"}


def test_every_query_names_a_metric_that_is_exported_with_its_labels(played):
    known = exported(played[0])
    seen = set()
    for place, query in queries():
        assert names_in(query), place
        assert names_in(query) <= known, f"{place}: {names_in(query) - known}"
        seen |= names_in(query)
    assert len(seen) > 30
    labels = {**{k: v[1] for k, v in serve_metrics.HISTOGRAMS.items()}, **{k: v[1] for k, v in serve_metrics.COUNTERS.items()}}
    labels |= {name: entry[1] for name, entry in serve_metrics.GAUGES.items()}
    for chart in charts.CHARTS:
        for line in chart.lines:
            assert set(line.by) <= set(labels.get(line.metric.removesuffix("_total"), ("model_name",))), chart.title


def test_the_dashboard_has_the_charts_of_the_status_page():
    panels = {panel["title"]: panel for panel in json.loads((DASHBOARDS / "grafana.json").read_text())["panels"]}
    for chart in charts.CHARTS:
        panel = panels[chart.title]
        assert panel["description"] == chart.note
        for target, line in zip(panel["targets"], chart.lines, strict=True):
            assert f"lmcraft:{line.metric}" in target["expr"] and all(label in target["expr"] for label in line.by)


def test_lines_are_computed_as_prometheus_does():
    """rate, sum, quantile and ratio of two readings, against figures by hand."""
    before = {("lmcraft:c_total", frozenset({("a", "x"), ("b", "1")})): 5.0}
    now = {
        ("lmcraft:c_total", frozenset({("a", "x"), ("b", "1")})): 25.0,
        ("lmcraft:c_total", frozenset({("a", "x"), ("b", "2")})): 10.0,
        ("lmcraft:c_total", frozenset({("a", "y")})): 4.0,
        ("lmcraft:d_total", frozenset({("a", "x")})): 60.0,
        ("lmcraft:g", frozenset({("a", "x")})): 2.0,
        ("lmcraft:g", frozenset({("a", "y")})): 3.0,
        ("lmcraft:h_bucket", frozenset({("le", "1.0")})): 0.0,
        ("lmcraft:h_bucket", frozenset({("le", "2.0")})): 6.0,
        ("lmcraft:h_bucket", frozenset({("le", "4.0")})): 10.0,
        ("lmcraft:h_bucket", frozenset({("le", "+Inf")})): 10.0,
    }
    line = charts.Line

    def at(one):
        return charts.values(one, before, now, 10.0)

    assert at(line("rate", "c_total", by=("a",))) == {"x": 3.0, "y": 0.4}
    assert at(line("rate", "c_total", "all")) == {"all": 3.4}
    assert at(line("ratio", "c_total", by=("a",), over="d_total")) == {"x": 0.5}
    assert at(line("total", "g", "sum")) == {"sum": 5.0} and at(line("gauge", "g", "max")) == {"max": 3.0}
    assert at(line("quantile", "h", "p50", q=0.5)) == pytest.approx({"p50": 1 + 5 / 6})
    assert at(line("quantile", "h", "p90", q=0.9)) == pytest.approx({"p90": 2 + 2 * 3 / 4})
    assert charts.values(line("quantile", "h", "p50", q=0.5), now, now, 10.0) == {}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_accepts_the_alert_rules():
    done = subprocess.run([PROMTOOL, "check", "rules", DASHBOARDS / "alerts.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
