"""OpenTelemetry traces: a span for each request of the engine, with its parts queue, prefill and decode.

OpenTelemetry is imported only if an endpoint is configured. Attributes have the names of its conventions for generative AI.
"""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from lm.errors import UserError

INSTALL = "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
PATH = "/v1/traces"  # of OTLP over HTTP


class Tracer:
    """Sends spans in batches from a thread of the exporter's own."""

    def __init__(self, exporter, engine, model_name: str):
        """exporter: a SpanExporter of OpenTelemetry's SDK."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "lmcraft"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lmcraft")
        self._model = model_name
        engine.observers.append(self._observe)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()

    def _observe(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind != "finished":
            return
        from opentelemetry import trace

        handle, times = facts["handle"], facts["handle"].times
        offset = time.time_ns() - time.monotonic_ns()  # spans are in wall time
        at = {name: int(getattr(times, name) * 1e9) + offset for name in ("submitted", "started", "first", "finished")}
        end = at["finished"] if times.finished else time.time_ns()
        attributes = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": self._model,
            "gen_ai.request.max_tokens": handle.request.max_new_tokens,
            "gen_ai.request.temperature": handle.request.temperature,
            "gen_ai.request.top_p": handle.request.top_p,
            "gen_ai.response.finish_reasons": [facts["finish"]],
            "gen_ai.usage.input_tokens": len(handle.request.prompt),
            "gen_ai.usage.output_tokens": facts["generated"],
            "lmcraft.adapter": handle.request.adapter,
            "lmcraft.cached_tokens": times.cached,
            "lmcraft.preempted": times.preempted,
        }
        span = self._tracer.start_span("request", attributes=attributes, start_time=at["submitted"])
        inside = trace.set_span_in_context(span)
        parts = (("queue", "submitted", "started"), ("prefill", "started", "first"), ("decode", "first", "finished"))
        for name, begin, until in parts:
            if getattr(times, begin) and getattr(times, until):
                self._tracer.start_span(name, context=inside, start_time=at[begin]).end(at[until])
        if facts["finish"] == "error":
            span.set_status(trace.StatusCode.ERROR)
        span.end(end)


def open_tracer(endpoint: str, engine, model_name: str) -> Tracer:
    """Return a tracer that sends to an OTLP endpoint over HTTP, such as http://localhost:4318.

    Raises: UserError: the endpoint is no address, or OpenTelemetry is not installed.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"tracing={endpoint!r}: no address; name an OTLP endpoint over HTTP, such as http://localhost:4318")
    try:
        import opentelemetry.sdk.trace  # noqa: F401
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise UserError(f"tracing={endpoint}: OpenTelemetry is not installed: {INSTALL}") from None
    return Tracer(OTLPSpanExporter(endpoint if parts.path.strip("/") else endpoint.rstrip("/") + PATH), engine, model_name)
