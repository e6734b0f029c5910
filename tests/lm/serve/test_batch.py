"""Batch files: answers by id, resumed after a kill, errors as answers."""

import json

import pytest

from lm.errors import UserError
from lm.serve.api.service import Service
from lm.serve.batch import answer_file, read_requests, read_results
from tests.lm.serve.conftest import engine_of


def line(name, url="/v1/completions", **body):
    given = {"model": "tiny", "temperature": 0, "max_tokens": 5} | body
    return {"custom_id": name, "method": "POST", "url": url, "body": given}


REQUESTS = [
    line("one", prompt="the cat"),
    line("two", "/v1/chat/completions", messages=[{"role": "user", "content": "the"}]),
    line("three", prompt="def", n=2),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return {row["custom_id"]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture
def ask(service, tmp_path):
    def run(rows):
        return answer_file(service, write(tmp_path / "requests.jsonl", rows), tmp_path / "results.jsonl", rows=2)

    return run


def test_every_request_is_answered(ask, client, tmp_path):
    assert ask(REQUESTS) == 0
    found = read(tmp_path / "results.jsonl")
    assert found.keys() == {"one", "two", "three"}
    body = found["one"]["response"]["body"]
    assert found["one"]["response"]["status_code"] == 200 and found["one"]["response"]["request_id"] == body["id"]
    served = client.completions.create(model="tiny", prompt="the cat", temperature=0, max_tokens=5)
    assert body["choices"][0]["text"] == served.choices[0].text and body["usage"]["completion_tokens"] == 5
    assert found["two"]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert len(found["three"]["response"]["body"]["choices"]) == 2


def test_responses_and_embeddings_are_answered_as_by_the_server(ask, client, tmp_path):
    answer, vector = {"input": "the", "max_output_tokens": 5, "temperature": 0}, {"input": ["the cat", "def"]}
    lines = [("a", "/v1/responses", answer), ("b", "/v1/embeddings", vector)]
    assert ask([{"custom_id": name, "method": "POST", "url": url, "body": body} for name, url, body in lines]) == 0
    bodies = {name: row["response"]["body"] for name, row in read(tmp_path / "results.jsonl").items()}
    served = client.responses.create(model="tiny", **answer)
    assert bodies["a"]["output"][0]["content"][0]["text"] == served.output_text
    for row, one in zip(bodies["b"]["data"], client.embeddings.create(model="tiny", **vector).data, strict=True):
        assert row["embedding"] == pytest.approx(one.embedding, abs=1e-6)


def test_a_killed_batch_asks_only_what_is_missing(ask, tmp_path):
    results = tmp_path / "results.jsonl"
    ask(REQUESTS)
    whole = results.read_bytes()
    first, second, _ = whole.splitlines(keepends=True)
    again = json.loads(second)
    again["response"]["status_code"] = 503
    results.write_bytes(first + json.dumps(again).encode() + b"\n" + b'{"custom_id": "three", "respon')
    assert ask(REQUESTS) == 0
    lines = results.read_bytes().splitlines(keepends=True)
    assert lines[0] == first and len(lines) == 3
    ids = {name: row["response"]["request_id"] for name, row in read(results).items()}
    before = {row["custom_id"]: row["response"]["request_id"] for row in map(json.loads, whole.splitlines())}
    same = {name for name in ids if ids[name] == before[name]}
    assert same == {json.loads(first)["custom_id"]}
    assert ask(REQUESTS) == 0 and results.read_bytes() == b"".join(lines)


def test_errors_are_answers_and_the_exit_code(ask, tmp_path, capsys):
    assert ask([*REQUESTS, line("bad", prompt="a", temperature=9), line("unknown", prompt="a", model="x")]) == 1
    found = read(tmp_path / "results.jsonl")
    assert found["bad"]["response"]["status_code"] == 400 and found["unknown"]["response"]["status_code"] == 404
    assert found["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert "2 of 5 requests failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON\n",
        "[]\n",
        '{"url": "/v1/completions", "body": {}}\n',
        '{"custom_id": "a", "url": "/v1/models", "body": {}}\n',
        '{"custom_id": "a", "url": "/v1/completions", "method": "GET", "body": {}}\n',
        '{"custom_id": "a", "url": "/v1/completions", "body": {"stream": true}}\n',
        '{"custom_id": "a", "url": "/v1/completions", "body": []}\n',
        '{"custom_id": "a", "url": "/v1/completions", "body": {}}\n' * 2,
        "\udcff\n",
    ],
)
def test_a_file_that_is_no_batch_is_refused_before_it_starts(tmp_path, text):
    path = tmp_path / "requests.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="batch="):
        read_requests(path)


@pytest.fixture
def own_queue(tokenizer):
    engine = engine_of(tokenizer, queue=1)
    yield engine
    engine.close()


def test_a_full_queue_is_waited_for(own_queue, tmp_path, monkeypatch):
    monkeypatch.setattr("lm.serve.api.service.BUSY", 0.05)
    rows = [line(str(n), prompt="the", max_tokens=3) for n in range(9)]
    requests = write(tmp_path / "requests.jsonl", rows)
    assert answer_file(Service(own_queue, "tiny"), requests, tmp_path / "results.jsonl", rows=4) == 0
    assert len(read_results(tmp_path / "results.jsonl")) == 9
