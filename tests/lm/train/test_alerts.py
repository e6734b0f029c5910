"""Alerts go to a file and to a webhook, whose failure costs a line."""

import http.server
import json
import threading

import pytest

from lm.train.alerts import alert


@pytest.fixture
def webhook(monkeypatch):
    """A server that keeps what it is sent. Its attribute `status` is its answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LMCRAFT_ALERTS_URL", f"http://127.0.0.1:{server.server_port}/secret")
    yield server
    server.shutdown()
    server.server_close()


def rows(workdir):
    return [json.loads(line) for line in (workdir / "alerts.jsonl").read_text().splitlines()]


def test_an_alert_is_recorded_and_sent(webhook, tmp_path, capfd):
    alert(tmp_path, "rewind", 7, "step 7: back to 4", wait=True)
    alert(tmp_path, "damaged", None, "a file is gone", wait=True)
    assert [(row["kind"], row["step"], row["text"]) for row in rows(tmp_path)] == [
        ("rewind", 7, "step 7: back to 4"),
        ("damaged", None, "a file is gone"),
    ]
    assert all(row["time"] > 1.7e9 for row in rows(tmp_path))
    assert len(webhook.got) == 2 and webhook.got[0]["text"].startswith(f"{tmp_path.name} on ")
    assert webhook.got[0]["text"].endswith(": step 7: back to 4") and capfd.readouterr().out == ""


def test_a_webhook_that_fails_costs_a_line_without_its_address(webhook, tmp_path, capfd):
    webhook.status = 403
    alert(tmp_path, "rewind", 7, "back", wait=True)
    assert capfd.readouterr().out == "warning: LMCRAFT_ALERTS_URL: the webhook did not take an alert (status 403)\n"


def test_an_address_that_is_none_costs_a_line(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("LMCRAFT_ALERTS_URL", "secret")
    alert(tmp_path, "rewind", 7, "back", wait=True)
    said = capfd.readouterr().out
    assert said.count("\n") == 1 and "(MissingSchema)" in said and "secret" not in said and len(rows(tmp_path)) == 1
