"""Metrics for Prometheus, with the names that vLLM's dashboards know, behind the prefix `lmcraft:`.

    metrics = Metrics("smollm2")
    metrics.watch(engine)                       # engine metrics, from Engine.observers and Engine.stats
    app.add_middleware(CountRequests, metrics=metrics)
    app.include_router(metrics.router())        # GET /metrics

Series about one request have the labels model_name and adapter ("": none). Series about the whole engine, such as its queue and
its counters of tokens, have model_name alone; tokens by adapter are the sums of request_prompt_tokens and
request_generation_tokens. The registry is this object's own, not the global one.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PREFIX = "lmcraft:"
# OpenMetrics knows no ":" in names, so the text format is always used, whatever a client accepts.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The buckets of vLLM (v1/metrics/loggers.py), so that its panels fit.
FIRST = 0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560
BETWEEN = 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80
LATENCY = 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680
ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MODEL, REQUEST = ("model_name",), ("model_name", "adapter")
BEHAVIOUR = ("model_name", "checkpoint", "adapter")

HISTOGRAMS = {  # name: (help, labels, buckets); None: one, two, five and so on, up to the longest text
    "time_to_first_token_seconds": ("From submission to the first token.", REQUEST, FIRST),
    "inter_token_latency_seconds": ("Between tokens of a request, as they leave the engine.", REQUEST, BETWEEN),
    "e2e_request_latency_seconds": ("From submission to the last token.", REQUEST, LATENCY),
    "request_queue_time_seconds": ("From submission to the first token of the prompt that is read.", REQUEST, LATENCY),
    "request_prefill_time_seconds": ("From there to the first token of the answer.", REQUEST, LATENCY),
    "request_decode_time_seconds": ("From there to the last token.", REQUEST, LATENCY),
    "request_inference_time_seconds": ("From the first token of the prompt that is read to the last token.", REQUEST, LATENCY),
    "request_time_per_output_token_seconds": ("Mean time between the tokens of a request.", REQUEST, BETWEEN),
    "request_prompt_tokens": ("Tokens of a prompt.", REQUEST, None),
    "request_prefill_kv_computed_tokens": ("Tokens of a prompt that were not in the prefix cache.", REQUEST, None),
    "request_params_max_tokens": ("Tokens that a request asks for at most.", REQUEST, None),
    "request_generation_tokens": ("Tokens of an answer.", REQUEST, None),
    "request_num_preemptions": ("How often a request gave its blocks up.", REQUEST, (1, 2, 3, 4, 5, 10, 20)),
    "iteration_tokens_total": ("Tokens of an engine step.", MODEL, ITERATION),
    "http_request_duration_seconds": ("From a request's head to the end of its answer.", ("model_name", "route"), LATENCY),
}
COUNTERS = {
    "request_success": ("Finished requests, by the reason of their end.", (*REQUEST, "finished_reason")),
    "admission_rejections": ("Requests that found the queue full.", ("model_name", "reason")),
    "http_requests": ("HTTP requests.", ("model_name", "route", "method", "status")),
    "guardrail_decisions": ("Decisions of guardrails.", (*REQUEST, "rule", "hazard", "where", "action")),
    "feedback": ("Ratings of answers.", (*BEHAVIOUR, "rating")),
    "behaviour_exchanges": ("Exchanges that the monitor measured.", BEHAVIOUR),
    "behaviour_alerts": ("Alerts of the monitor since the start.", (*BEHAVIOUR, "stream")),
    "monitor_dropped": ("Exchanges that the monitor left out, because it was busy.", MODEL),
    "store_exchanges": ("Exchanges written to the store.", MODEL),
    "store_dropped": ("Exchanges that the store left out, because it was busy.", MODEL),
}
GAUGES = {
    "behaviour_rate": (
        "Share of recent exchanges: refusal, unsafe, repetitive; feedback: thumbs down.",
        (*BEHAVIOUR, "measure"),
    ),
    "behaviour_language_share": ("Share of recent answers in a language.", (*BEHAVIOUR, "language")),
    "behaviour_reference": ("Mean of a stream in its reference window.", (*BEHAVIOUR, "stream")),
    "behaviour_recent": ("Mean of a stream in recent exchanges.", (*BEHAVIOUR, "stream")),
    "behaviour_psi": ("Population stability index of recent exchanges against the reference.", (*BEHAVIOUR, "stream")),
    "behaviour_evidence": ("Log evidence of a change over that of an alert: it alerts at 1.", (*BEHAVIOUR, "stream")),
    "behaviour_alert": ("1 from an alert until the behaviour is accepted.", (*BEHAVIOUR, "stream")),
    "store_bytes": ("Size of the store.", MODEL),
}


class Metrics:
    """All metrics of a server. Threads may share it."""

    def __init__(self, model_name: str, max_positions: int = 131_072):
        """max_positions: tokens of the longest request, for the buckets of its lengths."""
        self.model_name, self.registry = model_name, CollectorRegistry(auto_describe=True)
        lengths = one_two_five(max_positions)
        self._metrics: dict[str, Any] = {}
        for name, (told, labels, buckets) in HISTOGRAMS.items():
            given = lengths if buckets is None else buckets
            self._metrics[name] = Histogram(PREFIX + name, told, labels, buckets=given, registry=self.registry)
        for kind, some in ((Counter, COUNTERS), (Gauge, GAUGES)):
            for name, (told, labels) in some.items():
                self._metrics[name] = kind(PREFIX + name, told, labels, registry=self.registry)

    def of(self, name: str, **labels: str) -> Any:
        """Return the series of a metric, such as `of("feedback", checkpoint="7", adapter="", rating="up").inc()`."""
        return self._metrics[name].labels(model_name=self.model_name, **labels)

    def watch(self, engine) -> None:
        """Take what the engine tells its observers, and read its statistics whenever metrics are read."""
        engine.observers.append(self._observe)
        self.registry.register(_OfEngine(engine, self.model_name))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)

    def router(self) -> APIRouter:
        """Return the route GET /metrics."""
        router = APIRouter()

        @router.get("/metrics", include_in_schema=False)
        def metrics() -> Response:
            return Response(self.text(), headers={"content-type": CONTENT_TYPE})

        return router

    def _observe(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Called on the engine's thread, so it only counts."""
        if kind == "step":
            self.of("iteration_tokens_total").observe(facts["tokens"])
        elif kind == "finished":
            self._finished(facts["handle"], facts["finish"], facts["generated"])

    def _finished(self, handle, finish: str, generated: int) -> None:
        """Times of what did not happen, such as the first token of a request that was cancelled in the queue, are left out."""
        times, adapter = handle.times, handle.request.adapter
        end = times.finished or time.monotonic()
        if not handle.request.told_by_reader:
            self.of("request_success", adapter=adapter, finished_reason=finish).inc()
        self.of("request_prompt_tokens", adapter=adapter).observe(len(handle.request.prompt))
        self.of("request_params_max_tokens", adapter=adapter).observe(handle.request.max_new_tokens)
        self.of("request_generation_tokens", adapter=adapter).observe(generated)
        self.of("request_num_preemptions", adapter=adapter).observe(times.preempted)
        if times.started:
            self.of("request_prefill_kv_computed_tokens", adapter=adapter).observe(len(handle.request.prompt) - times.cached)
        if times.first and generated > 1:
            mean = max(0.0, end - times.first) / (generated - 1)
            self.of("request_time_per_output_token_seconds", adapter=adapter).observe(mean)
        spans = {
            "e2e_request_latency_seconds": (times.submitted, end),
            "request_queue_time_seconds": (times.submitted, times.started),
            "request_prefill_time_seconds": (times.started, times.first),
            "time_to_first_token_seconds": (times.submitted, times.first),
            "request_decode_time_seconds": (times.first, end),
            "request_inference_time_seconds": (times.started, end),
        }
        for name, (begin, until) in spans.items():
            if begin and until:
                self.of(name, adapter=adapter).observe(max(0.0, until - begin))


class _OfEngine:
    """A collector of prometheus_client: the engine's own counters, which grow whether or not anybody reads them."""

    def __init__(self, engine, model_name: str):
        self.engine, self.model_name = engine, model_name

    def describe(self) -> list[Metric]:
        return []  # or registering would ask the engine

    def collect(self) -> Iterator[Metric]:
        s, gauge, counter = self.engine.stats(), GaugeMetricFamily, CounterMetricFamily
        reasons = {("capacity",): s.waiting - s.deferred, ("deferred",): s.deferred}
        sources = {("local_compute",): s.prompt_tokens, ("local_cache_hit",): s.prefix_hits}
        places = {(str(place),): s.accepted_at.get(place, 0) for place in range(max(s.accepted_at, default=-1) + 1)}
        families = (
            (gauge, "num_requests_running", s.running, "Requests that are decoded or whose prompt is read."),
            (gauge, "num_requests_waiting", s.waiting, "Requests in the queue."),
            (gauge, "num_requests_waiting_by_reason", reasons, "The same; deferred: media are not encoded.", "reason"),
            (gauge, "kv_cache_usage_perc", s.blocks_used / max(1, s.blocks), "Share of the cache's blocks in use, 0 to 1."),
            (gauge, "cache_config_info", {(str(s.page), str(s.blocks)): 1}, "1.", "block_size", "num_gpu_blocks"),
            (counter, "prompt_tokens", s.prompt_tokens, "Tokens of prompts that were read."),
            (counter, "prompt_tokens_by_source", sources, "Tokens of prompts: read, or found in the prefix cache.", "source"),
            (counter, "generation_tokens", s.generation_tokens, "Tokens that were sampled."),
            (counter, "prefix_cache_queries", s.prefix_queries, "Tokens of prompts that were looked up in the prefix cache."),
            (counter, "prefix_cache_hits", s.prefix_hits, "Tokens of prompts that were found there."),
            (counter, "prompt_tokens_cached", s.prefix_hits, "The same, by vLLM's newer name."),
            (counter, "prompt_tokens_cached_by_source", {("device",): s.prefix_hits}, "The same.", "source"),
            (counter, "spec_decode_num_drafts", s.drafts, "Guesses, of one or several tokens."),
            (counter, "spec_decode_num_draft_tokens", s.drafted, "Tokens that were guessed."),
            (counter, "spec_decode_num_accepted_tokens", s.accepted, "Tokens that were guessed rightly."),
            (counter, "spec_decode_num_accepted_tokens_per_pos", places, "The same, by place in the guess.", "position"),
            (counter, "num_preemptions", s.preemptions, "Requests that gave their blocks up and begin again."),
        )
        for kind, name, value, told, *label in families:
            family = kind(PREFIX + name, told, labels=(*MODEL, *label))
            for values, number in value.items() if label else [((), value)]:
                family.add_metric([self.model_name, *values], number)
            yield family


class CountRequests:
    """ASGI middleware: counts requests by route, method and status, and their durations. A client's choice of path makes no
    series: what no route serves is "unmatched". An answer that broke off before its head has the status 499."""

    def __init__(self, app: Callable, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499

        async def sent(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", None) or "unmatched"
            method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS") else "other"
            self.metrics.of("http_requests", route=route, method=method, status=str(status)).inc()
            self.metrics.of("http_request_duration_seconds", route=route).observe(time.monotonic() - begun)


def one_two_five(most: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50 … up to `most`: vLLM's buckets for lengths."""
    found = [digit * 10**power for power in range(1 + int(math.log10(max(1, most)))) for digit in (1, 2, 5)]
    return [value for value in found if value <= most]
