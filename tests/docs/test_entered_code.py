"""docs/architecture.md says how much code a step and a request enter, and which files: it is counted here."""

import json
import re
import subprocess
import sys

from data.text.sentencepiece_tokenizer import train
from tests.lm.serve.conftest import TEXT
from tests.verbs import runs

PAGE = (runs.REPOSITORY / "docs" / "architecture.md").read_text()


def counted(*arguments) -> dict:
    command = [sys.executable, "-m", "tests.docs.walk", *map(str, arguments)]  # not a fork, which has imported more
    done = subprocess.run(command, cwd=runs.REPOSITORY, env=runs.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_told(heading: str, found: dict) -> None:
    """The section has the figures, to a tenth and not above them, and names files that are entered."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    told = [int(n) for n in re.search(r"(\d+) files and (\d+) functions.*?(\d+) calls deep", section, re.S).groups()]
    told += [int(n) for n in re.findall(r"imports (\d+) of", section)]
    for n, limit in zip((len(found["files"]), found["functions"], found["deep"], found["imported"]), told):
        assert 0.9 * limit <= n <= limit, (found["functions"], found["deep"], found["files"])
    named = [path for path in re.findall(r"`((?:lm|data)/[^`]+)`", section) if path.endswith(".py")]
    assert len(named) > 4 and set(named) - set(found["files"]) <= set(re.findall(r"`([^`]+)` \(before\)", section))


def test_one_batch(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for i in range(8):
        (text / f"{i}.txt").write_text("\n".join(f"The {n}th hat sat on mat {i} of cat {n * n}." for n in range(60)))
    keys = dict(steps=4, valid_every=2, checkpoint_every=2, samples="()", data__input=text)
    small = dict(batch_size=4, sequence_length=32, model__vocab_size=300, data__valid_fraction=0.1)
    keys |= small
    config = [f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items()]
    line = ["train.py", "--config=configs/train/tiny.py", f"--workdir={tmp_path / 'run'}", *config]
    assert_told("One batch, from text to gradient", counted(*line))


def test_one_request(tmp_path):
    train(TEXT * 3, tmp_path / "tokenizer", vocab_size=340, sample_bytes=1 << 16, seed=0, threads=1).save(tmp_path)
    assert_told("One request, from HTTP to tokens", counted("request", tmp_path))
