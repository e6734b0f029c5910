"""The other routes, errors, and what happens when clients leave, read slowly, or the server stops."""

import asyncio
import collections
import functools
import json
import socket
import threading

import httpx
import openai
import pytest
import yaml
from fastapi import APIRouter
from flax import nnx

from lm.adapt import lora
from lm.align.safety.constitution import SHIPPED
from lm.config import Adapter
from lm.convert.peft import export_peft
from lm.infer.engine.adapters import Slots
from lm.serve.api.app import Settings, make_app
from lm.serve.api.service import Limits, Service
from lm.serve.monitor import Watch
from lm.serve.settings import WatchSettings
from lm.serve.store import connect
from tests.lm.serve.conftest import CONFIG, client_of, engine_of, held, model_of, serving, until


@pytest.fixture
def own(tokenizer):
    """An engine that a test may hold."""
    engine = engine_of(tokenizer, queue=2)
    yield engine
    engine.close()


def post(url, path, value=None, **options):
    return httpx.post(f"{url}{path}", json=value, timeout=60, **options)


def error_of(response):
    body = response.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    return body["error"]


def test_health_models_and_tokens(url, client, tokenizer):
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/ready").json() == {"status": "ready", "model": "tiny"}
    assert client.models.retrieve("tiny").id == "tiny"
    ids = tokenizer.prompt_ids("the cat → 深い")
    found = post(url, "/tokenize", {"prompt": "the cat → 深い", "return_token_strs": True}).json()
    assert found["tokens"] == ids and found["count"] == len(ids) == len(found["token_strs"])
    assert post(url, "/detokenize", {"tokens": ids}).json() == {"prompt": "the cat → 深い"}
    assert post(url, "/tokenize", {"prompt": "<s>", "add_special_tokens": False}).json()["tokens"] == tokenizer.encode("<s>")
    talk = post(url, "/tokenize", {"messages": [{"role": "user", "content": "a"}]}).json()["tokens"]
    assert tokenizer.controls["<|user|>"] in talk


def test_a_chat_that_names_no_sampling_gets_that_of_the_server(own):
    with serving(Service(own, "tiny", sampling={"temperature": 0.0, "top_p": 1.0})) as url:
        client = client_of(url)
        chat = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "a"}]}
        texts = [client.chat.completions.create(**chat, seed=seed).choices[0].message.content for seed in (1, 2)]
        hot = [client.chat.completions.create(**chat, seed=seed, temperature=2).choices[0].message.content for seed in (1, 2)]
        asked = {"model": "tiny", "prompt": "a", "max_tokens": 8}
        plain = [client.completions.create(**asked, seed=seed).choices[0].text for seed in (1, 2)]
        assert texts[0] == texts[1] and hot[0] != hot[1] and plain[0] != plain[1]
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["default_sampling"] == {"temperature": 0.0, "top_p": 1.0}


def test_unknown_models_and_paths(url, client):
    for call in (client.completions.create, client.embeddings.create):
        with pytest.raises(openai.NotFoundError) as error:
            call(model="gpt-9", **({"prompt": "a"} if call == client.completions.create else {"input": "a"}))
        assert error.value.code in ("model_not_found", "unknown_url")
    assert error_of(httpx.get(f"{url}/v1/models/x/../../y"))["type"] == "not_found_error"
    assert httpx.get(f"{url}/v1/completions").status_code == 405
    assert httpx.get(f"{url}/openapi.json").status_code == 404


BODIES = {
    "invalid UTF-8": b'{"model": "tiny", "prompt": "\xff\xfe"}',
    "no JSON": b"{",
    "empty": b"",
    "a list": b"[]",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": 1e999}',
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"a": ' * 70 + b"1" + b"}" * 70,
    "long number": b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
    "null prompt": b'{"prompt": null}',
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_requests(url, name):
    response = httpx.post(f"{url}/v1/completions", content=BODIES[name], headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and error_of(response)["type"] == "invalid_request_error"
    assert len(response.content) < 1000


def test_other_content_types_are_refused(url):
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = httpx.post(f"{url}/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": kind})
        assert response.status_code == 415 and "application/json" in error_of(response)["message"]


def test_lone_surrogates_come_back_as_something(url):
    body = b'{"prompt": "a\\ud800b", "max_tokens": 1, "echo": true, "temperature": 0}'
    response = httpx.post(f"{url}/v1/completions", content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert response.status_code == 200 and response.json()["choices"][0]["text"].startswith("a\ufffdb")
    refused = httpx.post(f"{url}/v1/completions", content=b'{"prompt": "a", "model": "\\ud800"}',
                         headers={"Content-Type": "application/json"})  # fmt: skip
    assert refused.status_code == 404 and error_of(refused)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(own, stream):
    with serving(Service(own, "tiny")) as url:
        port = int(url.rpartition(":")[2])
        body = json.dumps({"prompt": "the cat", "max_tokens": 900, "stream": stream, "ignore_eos": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(head.encode() + body)
            until(lambda: own.stats().generation_tokens > 2)
        until(lambda: own.stats().finished.get("cancelled") == 1)
        assert own.stats().running == 0


def test_half_a_request_is_no_fault_of_the_server(own):
    head = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"content-type", b"application/json")]}
    came = iter([{"type": "http.request", "body": b'{"pro', "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(came, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    app = make_app(Service(own, "tiny"))
    asyncio.run(app(head | {"query_string": b"", "client": ("127.0.0.1", 1)}, receive, send))
    assert sent[0]["status"] == 499


def test_a_client_that_leaves_the_queue_is_forgotten(own):
    with serving(Service(own, "tiny")) as url:
        with held(own):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 900, "ignore_eos": True}, timeout=0.5)
    until(lambda: own.stats().finished.get("cancelled") == 1)


def test_a_slow_reader_is_cancelled(tokenizer):
    """The client reads nothing of some megabytes: neither the engine nor the memory of the server waits for it."""
    own = engine_of(tokenizer)
    with serving(Service(own, "tiny", limits=Limits(unread_tokens=5)), Settings(read_seconds=1.0)) as url:
        port = int(url.rpartition(":")[2])
        fields = {
            "prompt": [5] * 900,
            "max_tokens": 9,
            "n": 64,
            "stream": True,
            "ignore_eos": True,
            "logprobs": 20,
            "echo": True,
        }
        body = json.dumps(fields).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            sock.connect(("127.0.0.1", port))
            sock.sendall(head.encode() + body)
            until(lambda: sum(own.stats().finished.values()) == 64, 300)
        assert own.stats().finished["cancelled"] > 9


def test_a_full_queue_is_429_and_a_late_answer_408(own, monkeypatch):
    monkeypatch.setattr("lm.serve.api.service.GRACE", 0.5)
    service = Service(own, "tiny", limits=Limits(timeout=0.5))
    with serving(service) as url:
        assert post(url, "/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200
    assert 0 < service.seconds < 0.5
    service.seconds = 11.5  # as if requests took so long
    with serving(service) as url, held(own):
        answers = []
        fields = {"prompt": "a", "max_tokens": 5, "ignore_eos": True}
        threads = [threading.Thread(target=lambda: answers.append(post(url, "/v1/completions", fields))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} == {408, 429}
        for answer in answers:
            assert error_of(answer)["code"] == {408: "timeout", 429: "queue_full"}[answer.status_code]
            assert answer.status_code == 408 or answer.headers["retry-after"] == "12"


def test_an_error_of_the_engine_is_one_of_the_server(own, monkeypatch):
    monkeypatch.setattr(own, "_once", lambda *_: 1 / 0)
    with serving(Service(own, "tiny")) as url:
        response = post(url, "/v1/completions", {"prompt": "a"})
        assert response.status_code == 500 and error_of(response)["type"] == "server_error"
        events = post(url, "/v1/completions", {"prompt": "a", "stream": True}).text
        assert "server_error" in events


def test_a_stopping_server_takes_nothing_new_and_finishes_the_rest(own):
    service = Service(own, "tiny")
    with serving(service) as url:
        with held(own):
            answers = []
            fields = {"prompt": "a", "ignore_eos": True}
            thread = threading.Thread(target=lambda: answers.append(post(url, "/v1/completions", fields)))
            thread.start()
            until(lambda: own.stats().running == 1)
            service.draining = True
            refused = post(url, "/v1/completions", {"prompt": "b"})
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert httpx.get(f"{url}/ready").status_code == 503 and httpx.get(f"{url}/health").status_code == 200
        thread.join()
        assert answers[0].status_code == 200


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_model_whose_template_never_ends_still_completes(engine):
    with serving(Service(engine, "tiny", template=ENDLESS)) as url:
        refused = post(url, "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
        assert refused.status_code == 400 and "more steps" in error_of(refused)["message"]
        assert post(url, "/v1/completions", {"prompt": "a", "max_tokens": 1}).status_code == 200


def test_adapters_come_and_go(tokenizer, tmp_path):
    adapter = Adapter(rank=2, alpha=8.0, targets=r"attention\..*")
    config, adapted = lora.with_adapter(CONFIG, nnx.split(model_of(0))[1], adapter, seed=1)
    adapted = nnx.map_state(lambda path, x: x.replace(x[...] + 0.3) if path[-1] == "lora_b" else x, adapted)
    export_peft(tmp_path / "shift", config, adapted)
    (tmp_path / "broken").mkdir()
    own = engine_of(tokenizer, slots=Slots(2, 4, ".*"))
    with serving(Service(own, "tiny", adapter_dir=tmp_path)) as url:
        client = client_of(url)
        load = {"lora_name": "shift"}
        assert post(url, "/v1/load_lora_adapter", load).status_code == 200
        assert error_of(post(url, "/v1/load_lora_adapter", load))["param"] == "lora_name"
        assert {model.id for model in client.models.list()} == {"tiny", "shift"}
        texts = {
            name: client.completions.create(model=name, prompt="the cat", temperature=0).choices[0].text
            for name in ("tiny", "shift")
        }
        assert texts["tiny"] != texts["shift"]
        broken = post(url, "/v1/load_lora_adapter", {"lora_name": "broken"})
        assert broken.status_code == 400 and str(tmp_path) not in broken.text
        assert post(url, "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc"}).status_code == 404
        assert post(url, "/v1/unload_lora_adapter", load).status_code == 200
        assert post(url, "/v1/unload_lora_adapter", load).status_code == 404
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="shift", prompt="a")
    own.close()


@pytest.fixture
def watched(own, tmp_path):
    """A service with the monitor, whose guardrails refuse one word in prompts, and end answers at another."""
    policies = [
        {"id": "poison", "hazard": "vcr", "action": "block", "where": "input", "patterns": ["poison"]},
        {"id": "mail", "hazard": "prv", "action": "mask", "where": "input", "pii": ["email"]},
        {"id": "equal", "hazard": "iwp", "action": "block", "where": "output", "patterns": ["===="]},
    ]
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | {"policies": policies}
    (tmp_path / "constitution.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    settings = WatchSettings(constitution=str(tmp_path / "constitution.yaml"), store_share=1.0, status_seconds=0)
    service = Service(own, "tiny")
    service.watch = Watch(settings, tmp_path / "run", own, model_name="tiny", checkpoint=lambda: service.checkpoint)
    yield service
    service.watch.close()


def test_the_monitor_sees_what_is_asked_and_answered(watched, tokenizer):
    router = APIRouter()
    router.add_api_route("/extra", lambda: "more")
    with serving(watched, routers=[router]) as url:
        client = client_of(url)
        assert httpx.get(f"{url}/extra").json() == "more"
        ask = {"model": "tiny", "messages": [{"role": "user", "content": "the"}], "temperature": 0, "max_tokens": 5}
        whole = client.chat.completions.create(**ask)
        list(client.chat.completions.create(stream=True, **ask))
        assert post(url, "/v1/feedback", {"id": whole.id, "rating": "down", "comment": "no"}).status_code == 200
        assert error_of(post(url, "/v1/feedback", {"id": "other", "rating": "up"}))["type"] == "not_found_error"

        refused = client.chat.completions.create(**ask | {"messages": [{"role": "user", "content": "poison"}]}).choices[0]
        assert refused.finish_reason == "content_filter" and refused.message.content
        begun = {"messages": [{"role": "user", "content": "poison"}, {"role": "assistant", "content": "<think>\n"}]}
        goes_on = {"continue_final_message": True, "add_generation_prompt": False}
        refused = client.chat.completions.create(**ask | begun, extra_body=goes_on).choices[0].message
        assert refused.content and not hasattr(refused, "reasoning_content")  # a refusal is no thought
        events = list(client.completions.create(model="tiny", prompt="poison", stream=True))
        assert [event.choices[0].finish_reason for event in events] == ["content_filter"]

        equal = {"logit_bias": {str(tokenizer.encode("=")[-1]): 100}}
        cut = client.completions.create(model="tiny", prompt="a", max_tokens=30, logprobs=0, **equal).choices[0]
        assert cut.finish_reason == "content_filter" and "====" not in cut.text and len(cut.logprobs.tokens) == len(cut.text)
        masked = client.completions.create(model="tiny", prompt="a@example.com", max_tokens=1, echo=True).choices[0].text
        assert "a@example" not in masked

        metrics = httpx.get(f"{url}/metrics").text
        counted = 'http_requests_total{method="POST",model_name="tiny",route="/v1/chat/completions",status="200"} 4.0'
        assert counted in metrics
    watched.watch.flush()
    rows = connect(watched.watch.folder / "exchanges.sqlite").execute("select * from exchanges").fetchall()
    assert len(rows) == 7 and any(whole.id in map(str, row) for row in rows)


def test_counters_say_how_clients_saw_answers_end(watched):
    """A stop string ends an answer for its reader, also where the engine goes on, or ends at its limit with that very token."""

    def counted(url):
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("lmcraft:request_success_total{"))
        return {finish: sum(float(n) for name, n in found.items() if f'"{finish}"' in name) for finish in ("stop", "length")}

    with serving(watched) as url:
        client = client_of(url)
        ask = functools.partial(client.completions.create, model="tiny", prompt="the cat", seed=7)
        last = ask(max_tokens=8, extra_body={"ignore_eos": True}).choices[0].text[-2:]
        before, seen = counted(url), collections.Counter()
        for max_tokens in range(1, 13):
            for stream in (False, True):
                answer = ask(max_tokens=max_tokens, stop=last, stream=stream, extra_body={"ignore_eos": True})
                choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
                seen[choices[-1].finish_reason] += 1
        until(lambda: sum(counted(url).values()) - sum(before.values()) == 24)
        assert {finish: n - before[finish] for finish, n in counted(url).items()} == seen and len(seen) == 2


def test_a_client_that_leaves_ends_its_exchange(watched):
    with serving(watched) as url, held(watched.engine):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 900, "ignore_eos": True}, timeout=0.5)
    watched.watch.flush()
    rows = connect(watched.watch.folder / "exchanges.sqlite").execute("select * from exchanges").fetchall()
    assert len(rows) == 1 and "cancelled" in rows[0]


def test_an_ignored_field_is_named_once(url, caplog):
    body = {"prompt": "the cat", "max_tokens": 1, "prompt_logprobs_of_mine\n": 1, "logit_bias": None}
    with caplog.at_level("WARNING", logger="lm.serve"):
        assert all(post(url, "/v1/completions", body).status_code == 200 for _ in range(2))
    told = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert len(told) == 1 and "prompt_logprobs_of_mine" in told[0] and "\n" not in told[0]
