"""Best-of-n: what is kept, what is counted, and that a run that was cut off ends with the same bytes."""

import itertools
import json

import jax
import ml_collections
import numpy as np
import pytest

from data.chat.conversations import read_examples
from data.chat.example_encoding import Encoder
from data.text.sentencepiece_tokenizer import train
from lm.align.best_of import Job, answered, best_and_worst, best_at_k, kept, statistics
from lm.align.rl.rewards import Rewards
from lm.align.rl.rollouts import sampler_of
from lm.align.settings import check_method
from lm.errors import UserError
from lm.evals.stats.measures import pass_at_k
from lm.model.transformer import skeleton
from lm.train.step import model_config_of
from tests.lm.examples import parameters, tiny_config


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_counting_is_what_all_draws_of_k_come_to(n):
    rewards = [float(x) for x in np.random.default_rng(n).integers(0, 4, n)]
    right = [reward >= 2 for reward in rewards]
    for k in range(1, n + 1):
        draws = list(itertools.combinations(range(n), k))
        assert best_at_k(rewards, k) == pytest.approx(np.mean([max(rewards[i] for i in draw) for draw in draws]))
        assert pass_at_k(n, sum(right), k) == pytest.approx(np.mean([any(right[i] for i in draw) for draw in draws]))
    assert (pass_at_k(200, 0, 10), pass_at_k(200, 200, 10)) == (0, 1)
    assert pass_at_k(200, 1, 10) == pytest.approx(10 / 200)


def said(text, reward, ended=True):
    rewards = {"r": reward, "other": None}
    return {"messages": [{"content": text}], "reward": reward, "rewards": rewards, "tokens": len(text), "ended": ended}


ANSWERS = [said("a", 0.5), said("b", 1.0), said("cut", 9.0, ended=False), said("b", 1.0), said("c", 1.0), said("d", -1.0)]


@pytest.mark.parametrize(
    ("keep", "threshold", "texts"),
    [("best", -np.inf, "b"), ("best", 1.0, "b"), ("best", 1.1, ""), ("all", 1.0, "bc"), ("all", 0.5, "abc"), ("all", 2.0, "")],
)
def test_what_is_kept(keep, threshold, texts):
    assert "".join(answer["messages"][0]["content"] for answer in kept(ANSWERS, keep, threshold)) == texts


def test_the_pair_is_of_the_best_and_the_worst():
    high, low = best_and_worst(ANSWERS)
    assert (high["messages"][0]["content"], low["messages"][0]["content"]) == ("b", "d")
    assert best_and_worst([said("a", 1.0), said("b", 1.0), said("cut", 0.0, ended=False)]) is None
    assert best_and_worst([said("cut", 0.0, ended=False)]) is None


def test_statistics_by_hand():
    found = statistics([[said("a", 0.0), said("b", 1.0, ended=False)], [said("c", 0.0), said("ddd", 0.0)]], ["r", "other"], 1.0)
    assert found == {
        "prompts": 2,
        "answers": 4,
        "cut": 1,
        "tokens": 1.5,
        "best": 1.0,
        "reward": {"1": 0.25, "2": 0.5},
        "rewards": {"r": 0.25, "other": None},
        "pass": {"1": 0.25, "2": 0.5},
    }
    assert "pass" not in statistics([[said("a", 0.0)]], ["r"], -np.inf)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(n=1), "best_of.n"),
        (dict(rows=0), "best_of.rows"),
        (dict(keep="some"), "none of best, all"),
        (dict(threshold=float("nan")), "best_of.threshold=nan"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, named):
    section = dict(n=2, rows=8, keep="best", threshold=1.0) | settings
    with pytest.raises(UserError, match=named):
        check_method(ml_collections.ConfigDict({"method": "best_of", "best_of": section}))


# A model that draws at random, whose answers often end by chance; a reward by the answer's length.
PROMPTS = [f"the cat sat {n}" for n in range(5)]
TOOLS, OWN_TOOLS = ([{"type": "function", "function": {"name": name}}] for name in ("calculator", "python"))


def by_length(prompts, completions, **columns):
    return [float(len(completion) % 5) for completion in completions]


def only_of_the_first(prompts, completions, **columns):
    return [1.0 if column else None for column in columns["first"]]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    config = tiny_config(vocab_size=304, num_layers=1)
    config.init_from, config.rewards, config.sequence_length = "somewhere", "length=1", 128
    config.rollout = ml_collections.ConfigDict(
        dict(max_new_tokens=64, max_prompt_tokens=32, temperature=1.0, top_p=1.0, top_k=0, tools=(), max_turns=1)
    )
    config.best_of = ml_collections.ConfigDict(dict(n=4, rows=9, keep="best", threshold=1.0))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizer = train(["the cat sat on the mat\n"] * 9, path, vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)
    encoder = Encoder(tokenizer)
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    tasks = [{"prompt": p, "prompt_ids": encoder.prompt_ids(p), "first": i == 0} for i, p in enumerate(prompts)]
    tasks[1]["tools"] = OWN_TOOLS
    rewards = Rewards(("length", "first"), (by_length, only_of_the_first), (1.0, 0.0))
    graph = skeleton(model_config_of(config))[0]
    return Job(config, sampler_of(config, graph, tokenizer, tasks), tasks, rewards)


@pytest.fixture(scope="module")
def params(job):
    return parameters(model_config_of(job.config))


@pytest.fixture(scope="module")
def whole(job, params, tmp_path_factory):
    """(the workdir, the result) of a run that nothing came between."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, answered(job, lambda: params, workdir, TOOLS, say=lambda text: None)


def not_needed():
    raise AssertionError("all is answered: nobody may ask for parameters")


def contents(workdir):
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_what_is_written_follows_from_the_answers(whole, job):
    workdir, found = whole
    files = sorted((workdir / "best_of" / "answers").iterdir())
    assert [file.name for file in files] == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]  # of 2, 2 and 1 prompts
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [line["prompt"][0]["content"] for line in lines] == PROMPTS
    answers = [answer for line in lines for answer in line["answers"]]
    assert len(answers) == 20 and len({answer["messages"][0]["content"] for answer in answers}) == 20
    for answer in answers:
        assert answer["reward"] == len(answer["messages"][0]["content"]) % 5
    assert [answer["rewards"]["first"] for answer in answers] == [1.0] * 4 + [None] * 16
    assert 0 < found["cut"] == sum(not answer["ended"] for answer in answers) < 20
    assert found["reward"]["1"] == pytest.approx(np.mean([answer["reward"] for answer in answers]))
    assert found["pass"]["1"] == pytest.approx(np.mean([answer["reward"] >= 1 for answer in answers]))

    # What data/ reads of it is what was drawn.
    options = dict(valid_fraction=0.0, seed=0)
    conversations = list(read_examples(str(workdir / "best_of" / "conversations.jsonl"), "conversation", "train", **options))
    pairs = list(read_examples(str(workdir / "best_of" / "pairs.jsonl"), "pair", "train", **options))
    assert 0 < len(conversations) == found["kept"]
    assert 0 < len(pairs) == found["pairs"]
    answered = {line["prompt"][0]["content"]: line["answers"] for line in lines}
    for pair in pairs:
        rewards = [answer["reward"] for answer in answered[pair.prompt[0]["content"]] if answer["ended"]]
        assert pair.margin == max(rewards) - min(rewards) > 0
        assert len(pair.chosen[0]["content"]) % 5 == max(rewards)
    for conversation in conversations:
        asked, answer = conversation.messages
        assert conversation.tools == (OWN_TOOLS if asked["content"] == PROMPTS[1] else TOOLS)
        assert answer["content"] in [a["messages"][0]["content"] for a in answered[asked["content"]] if a["ended"]]


def test_a_run_that_was_cut_off_ends_with_the_same_bytes(whole, job, params, tmp_path):
    def killed(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answered(job, lambda: params, tmp_path, TOOLS, say=killed)
    folder = tmp_path / "best_of"
    first = (folder / "answers" / "00000.jsonl").stat().st_mtime_ns
    assert sorted(path.name for path in folder.rglob("*.jsonl")) == ["00000.jsonl"]
    (folder / "answers" / "00001.jsonl.new").write_text('{"prompt": [')  # and in the middle of a chunk
    said = []
    assert answered(job, lambda: params, tmp_path, TOOLS, say=said.append) == whole[1]
    assert len(said) == 2
    assert (folder / "answers" / "00000.jsonl").stat().st_mtime_ns == first
    assert contents(tmp_path) == contents(whole[0])
    answered(job, not_needed, tmp_path, TOOLS, say=said.append)
    assert len(said) == 2 and contents(tmp_path) == contents(whole[0])


def test_other_settings_do_not_go_on_with_these_answers(whole, job):
    workdir, _ = whole
    before = contents(workdir)
    job.config.rollout.temperature = 0.7
    with pytest.raises(UserError, match=r"drawn with rollout.temperature=1.0, and this run says 0.7"):
        answered(job, not_needed, workdir, TOOLS)
    job.config.rollout.temperature = 1.0
    job.config.best_of.threshold = 5.0
    with pytest.raises(UserError, match=r"of 20 answers none is kept, .* lower best_of.threshold=5.0"):
        answered(job, not_needed, workdir, TOOLS)
    job.config.best_of.threshold = 1.0
    answered(job, not_needed, workdir, TOOLS)
    assert contents(workdir) == before
