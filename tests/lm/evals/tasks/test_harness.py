"""On the same model, lm-evaluation-harness's own backend and ours agree in every token, likelihood and figure."""

import json
import random

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.model_subject import ModelSubject
from lm.evals.task import Generated, Likelihood, Rolled, TaskSettings
from lm.evals.tasks import harness
from lm.infer.load import load
from tests.lm.evals.tiny_models import published, words
from tests.slow import all_but

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
LENGTH = 160  # some prompts with examples are longer
HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM

TASKS = {
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nA. {{a}}\nB. {{b}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "right",
        "description": "Questions about words.\n\n",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "fewshot_config": {"sampler": "first_n"},
    },
    "answers": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_mutual_info"}],
    },
    "page": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "test_split": "test",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "said": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["a", "\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {"name": "word", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]},
        ],
    },
}


def rows(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [
        {
            "question": words(draw.randint(3, 12), seed + n),
            "a": words(2, n),
            "b": words(1, n),
            "right": draw.randrange(4),
            "choices": [words(draw.randint(1, 4), 10 * n + i) for i in range(4)],
            "page": words(draw.randint(5, 120), n),
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files over the same made items, a group of two of them, and a tiny model."""
    folder = tmp_path_factory.mktemp("harness")
    for split, count in (("train", 8), ("test", 12)):
        lines = (json.dumps(row) + "\n" for row in rows(count, seed=len(split)))
        (folder / f"{split}.jsonl").write_text("".join(lines))
    for name, task in TASKS.items():
        files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
        whole = {
            "task": f"made_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "fewshot_split": "train",
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(whole))
    both = {"group": "made_both", "task": ["made_letters", "made_answers"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "both.yaml").write_text(json.dumps(both))
    published(folder, max_positions=256)
    return folder


@pytest.fixture(scope="module", autouse=True)
def beside(tmp_path_factory):
    """Data sets are kept in a folder of the test's own, and there is more to compile than to run."""
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    patch.undo()


@pytest.fixture(scope="module")
def theirs(folder):
    return HFLM(pretrained=str(folder / "published"), device="cpu", batch_size=4, max_length=LENGTH)


@pytest.fixture(scope="module")
def ours(folder):
    model, tokenizer = load(folder / "workdir")
    return ModelSubject(model, Encoding(tokenizer), name="tiny", progress=False, max_length=LENGTH)


def evaluated(model, folder, name: str, **options) -> dict:
    """What the harness itself says."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with harness.undescribed():
        return simple_evaluate(model, tasks=[f"made_{name}"], task_manager=manager, bootstrap_iters=100, **options)


WAYS = [("letters", 0, False), ("letters", 2, False), ("answers", 0, True), ("answers", 2, False)]


@pytest.mark.parametrize("name, shots, chat", all_but(WAYS[1:3], WAYS))
def test_choices(folder, theirs, ours, name, shots, chat):
    options = dict(num_fewshot=shots, apply_chat_template=chat, fewshot_as_multiturn=False)
    expected = evaluated(theirs, folder, name, **options)
    settings = TaskSettings(num_fewshot=shots, chat=chat)
    results, samples = harness.build(f"harness:{folder / name}.yaml", settings).run(ours)
    for metric in [m for m in ("acc", "acc_norm", "acc_mutual_info") if m in results]:
        assert results[metric] == expected["results"][f"made_{name}"][f"{metric},none"]
        assert results[f"{metric}_stderr"] == expected["results"][f"made_{name}"][f"{metric}_stderr,none"]
    assert results["n"] == len(samples) == 12 and results["problems"] == {} and results["num_fewshot"] == shots
    assert results["chance"] == pytest.approx(sum(1 / len(sample["choices"]) for sample in samples) / 12)
    for sample, their in zip(samples, expected["samples"][f"made_{name}"], strict=True):
        assert [tuple(arguments) for arguments in their["arguments"]][0] == (sample["prompt"], sample["choices"][0])
        n = 4 if name == "letters" else len(their["doc"]["choices"])
        assert sample["choices"] == [arguments[1] for arguments in their["arguments"]][:n]
        logps = [*sample["loglikelihoods"], *sample.get("loglikelihoods_alone", ())]
        np.testing.assert_allclose(logps, [r[0][0] for r in their["resps"]], atol=1e-4)
        for (context, continuation), ids in zip(their["arguments"][:n], sample["tokens"], strict=True):
            if context:
                before, behind = theirs._encode_pair(context, continuation)
                assert (ids[0], ids[1]) == (before[-(LENGTH + 1 - len(behind)) :], behind)
        assert sample["metrics"]["acc"] == their["acc"] and sample["failed"] == (their["acc"] == 0)


def test_pages(folder, theirs, ours):
    expected = evaluated(theirs, folder, "page")
    results, samples = harness.build(f"harness:{folder / 'page.yaml'}", TaskSettings()).run(ours)
    for metric in ("word_perplexity", "bits_per_byte"):
        assert results[metric] == pytest.approx(expected["results"]["made_page"][f"{metric},none"], rel=1e-6)
    for sample, their in zip(samples, expected["samples"]["made_page"], strict=True):
        assert sample["loglikelihood"] == pytest.approx(their["resps"][0][0], rel=1e-6, abs=1e-4)
    assert max(len(rolled.tokens) for rolled in ours.rolled([sample["target"] for sample in samples])) > 2 * LENGTH


def test_generations(folder, theirs, ours):
    expected = evaluated(theirs, folder, "said", limit=6)
    results, samples = harness.build(f"harness:{folder / 'said.yaml'}", TaskSettings(limit=6)).run(ours)
    their = [sample for sample in expected["samples"]["made_said"] if sample["filter"] == "whole"]
    assert [sample["generation"] for sample in samples] == [sample["resps"][0][0] for sample in their]
    assert len({sample["generation"] for sample in samples}) > 1 and results["n"] == 6
    for name in ("whole", "word"):
        assert results[f"exact_match,{name}"] == expected["results"]["made_said"][f"exact_match,{name}"]
    assert samples[0]["answers"]["whole"] == samples[0]["generation"]


class Oracle:
    """Knows the right answers of the made items; and, if it is broken, nothing of the first one."""

    name = "oracle"

    def __init__(self, broken: bool = False):
        self.right = {row["question"]: row for row in rows(12, seed=4)}
        self.first = next(iter(self.right)) if broken else None

    def likelihoods(self, requests):
        found = []
        for context, continuation in requests:
            row = next(row for question, row in self.right.items() if question in context or not context)
            letter, choice = "ABCD"[row["right"]], row["choices"][row["right"]]
            logp = 0.0 if continuation.strip() in (letter, choice) else -9.0
            found.append(Likelihood(float("nan") if self.first and self.first in context else logp, logp == 0))
        return found

    def rolled(self, texts):
        return [Rolled((-1.0,) * len(text), tuple(range(len(text)))) for text in texts]

    def generate(self, prompts):
        return [Generated(f"{prompt.seed} {prompt.temperature}") for prompt in prompts]

    def chat_prompt(self, messages, prefill=""):
        return json.dumps(messages) + prefill


def test_any_subject_and_groups(folder):
    results, samples = harness.build(f"harness:{folder / 'both.yaml'}", TaskSettings(limit=4)).run(Oracle())
    assert results["acc"] == 1 and results["subtasks"]["made_letters"]["acc"] == 1 and results["n"] == 8
    assert [sample["subtask"] for sample in samples] == ["made_answers"] * 4 + ["made_letters"] * 4
    assert {sample["task"] for sample in samples} == {"both"}
    assert not any(sample["failed"] for sample in samples) and samples[4]["reference"] in "ABCD"


def test_a_likelihood_that_is_no_number_is_not_scored(folder):
    results, _ = harness.build(f"harness:{folder / 'letters.yaml'}", TaskSettings()).run(Oracle(broken=True))
    assert (results["acc"], results["n"]) == (1, 11)
    assert results["problems"]["loglikelihoods_not_finite"]["n"] == 1


def test_requests_to_generate_are_read_as_the_harness_reads_them():
    class Instance:
        def __init__(self, options):
            self.args = ("text", options)

    model = harness.as_lm(Oracle(), seed=7)
    sampled = {"do_sample": True, "temperature": 0.5, "until": "x", "max_new_tokens": 3}
    assert model.generate_until([Instance(sampled), Instance({"temperature": 0.5, "do_sample": False}), Instance(sampled)]) == [
        "7 0.5",
        "7 0.0",
        "8 0.5",
    ]
    with pytest.raises(UserError, match="top_k"):
        model.generate_until([Instance({"top_k": 3})])
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert model.apply_chat_template(history, add_generation_prompt=False) == json.dumps(history[:1]) + "b"
    assert model.apply_chat_template(history[:1]) == json.dumps(history[:1])


def test_mistakes(folder, tmp_path):
    (tmp_path / "odd.yaml").write_text("dataset_path: json\n")
    (tmp_path / "missing.yaml").write_text(
        "task: made_missing\ndataset_path: json\ntest_split: test\ndataset_kwargs: {data_files: {test: /no/such/file}}\n"
        "output_type: multiple_choice\ndoc_to_text: a\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n"
    )
    for name, told in (
        (f"harness:{tmp_path / 'none.yaml'}", "no such file"),
        (f"harness:{tmp_path / 'odd.yaml'}", "key `task`"),
        (f"harness:{tmp_path / 'missing.yaml'}", "no/such/file"),
    ):
        with pytest.raises(UserError, match=told):
            harness.build(name, TaskSettings())


@pytest.mark.slow
def test_a_name_that_the_harness_does_not_know():
    """It reads the files of all its tasks to say so."""
    with pytest.raises(UserError, match="no task or group"):
        harness.build("harness:no_such_task_at_all", TaskSettings())
