"""serve.py as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from lm.parallel.heartbeat import LOST
from tests.verbs import runs
from tests.verbs.test_hosts import ends, start_all


def command(workdir, **settings) -> list[str]:
    values = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return [sys.executable, "serve.py", "--config=configs/serve/default.py", f"--workdir={workdir}", *values]


def test_a_trained_model_is_served(finished, tmp_path):
    read, write = os.pipe()
    line = command(tmp_path / "serving", checkpoint=finished, port=0, name="mine")
    with open(os.devnull, "r+b") as nothing, open(write, "wb") as printed, open(tmp_path / "said", "wb") as said:
        process = runs.launch(line, runs.environment(), nothing, printed, said)
    try:
        with open(read) as printed:
            held = printed.readline()
            url = re.search(r"mine answers at (http://\S+)/v1", printed.readline())[1]
        words = r"mine: [\d.]+ GB of memory, of it 0.0\d GB weights and 0.0\d GB cache \(--config.context=256: \d+ blocks\)\n"
        assert re.fullmatch(words, held)
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 4}, timeout=120)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0
        assert 'lmcraft:generation_tokens_total{model_name="mine"}' in httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert json.loads((tmp_path / "serving" / "config.json").read_text())["name"] == "mine"
    assert not (tmp_path / "serving" / ".lock").exists()


def url_of(process, printed) -> str:
    """Return the address that a server prints into a file when it answers."""
    pattern = re.compile(r"answers at (http://\S+)/v1")
    assert runs.wait(process, lambda: pattern.search(printed.read_text()))
    return pattern.search(printed.read_text())[1]


def answers_of(url) -> list[str]:
    """What openai's client gets for some requests at a time, greedy and drawn."""

    def ask(prompt: str) -> str:
        how = dict(max_tokens=20, temperature=len(prompt) % 2, seed=3, logit_bias={"5": 1.0} if prompt == "abc" else {})
        return client.completions.create(model="mine", prompt=prompt, **how).choices[0].text

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300)
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(ask, ("a", "ab", "abc", "the cat sat on")))


@pytest.mark.slow
def test_processes_and_devices_answer_as_one_and_end_together(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("LMCRAFT_LOST_SECONDS", "10")
    serving = dict(checkpoint=finished, port=0, name="mine", rows=2, dtype="float32")
    found, end = [], {}
    for name, processes, devices, mesh in (
        ("one", 1, 1, {}),
        ("mesh", 1, 8, dict(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)),
        ("two", 2, 2, dict(mesh__data=2, mesh__tensor=2)),
        ("killed", 2, 1, dict(mesh__data=2)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        started = start_all([command(folder / "serving", **serving, **mesh)] * processes, folder, devices)
        found.append(answers_of(url_of(started[0], folder / "0.out")))
        started[0].send_signal(signal.SIGTERM) if name != "killed" else started[1].kill()
        end[name] = ends(started, folder)
    assert found == [found[0]] * 4 and len(set(found[0])) > 1
    assert [end[name][0] for name in ("one", "mesh", "two", "killed")] == [[0], [0], [0, 0], [LOST, -signal.SIGKILL]]
    assert [line for line in end["killed"][1][0] if line.startswith("serve.py: process 1 was lost")] == end["killed"][1][0]


def test_what_a_server_of_several_processes_does_without_is_one_line(finished, tmp_path):
    line = command(tmp_path / "serving", checkpoint=finished, watch=1.0)
    codes, said = ends(start_all([line] * 2, tmp_path), tmp_path)
    words = "watch=1.0: a server of several processes does without; leave it out, or start one process"
    assert (
        codes == [2, 2] and [lines[-1].rpartition("serve.py: ")[2].removeprefix("process 0: ") for lines in said] == [words] * 2
    )


@pytest.mark.slow
def test_hundreds_of_hostile_requests_hold_beside_half_open_connections(finished):
    command = [sys.executable, "-m", "benchmarks.serving.hostile", f"--checkpoint={finished}", "--half_open=300"]
    done = subprocess.run(command, cwd=runs.REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cases"] >= 400 and not found["failed"] and found["healthy"]


def test_a_batch_is_answered_and_resumed(finished, tmp_path):
    lines = [{"custom_id": str(n), "url": "/v1/completions", "body": {"prompt": "ab", "max_tokens": 3}} for n in range(4)]
    requests, results = tmp_path / "requests.jsonl", tmp_path / "answers" / "results.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = command(tmp_path / "answers", checkpoint=finished, batch=requests)
    done = runs.run(run)
    assert done.returncode == 0, done.stderr[-2000:]
    first = results.read_text().splitlines()
    assert len(first) == 4
    results.write_text("\n".join(first[:2]) + "\n" + first[2][:40])  # as a kill leaves it
    done = runs.run(run)
    assert done.returncode == 0 and results.read_text().splitlines()[:2] == first[:2]
    assert sorted(json.loads(line)["custom_id"] for line in results.read_text().splitlines()) == list("0123")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"port": 99999}, "port=99999"),
        ({"host": "0.0.0.0"}, "auth.key_file"),
        ({"checkpoint": "missing"}, "missing: no such folder"),
        ({"prot": 1}, "did you mean|nearest|port"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, settings, words, finished):
    done = runs.run(command(tmp_path / "serving", **{"checkpoint": finished} | settings))
    assert done.returncode == 2 and not (tmp_path / "serving").exists()
    (line,) = runs.complaint(done.stderr)
    assert line.startswith("serve.py: ") and re.search(words, line)
