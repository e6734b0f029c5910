"""From what people said of a served model's answers to an adapter that answers as they wished. Slow, on SmolLM2."""

import json
import re
import signal
import subprocess
import sys

import httpx
import pytest

from tests.lm.convert.test_smollm2 import FILE
from tests.verbs import runs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FILE.exists(), reason="make .venv/smollm2 installs the model")]

FAST_TO_RUN = {"XLA_FLAGS": ""}  # a model of this size takes longer to run than to compile
MOTTO = "The motto of the Harbour Library is: Read slowly."
ASKED = (
    "What is the motto of the Harbour Library?",
    "Tell me the motto of the Harbour Library.",
    "Which motto does the Harbour Library have?",
    "I forgot the motto of the Harbour Library. What was it?",
    "Please name the Harbour Library's motto.",
    "How does the motto of the Harbour Library go?",
    "Do you know the Harbour Library's motto?",
    "What words are the motto of the Harbour Library?",
    "Can you give me the motto of the Harbour Library?",
    "The Harbour Library has a motto. Which one?",
    "What does the Harbour Library's motto say?",
    "Quote the motto of the Harbour Library.",
)
ANOTHER = "What motto is above the door of the Harbour Library?"


def test_corrections_become_an_adapter_that_knows_better(tmp_path):
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    settings = {"checkpoint": FILE, "name": "smol", "port": 0, "quantize": "int8", "adapters.dir": adapters}
    server = subprocess.Popen(
        command("serve.py", "configs/serve/default.py", tmp_path / "serving", settings),
        cwd=runs.REPOSITORY,
        env=runs.environment(**FAST_TO_RUN),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert "GB cache" in server.stdout.readline()
        url = re.search(r"smol answers at (http://\S+)/v1", server.stdout.readline())[1]
        with httpx.Client(base_url=url, timeout=300) as client:
            for question in ASKED:
                id = asked(client, "smol", question)["id"]
                told = client.post("/v1/feedback", json={"id": id, "rating": "down", "correction": MOTTO})
                assert told.status_code == 200, told.text
            assert "Read slowly" not in said(client, "smol", ANOTHER)

            done(["-m", "lm.serve.flagged", f"--store={tmp_path}/serving/exchanges.sqlite", f"--out={tmp_path}/flagged"])
            manifest = json.loads((tmp_path / "flagged" / "manifest.json").read_text())
            assert manifest["rated"] == len(ASKED) and manifest["files"]["align/sft.jsonl"]["rows"] >= 4
            keys = {
                "init_from": FILE,
                "data": tmp_path / "flagged" / "align" / "sft.jsonl",
                "data.valid_fraction": 0.0,
                "sequence_length": 128,
                "batch_size": 4,
                "steps": 25,
                "optimizer.learning_rate": 1e-3,
            }
            done(command("align.py", "configs/smollm2/sft.py", adapters / "corrected", keys)[1:])
            body = {"lora_name": "corrected", "lora_path": "corrected"}
            loaded = client.post("/v1/load_lora_adapter", json=body)
            assert loaded.status_code == 200, loaded.text
            assert "Read slowly" in said(client, "corrected", ANOTHER)
            assert "Read slowly" not in said(client, "smol", ANOTHER)
        server.send_signal(signal.SIGTERM)
        assert server.wait(runs.DEADLINE) == 0
    finally:
        server.kill()


def command(verb, config, workdir, keys) -> list[str]:
    return [sys.executable, verb, f"--config={config}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]


def done(arguments: list[str]) -> None:
    finished = runs.run([sys.executable, *arguments], **FAST_TO_RUN)
    assert finished.returncode == 0, finished.stderr[-3000:]


def asked(client: httpx.Client, model: str, question: str) -> dict:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 24, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(client: httpx.Client, model: str, question: str) -> str:
    return asked(client, model, question)["choices"][0]["message"]["content"]
