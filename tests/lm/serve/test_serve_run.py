"""The server as a process: signals, and newer weights while it answers."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from lm.errors import UserError
from lm.infer.engine.request import Request
from lm.serve.settings import bound
from tests.lm.serve.conftest import engine_of, model_of, until
from tests.verbs import runs

ASK = {"prompt": "the cat", "temperature": 0, "max_tokens": 12}


@pytest.fixture
def process(tokenizer, tmp_path):
    """(the process, its base URL, the folder that it watches)."""
    (tmp_path / "checkpoints" / "0").mkdir(parents=True)
    tokenizer.save(tmp_path)
    command = [sys.executable, "-m", "tests.lm.serve.server_process", str(tmp_path)]
    said, end = os.pipe()
    with open(os.devnull, "rb") as nothing, open(end, "wb") as stdout, (tmp_path / "stderr").open("wb") as stderr:
        process = runs.launch(command, runs.environment(), nothing, stdout, stderr)
    with open(said) as process.stdout:
        yield process, re.search(r"http://[^/]+", process.stdout.readline())[0], tmp_path
        process.kill()
        process.wait()


def test_a_signal_ends_the_server_when_its_answers_are_whole(process):
    server, url, _ = process
    with httpx.stream("POST", f"{url}/v1/completions", json=ASK | {"max_tokens": 700, "stream": True}, timeout=300) as answer:
        events = answer.iter_lines()
        next(events)
        server.send_signal(signal.SIGTERM)
        rest = [line.removeprefix("data: ") for line in events if line]
    assert rest[-1] == "[DONE]" and json.loads(rest[-2])["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_newer_weights_are_swapped_in_and_no_request_is_dropped(process, tokenizer):
    server, url, folder = process
    long = ASK | {"max_tokens": 60, "ignore_eos": True}
    wanted = {}
    for step in (0, 1):
        engine = engine_of(tokenizer)
        engine.swap(model_of(step))
        for name, ask in (("short", ASK), ("long", long)):
            stops = () if name == "long" else tokenizer.stop_ids
            request = Request(tuple(tokenizer.prompt_ids("the cat")), ask["max_tokens"], 0.0, stop_ids=stops)
            wanted[step, name] = tokenizer.decode(engine.generate(request))
        engine.close()
    assert wanted[0, "short"] != wanted[1, "short"]

    def said(ask):
        return httpx.post(f"{url}/v1/completions", json=ask, timeout=300).json()["choices"][0]["text"]

    assert said(ASK) == wanted[0, "short"]
    (folder / "checkpoints" / "1").mkdir()
    answers = []
    until(lambda: answers.append(said(long)) or answers[-1] == wanted[1, "long"], 300)
    assert set(answers) <= {wanted[0, "long"], wanted[1, "long"]}
    assert "now at step 1" in server.stdout.readline()
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0


def test_a_server_may_have_as_many_connections_as_it_allows():
    code = "import resource\nfrom lm.serve.run import allow_files\n"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\nallow_files()\n"
    code += "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\nassert soft == min(4096, hard % 2**63), soft"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_taken_address_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="port=.*use another"):
            bound("127.0.0.1", taken.getsockname()[1])
