import http.server
import subprocess
import sys
import threading

import pytest

from lm.errors import UserError
from lm.infer.engine.request import Times
from lm.serve.watch import tracing
from tests.lm.serve.played_engine import PlayedEngine, handle


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UserError, match="pip install opentelemetry-sdk"):
        tracing.open_tracer("http://localhost:4318", PlayedEngine(), "tiny")
    with pytest.raises(UserError, match="no address"):
        tracing.open_tracer("localhost:4318", PlayedEngine(), "tiny")


def test_without_an_endpoint_the_sdk_is_not_imported():
    """In a new process, since other tests import it. FastAPI imports OpenTelemetry's API by itself, if it is there."""
    code = "import sys, lm.serve.monitor; sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_request_is_a_span_with_its_parts():
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    engine = PlayedEngine()
    tracer = tracing.Tracer(export, engine, "tiny")
    first, waiting = handle(5, "law"), handle(2)
    engine.finish(first, "stop", 3, Times(10.0, 10.5, 12.0, 16.0, cached=2))
    engine.finish(waiting, "cancelled", 0, Times(submitted=1.0, finished=3.0))
    tracer._provider.force_flush()
    spans = {(span.name, span.context.trace_id): span for span in export.get_finished_spans()}
    tracer.close()
    trace = next(trace for name, trace in spans if name == "queue")
    root = spans["request", trace]
    assert root.parent is None and root.end_time - root.start_time == pytest.approx(6e9, abs=1000)
    assert root.attributes["gen_ai.usage.input_tokens"] == 5 and root.attributes["gen_ai.usage.output_tokens"] == 3
    assert root.attributes["lmcraft.adapter"] == "law" and root.attributes["lmcraft.cached_tokens"] == 2
    for name, seconds in (("queue", 0.5), ("prefill", 1.5), ("decode", 4.0)):
        part = spans[name, trace]
        assert part.parent.span_id == root.context.span_id
        assert part.end_time - part.start_time == pytest.approx(seconds * 1e9, abs=1000)
    assert sum(name == "request" for name, _ in spans) == 2 and len(spans) == 5  # the cancelled one has no parts


def test_spans_reach_an_otlp_endpoint():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["content-length"])), self.headers["content-encoding"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        engine = PlayedEngine()
        tracer = tracing.open_tracer(f"http://127.0.0.1:{server.server_port}", engine, "tiny")
        engine.finish(handle(), "stop", 3)
        tracer.close()
        server.shutdown()
    path, body, encoding = got[0]
    assert path == "/v1/traces" and not encoding
    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    assert {span.name for span in resource.scope_spans[0].spans} == {"request", "queue", "prefill", "decode"}
