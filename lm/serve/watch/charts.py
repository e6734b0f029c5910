"""The charts of the status page, each computed from two readings of a server's metrics as Prometheus would.

lm/serve/dashboards/grafana.json has these charts and more for Grafana.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "lmcraft:"
Reading = Mapping[tuple[str, frozenset], float]  # (name of a sample, its labels) -> value


class Line(NamedTuple):
    """kind: gauge (the largest of all series), total (their sum), rate (growth a second), quantile (of a histogram's growth),
    ratio (growth over that of `over`). by: labels that make a line each. label: its name; with `by`, the labels' values."""

    kind: str
    metric: str
    label: str = ""
    by: tuple[str, ...] = ()
    q: float = 0.0
    over: str = ""


class Chart(NamedTuple):
    """unit: a unit of Grafana: short, s, percentunit, reqps. quiet: what the page says while all values are 0 or unknown."""

    title: str
    note: str
    unit: str
    lines: tuple[Line, ...]
    quiet: str = "nothing happened"


def _quantiles(metric: str) -> tuple[Line, ...]:
    return tuple(Line("quantile", metric, f"p{100 * q:g}", q=q) for q in (0.5, 0.95, 0.99))


WHO = ("checkpoint", "adapter")
REFUSED = "no request refused"
CHARTS = (
    Chart(
        "Requests in the engine",
        "Running, and waiting in the queue.",
        "short",
        (Line("total", "num_requests_running", "running"), Line("total", "num_requests_waiting", "waiting")),
    ),
    Chart(
        "Tokens",
        "A second.",
        "short",
        (Line("rate", "prompt_tokens_total", "prompt"), Line("rate", "generation_tokens_total", "generation")),
    ),
    Chart(
        "Cache",
        "Share of the blocks in use; share of prompt tokens found in the prefix cache.",
        "percentunit",
        (
            Line("gauge", "kv_cache_usage_perc", "blocks used"),
            Line("ratio", "prefix_cache_hits_total", "prefix hits", over="prefix_cache_queries_total"),
        ),
    ),
    Chart("Time to first token", "From submission.", "s", _quantiles("time_to_first_token_seconds")),
    Chart("Time between tokens", "Of one request.", "s", _quantiles("inter_token_latency_seconds")),
    Chart("Latency of a request", "From submission to the last token.", "s", _quantiles("e2e_request_latency_seconds")),
    Chart("Time in the queue", "Before the prompt is read.", "s", _quantiles("request_queue_time_seconds")),
    Chart(
        "Lengths",
        "Tokens of prompts and answers, median.",
        "short",
        (
            Line("quantile", "request_prompt_tokens", "prompt", q=0.5),
            Line("quantile", "request_generation_tokens", "answer", q=0.5),
        ),
    ),
    Chart(
        "Finished requests",
        "A second, by reason.",
        "reqps",
        (Line("rate", "request_success_total", by=("finished_reason",)), Line("rate", "num_preemptions_total", "pre-empted")),
    ),
    Chart("HTTP answers", "A second, by status.", "reqps", (Line("rate", "http_requests_total", by=("status",)),)),
    Chart("Guardrails", "Decisions a second.", "reqps", (Line("rate", "guardrail_decisions_total", by=("action",)),), REFUSED),
    Chart("Behaviour", "Shares of recent exchanges.", "percentunit", (Line("gauge", "behaviour_rate", by=(*WHO, "measure")),)),
    Chart(
        "Languages",
        "Shares of recent answers.",
        "percentunit",
        (Line("gauge", "behaviour_language_share", by=(*WHO, "language")),),
    ),
    Chart(
        "Evidence of a change",
        "1 is an alert. It moves with luck far below that.",
        "short",
        (Line("gauge", "behaviour_evidence", by=(*WHO, "stream")),),
    ),
    Chart("Feedback", "Ratings a second.", "reqps", (Line("rate", "feedback_total", by=("rating",)),)),
    Chart(
        "Monitor and store",
        "A second: exchanges that were measured, stored, and left out by a busy server.",
        "reqps",
        (
            Line("rate", "behaviour_exchanges_total", "measured"),
            Line("rate", "store_exchanges_total", "stored"),
            Line("rate", "monitor_dropped_total", "not measured"),
            Line("rate", "store_dropped_total", "not stored"),
        ),
    ),
)


def values(line: Line, before: Reading, now: Reading, seconds: float) -> dict[str, float]:
    """Return {label: value} of a line, from readings of the metrics `seconds` apart. What cannot be known is left out."""
    if line.kind == "quantile":
        buckets: dict[tuple, dict[float, float]] = defaultdict(dict)
        for (le, *key), value in _grown(f"{line.metric}_bucket", ("le", *line.by), before, now).items():
            buckets[tuple(key)][float(le)] = value
        found = {key: quantile(some, line.q) for key, some in buckets.items()}
    elif line.kind == "rate":
        found = {key: value / seconds for key, value in _grown(line.metric, line.by, before, now).items()}
    elif line.kind == "ratio":
        over = _grown(line.over, line.by, before, now)
        found = {key: value / over[key] for key, value in _grown(line.metric, line.by, before, now).items() if over.get(key)}
    else:
        series: dict[tuple, list[float]] = defaultdict(list)
        for (name, labels), value in now.items():
            if name == PREFIX + line.metric:
                series[_key(line.by, labels)].append(value)
        found = {key: sum(some) if line.kind == "total" else max(some) for key, some in series.items()}
    label = line.label or line.metric
    return {" ".join(filter(None, key)) or label: value for key, value in found.items() if value is not None}


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """Return the q-quantile of cumulative counts {upper bound: count} as Prometheus does: linear within a bucket."""
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank, low, below = q * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return low
            inside = buckets[bound] - below
            return low + (bound - low) * ((rank - below) / inside if inside else 0.0)
        low, below = bound, buckets[bound]
    return low


def reading(registry) -> dict[tuple[str, frozenset], float]:
    """Return all samples of a registry of prometheus_client."""
    return {(s.name, frozenset(s.labels.items())): s.value for family in registry.collect() for s in family.samples}


def _grown(metric: str, by: tuple[str, ...], before: Reading, now: Reading) -> dict[tuple, float]:
    grown: dict[tuple, float] = defaultdict(float)
    for series, value in now.items():
        if series[0] == PREFIX + metric:
            grown[_key(by, series[1])] += max(0.0, value - before.get(series, 0.0))
    return grown


def _key(by: tuple[str, ...], labels: frozenset) -> tuple:
    known = dict(labels)
    return tuple(known.get(name, "") for name in by)
