"""A tiny model works through the loop: in this process, and behind a real server with OpenAI's API, with the same result."""

import contextlib
import http.server
import json
import os
import pty
import sys
import threading

import pytest

from lm.agent.builtin import open_tools
from lm.agent.loop import Budget, Rules, run
from lm.agent.models import local_model, remote_model, to_openai
from lm.agent.records import differences, replayed
from lm.agent.trace import read
from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.room import Capacity
from lm.serve.api.service import Limits, Service
from tests.lm.agent.taught_model import CALL, CONVERSATION, QUESTION, taught
from tests.lm.serve.conftest import serving
from tests.verbs import runs


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The folder of the model, and its engine."""
    folder = tmp_path_factory.mktemp("taught")
    model, tokenizer = taught(folder)
    engine = Engine(model, tokenizer, Capacity(rows=2, budget=64, pages=200, page=16))
    yield folder, engine
    engine.close()


@pytest.fixture(scope="module")
def url(known):
    with serving(Service(known[1], "tiny", limits=Limits(timeout=60.0))) as url:
        yield f"{url}/v1"


def test_a_model_of_this_process_calls_and_answers(known):
    trace = run(local_model(known[1]), open_tools(["calculator"]), QUESTION)
    assert (trace.answer, trace.finish) == ("It is 391.", "answer")
    assert trace.messages == [CONVERSATION[0], CONVERSATION[1], CONVERSATION[2] | {"name": "calculator"}, CONVERSATION[3]]
    assert trace.tokens == sum(turn["tokens"] for turn in trace.turns) > 10 and differences(trace, replayed(trace)) == []


def test_a_served_model_does_the_same(known, url):
    here = run(local_model(known[1]), open_tools(["calculator"]), QUESTION)
    there = run(remote_model(url, "tiny"), open_tools(["calculator"]), QUESTION)
    assert there.messages == here.messages and there.answer == "It is 391." and there.ran[0]["arguments"] == CALL["arguments"]
    assert [turn["tokens"] for turn in there.turns] == [turn["tokens"] for turn in here.turns]


def test_a_server_on_this_machine_is_asked_past_the_proxy(url, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(remote_model(url, "tiny"), open_tools(["calculator"]), QUESTION).answer == "It is 391."


def test_limits_reach_the_model(known, url):
    for model in (local_model(known[1]), remote_model(url, "tiny")):
        cut = run(model, open_tools(["calculator"]), QUESTION, Rules(Budget(tokens=5)))
        assert (cut.finish, cut.tokens, cut.calls) == ("tokens", 5, [])
    late = run(local_model(known[1]), open_tools(["calculator"]), QUESTION, Rules(Budget(seconds=1e-6)))
    assert late.finish == "seconds"
    with pytest.raises(UserError, match="has 1024|positions"):
        run(local_model(known[1]), [], "a b " * 2000)


def test_a_server_that_is_wrong_or_away(url):
    for address, model, words in (
        (url, "none", "status 404"),
        (f"{url}/none", "", "status 404"),
        ("http://127.0.0.1:9/v1", "", "no answer"),
    ):
        with pytest.raises(UserError, match=words):
            run(remote_model(address, model), [], "a")
    with pytest.raises(UserError, match="must begin with http"):
        remote_model("localhost:8000", "")


@pytest.mark.parametrize(
    "message",
    [
        {"content": ["a list"]},
        {"content": {"text": "an object"}},
        {"tool_calls": [{"function": {"name": 7, "arguments": "{}"}}]},
        {"tool_calls": 7},
        "no object",
    ],
)
def test_an_answer_that_is_no_chat_completion(message):
    body = json.dumps({"choices": [{"message": message}]}).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(UserError, match="this is no chat completion"):
            run(remote_model(f"http://127.0.0.1:{server.server_port}/v1", ""), [], "a")


def test_messages_for_the_api():
    sent = to_openai([*CONVERSATION, *CONVERSATION, {"role": "tool", "content": "error: no JSON"}])
    ids = [message["tool_calls"][0]["id"] for message in sent if message.get("tool_calls")]
    assert len(set(ids)) == 2 and [m["tool_call_id"] for m in sent if m["role"] == "tool"] == ids
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == CALL["arguments"] and sent[-1]["role"] == "user"


def agent(*flags, text=""):
    command = [sys.executable, "-m", "lm.agent", *map(str, flags)]
    return runs.run(command, stdin=text)


def test_the_command(known, url, tmp_path):
    traces = tmp_path / "traces.jsonl"
    done = agent(f"--checkpoint={known[0]}", f"--task={QUESTION}", f"--traces={traces}")
    assert (done.returncode, done.stdout) == (0, "It is 391.\n"), done.stderr[-3000:]
    served = agent(
        f"--url={url}", "--model=tiny", f"--traces={traces}", "--steps=1", "--allow=", text=f"{QUESTION}\n\n{QUESTION}\n"
    )
    assert served.stderr.count("calls that did not run: 1 (calculator: a call that reads something needs consent") == 2
    assert served.stdout == "(no answer)\n(no answer)\n" and served.stderr.count("the run ended by steps: --steps") == 2
    assert [(trace.finish, trace.model) for trace in read(traces)] == [
        ("answer", str(known[0])),
        ("steps", "tiny"),
        ("steps", "tiny"),
    ]


@pytest.mark.parametrize(("said", "answer"), [("y", "calculator({"), ("n", "the user said no")])
def test_the_user_is_asked_on_the_terminal(known, said, answer):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "lm.agent", f"--checkpoint={known[0]}", f"--task={QUESTION}", "--allow=", "--steps=2"]
    with open(slave, "r+b", buffering=0) as end:
        process = runs.launch(command, runs.environment(), end, end, end)
    shown, sent = "", 0
    with contextlib.suppress(OSError):  # the terminal is closed at the end of the process
        while piece := os.read(master, 4096):
            shown += piece.decode("utf-8", "replace")
            if shown.count("Run it? [y/N]") > sent:  # a model may ask again for what was denied
                os.write(master, f"{said}\n".encode())
                sent += 1
    os.close(master)
    assert process.wait(runs.DEADLINE) == 0 and sent >= 1, shown
    assert "This reads something." in shown and answer in shown and ("It is 391." in shown) == (said == "y")


def test_mistakes(known):
    one = f"--checkpoint={known[0]}"
    for flags, words in (
        ((one, "--url=http://a"), "give --checkpoint"),
        ((one, "--tools=hammer"), "no tool 'hammer'"),
        ((one, "--allow=write"), "'write' is no risk"),
        ((one, "--model=tiny"), "give --url too"),
        ((one, f"--folder={known[0]}"), "add files to --tools"),
        ((one,), "no task"),
    ):
        done = agent(*flags)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert words in done.stderr
