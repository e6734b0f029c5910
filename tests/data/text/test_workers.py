"""Workers give what one process gives, and end in one line or silence, never in a hang."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.sources.source import Document, Source
from data.text import split
from data.text.dataset import prepare
from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import train
from data.text.workers import HERE, ordered
from lm.errors import UserError
from tests.data.chat import hf_examples
from tests.data.text.test_split import mutations, source, words
from tests.data.text.worker_functions import deadly, meeting, picky, power
from tests.slow import all_but

ROOT = Path(__file__).parents[3]


def test_results_come_in_order_from_other_processes():
    found = list(ordered(power, 3, iter(range(40)), processes=2))
    assert [value for _, value in found] == [3**n for n in range(40)]
    assert {pid for pid, _ in found[:HERE]} == {os.getpid()} and os.getpid() not in {pid for pid, _ in found[HERE:]}
    assert {pid for pid, _ in ordered(power, 3, range(40), processes=1)} == {os.getpid()}
    assert {pid for pid, _ in ordered(power, 3, range(HERE), processes=2)} == {os.getpid()}


def test_an_error_in_a_worker_comes_as_it_is():
    with pytest.raises(UserError, match="^item 13 is no item$"):
        list(ordered(picky, 13, range(40), processes=2))

    def items():
        yield from range(9)
        raise UserError("line 9 is no JSON")

    with pytest.raises(UserError, match="^line 9 is no JSON$"):
        list(ordered(picky, None, items(), processes=2))


def test_the_death_of_a_worker_is_said_in_a_line():
    with pytest.raises(UserError, match="worker processes .* was killed, .* memory") as error:
        list(ordered(deadly, 13, range(40), processes=2))
    assert "\n" not in str(error.value)


def test_a_slow_item_does_not_hold_up_the_other_worker(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert list(ordered(meeting, tmp_path / "pipe", range(12), processes=2, here=0)) == list(range(12))


WARM = """
import multiprocessing, os
from data.text import workers

loaded = []

def copied(state, item):
    return len(loaded), os.getpid(), len(os.listdir("/proc/self/fd"))

if __name__ == "__main__":
    loaded.append("a table")
    files = [open(os.devnull) for _ in range(40)]
    found = list(workers.ordered(copied, None, range(9), processes=2, here=0, warm=True))
    assert workers.may_fork() and {size for size, _, _ in found} == {1}
    assert len({pid for _, pid, _ in found}) == 2 and os.getpid() not in {pid for _, pid, _ in found}
    assert max(count for _, _, count in found) < 10  # a copy does not hold files open, such as a lock or another's pipe
    assert {size for size, _, _ in workers.ordered(copied, None, range(9), processes=2, here=0)} == {0}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_warm_workers_have_what_their_process_has_loaded(tmp_path):
    (tmp_path / "warm.py").write_text(WARM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(tmp_path / "warm.py")], cwd=ROOT, env=environment, check=True)


ENDLESS = """
import itertools
import os
from data.text.workers import ordered
from lm import cli

def power(base, item):
    return os.getpid(), base**item

def endless():
    for pid, _ in ordered(power, 1, itertools.count(), processes=2, warm=WARM):
        print(pid, flush=True)

if __name__ == "__main__":
    with cli.guard():
        endless()
"""


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("signum, said", [(signal.SIGKILL, []), (signal.SIGINT, ["interrupted"])])
def test_workers_end_in_silence_with_their_process(tmp_path, signum, said, warm):
    """Killed alone, and by Ctrl-C, which the whole group hears."""
    (tmp_path / "endless.py").write_text(ENDLESS.replace("WARM", str(warm)))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "endless.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    workers = set()
    while len(workers) < 2:
        workers |= {int(process.stdout.readline())} - {process.pid}
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)
    else:
        process.kill()
    try:
        lines = process.communicate(timeout=120)[1].splitlines()  # at the end of all workers, which hold the pipes
    finally:
        process.kill()
    assert len(lines) == len(said) and all(word in line for word, line in zip(said, lines))


@pytest.fixture(scope="module")
def texts():
    texts = [words(n, seed=n) for n in range(40, 340)]
    return texts + mutations(texts[:60]) + texts[:20] + ["ä ▁ 日本 🙂 " * n for n in range(1, 30)]


@pytest.mark.parametrize("published", all_but([False], [False, True]))
def test_rows_do_not_depend_on_the_number_of_processes(texts, tmp_path, monkeypatch, published):
    """To the byte; and what is kept and encoded is what the slow twin, `Survey.documents`, says."""
    monkeypatch.setattr(split, "_READ_BYTES", 1 << 14)  # many batches
    if published:
        names = {"eos_token": "<|im_end|>"}
        tokenizer = HFTokenizer(hf_examples.folder(tmp_path / "hf", hf_examples.gpt2(), tokenizer_config=names))
    else:
        tokenizer = train(texts, tmp_path / "t.model", vocab_size=500, sample_bytes=1 << 18, seed=0, threads=1)
    sources = [source(texts[:300], "one"), source(texts[300:], "two", keys=[f"{n % 7}" for n in range(len(texts) - 300)])]
    sources.append(Source("none", lambda: iter([Document("", texts[0], "here")])))  # all of it was seen before
    written = []
    for processes in (1, 2) if published else (1, 3):
        survey = split.survey(sources, valid_fraction=0.2, seed=0)
        out = tmp_path / str(processes)
        counts = prepare(out, sources, tokenizer, sequence_length=64, survey=survey, processes=processes)
        assert counts["sources"]["one"]["survey"]["near_copies"] + counts["sources"]["two"]["survey"]["near_copies"] > 5
        rows = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*array_record*")}
        written.append((counts, rows))
    assert all(one == written[0] for one in written) and len(written[0][1]) == 4
    for one in sources:
        expected = [(where, tokenizer.encode(document.text)) for document, where in survey.documents(one)]
        assert expected == [(where, ids.tolist()) for where, ids, _ in survey.encoded(one, tokenizer, processes=1)]
