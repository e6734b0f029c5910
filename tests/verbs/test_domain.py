"""Continued pretraining on a domain: gain and forgetting by source, and a vocabulary that grows."""

import json

import numpy as np
import pytest

from data.text.grow import old_pieces
from data.text.tokenizer import load_tokenizer
from tests.verbs import runs
from tests.verbs.test_hosts import killed_and_resumed

WORDS = ["licensor", "warranty", "sublicense", "hereunder", "merchantability", "indemnify"]


@pytest.fixture(scope="module")
def both(text, tmp_path_factory) -> str:
    """data.input of a domain and of the text of `finished`."""
    folder = tmp_path_factory.mktemp("domain")
    for n in range(20):
        order = np.random.default_rng(n).permutation(len(WORDS) * 60) % len(WORDS)
        (folder / f"{n}.txt").write_text(" ".join(WORDS[i] for i in order))
    return f"domain={folder},general={text}"


def domain(workdir, finished, both, **settings):
    """The command of a run of configs/train/domain.py."""
    keys = {"data__input": both, "init_from": finished, "batch_size": 8, "sequence_length": 32, "model__vocab_size": None}
    sizes = ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
    keys |= {f"model__{name}": None for name in sizes}  # those of init_from
    command = runs.line(workdir, **(keys | settings))
    return [arg.replace("configs/train/tiny.py", "configs/train/domain.py") for arg in command]


def measured(workdir):
    """Bits per byte of each source, before the run and after it."""
    first, *_, last = runs.validation(workdir)
    return [{name: values[f"valid_bits_per_byte/{name}"] for name in ("domain", "general")} for values in (first, last)]


@pytest.fixture(scope="module")
def grown(finished, both, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("grown") / "run"
    done = runs.run(domain(workdir, finished, both, data__new_pieces=40, steps=60, checkpoint_every=30, keep_every=30))
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def test_the_report_shows_gain_and_forgetting(grown):
    before, after = measured(grown)
    assert after["domain"] < 0.7 * before["domain"] and after["general"] < 1.1 * before["general"]
    assert json.loads((grown / "report.json").read_text())["validation"]["bits_per_byte/domain"] == after["domain"]


@pytest.mark.slow
def test_new_pieces_start_as_means_and_resume(finished, grown, both, tmp_path):
    old, new = load_tokenizer(finished), load_tokenizer(grown)
    assert old.vocab_size < new.vocab_size <= old.vocab_size + 40
    start = tmp_path / "start"
    done = runs.run(domain(start, finished, both, data__new_pieces=40, steps=1, optimizer__learning_rate=0.0))
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_tokenizer(start).fingerprint == new.fingerprint
    name = next(name for name in runs.arrays(start, 1) if "embedding" in name and "opt" not in name)
    before, after = runs.arrays(finished)[name], runs.arrays(start, 1)[name]
    rows = [before[ids].mean(0) for ids in old_pieces(new, old)]
    np.testing.assert_allclose(after[old.vocab_size : new.vocab_size], rows, atol=1e-6)
    np.testing.assert_array_equal(after[: old.vocab_size], before[: old.vocab_size])
    again = runs.run(domain(grown, finished, both, data__new_pieces=40, steps=60, checkpoint_every=30, keep_every=30))
    assert again.returncode == 0, again.stderr[-3000:]


@pytest.mark.slow
def test_a_grown_model_is_exported_evaluated_and_trained_on(grown, both, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    import sys

    export = [sys.executable, "-m", "lm.convert", "export", f"--workdir={grown}", f"--to={tmp_path / 'hf'}"]
    done = runs.run(export)
    assert done.returncode == 0, done.stderr[-3000:]
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "sublicense hereunder indemnify licensor"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == load_tokenizer(grown).encode(text) and max(ids) >= load_tokenizer(grown).vocab_size - 40
    with torch.no_grad():
        assert peer(torch.tensor([ids])).logits.shape[-1] == load_tokenizer(grown).vocab_size
    more = runs.run(domain(tmp_path / "more", grown, both, data__new_pieces=5, steps=2))
    assert more.returncode == 0, more.stderr[-3000:]


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"init_from": None}, "data.new_pieces=9 needs init_from"),
        ({"model__adapter__rank": 2}, "an adapter does not train the embedding"),
        ({"data__new_pieces": -1}, "data.new_pieces=-1 must be at least 0"),
    ],
)
def test_what_cannot_grow_is_refused(settings, says, finished, both, tmp_path):
    done = runs.run(domain(tmp_path / "run", finished, both, **({"data__new_pieces": 9} | settings)))
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_adapter_learns_the_domain(finished, both, tmp_path):
    command = domain(tmp_path / "run", finished, both, steps=30)
    done = runs.run([arg.replace("domain.py", "domain.py:adapter") for arg in command])
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = measured(tmp_path / "run")
    assert after["domain"] < before["domain"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", ":adapter"])
def test_two_processes_learn_the_domain_as_one(kind, finished, both, tmp_path):
    """Both are killed and start again. Process 0 makes the new pieces, and each process the rows of the new model."""
    grows = {} if kind else {"data__new_pieces": 40}
    one, two = tmp_path / "one", tmp_path / "two"
    settings = dict(steps=12, checkpoint_every=4, **grows)
    alone, command = (
        [arg.replace("domain.py", f"domain.py{kind}") for arg in domain(folder, finished, both, **settings)]
        for folder in (one, two)
    )
    assert runs.run(alone).returncode == 0
    killed_and_resumed(command, two, 4, tmp_path)
    assert load_tokenizer(one).fingerprint == load_tokenizer(two).fingerprint
    runs.assert_same_run(two, one, tolerance=1e-5, step=12)
    for ours, theirs in zip(measured(two), measured(one), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
