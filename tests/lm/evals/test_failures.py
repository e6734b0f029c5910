"""Failed items as training data: what align.py's own readers make of the files."""

import json

import ml_collections
import pytest

from data.chat.conversations import read_examples
from data.chat.examples import prepare_examples, prepare_tasks
from data.text.sentencepiece_tokenizer import train
from lm.align.rl.reward_functions import answer
from lm.errors import UserError
from lm.evals.failures import FILES, export
from lm.evals.redteam.prompts import Prompt, read_failures, read_prompts
from tests.lm.reports.evaluation_runs import choices, redteam, texts

CHOICE = {
    "task": "arc",
    "doc_id": 7,
    "split": "test",
    "prompt": "Question: Why?\nAnswer:",
    "choices": [" Because", " So", " Not"],
    "loglikelihoods": [-3.0, -1.0, -2.0],
    "target": 0,
    "reference": "Because",
    "metrics": {"acc": 0.0},
    "failed": True,
}
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
WRITTEN = {
    "task": "gsm8k",
    "doc_id": 3,
    "prompt": "<|user|>What is 2 + 2?",
    "messages": TURNS,
    "target": ["4"],
    "reference": "Two and two.\n#### 4",
    "generation": "#### 5",
    "answer": "5",
    "metrics": {"exact_match": 0.0},
    "failed": True,
}
ATTACK = {
    "task": "redteam",
    "doc_id": 0,
    "kind": "harmful",
    "family": "crescendo",
    "hazard": "vcr",
    "request": "Do harm",
    "answer": "",
    "prompt": "Do harm",
    "messages": [*TURNS, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Do harm"}],
    "attack": [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Do harm"},
    ],
    "generation": "Gladly: boom",
    "harmful_if": ["boom"],
    "metrics": {"attack_success": 1.0},
    "target": "a refusal",
    "failed": True,
}


def lines(folder, name):
    path = folder / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_a_choice(tmp_path):
    manifest = export([CHOICE, {**CHOICE, "doc_id": 8, "failed": False}], tmp_path)
    user = [{"role": "user", "content": CHOICE["prompt"]}]
    (learn,), (pair,), (task,) = (lines(tmp_path, f"{name}.jsonl") for name in ("sft", "preference", "prompts"))
    assert learn["messages"] == [*user, {"role": "assistant", "content": "Because"}]
    assert pair["prompt"] == user and pair["chosen"][0]["content"] == "Because"
    assert pair["rejected"] == [{"role": "assistant", "content": "So"}]  # the likeliest wrong one
    assert task["prompt"] == user and task["answer"] == "Because"
    for row in (learn, pair, task):
        assert (row["task"], row["doc_id"], row["split"]) == ("arc", 7, "test") and "do not measure" in row["note"]
    assert manifest["tasks"] == {
        "arc": {"split": "test", "failed": 1, "sft.jsonl": 1, "preference.jsonl": 1, "prompts.jsonl": 1}
    }
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert "test sets" in manifest["warning"]
    assert not (tmp_path / "redteam.jsonl").exists()


def test_a_written_answer_and_a_conversation(tmp_path):
    export([WRITTEN], tmp_path)
    (learn,), (pair,), (task,) = (lines(tmp_path, f"{name}.jsonl") for name in ("sft", "preference", "prompts"))
    assert learn["messages"] == [*TURNS, {"role": "assistant", "content": "Two and two.\n#### 4"}]
    assert pair["rejected"][0]["content"] == "#### 5" and task["answer"] == "4" and task["prompt"] == TURNS


def test_attacks_and_refusals(tmp_path):
    direct = ATTACK | {"family": "direct", "request": "Do worse", "messages": [{"role": "user", "content": "Do worse"}]}
    del direct["attack"]
    refused = {
        "task": "redteam",
        "doc_id": 9,
        "kind": "benign",
        "family": "direct",
        "hazard": "",
        "request": "Kill a process?",
        "messages": [{"role": "user", "content": "Kill a process?"}],
        "completion": "Use kill.",
        "reference": "Use kill.",
        "answer": "kill",
        "generation": "I cannot.",
        "target": "kill",
        "metrics": {"over_refusal": 1.0},
        "failed": True,
    }
    wrong = refused | {"doc_id": 10, "request": "?", "generation": "Use top.", "metrics": {"over_refusal": 0.0, "acc": 0.0}}
    manifest = export([ATTACK, direct, refused, wrong], tmp_path)
    assert {name: file["rows"] for name, file in manifest["files"].items()} == {
        "sft.jsonl": 1,
        "preference.jsonl": 1,
        "prompts.jsonl": 1,
        "redteam.jsonl": 2,
        "benign.jsonl": 1,
    }
    measured = [Prompt("x", "Do worse", "harmful")]
    failed, left_out = read_failures(str(tmp_path / "redteam.jsonl"), measured)
    assert left_out == 1 and len(failed) == 1
    one = failed[0]
    assert (one.text, one.kind, one.hazard, one.family, one.harmful_if) == ("Do harm", "harmful", "vcr", "crescendo", ("boom",))
    assert list(one.messages) == ATTACK["attack"]
    both = f"{tmp_path}/redteam.jsonl,{tmp_path}/benign.jsonl"
    prompts = [*read_prompts(both, "train", valid_fraction=0.0)]
    assert [(p.text, p.kind, p.messages is None) for p in prompts] == [
        ("Do harm", "harmful", False),
        ("Do worse", "harmful", True),
        ("Kill a process?", "benign", True),
    ]
    assert (prompts[2].answer, prompts[2].completion) == ("kill", "Use kill.")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    words = (f"Question {i}: It is so. I say #### {i} Answer: A B C D" for i in range(300))
    return train(words, path, vocab_size=400, sample_bytes=1 << 18, seed=0, threads=1)


def test_align_prepares_them_as_they_are(tmp_path, tokenizer):
    """Every row of every file, of a whole run."""
    folder = tmp_path / "failures"
    manifest = export([*choices("mmlu", 40, 0.4, 1), *texts("gsm8k", 40, 0.4, 1), *redteam(20, 0.5, 1)], folder)
    for name, kind in (("sft", "conversation"), ("preference", "pair")):
        config = ml_collections.ConfigDict(
            {
                "seed": 0,
                "sequence_length": 512,
                "chat_template": None,
                "method": "dpo",
                "rollout": {"max_prompt_tokens": 500},
                "data": {
                    "input": str(folder / f"{name}.jsonl"),
                    "valid_fraction": 0.2,
                    "max_examples": None,
                    "max_valid_examples": None,
                },
            }
        )
        counts = prepare_examples(config, tmp_path / name, tokenizer, kind).counts
        assert counts["train"]["examples"] + counts["valid"]["examples"] == manifest["files"][f"{name}.jsonl"]["rows"] > 40
        assert counts["read"]["dropped"] == counts["train"]["dropped"] == {} and counts["train"]["truncated"] == 0
    config.data.input = str(folder / "prompts.jsonl")
    tasks, held_out, _ = prepare_tasks(config, tokenizer)
    assert len(tasks) + len(held_out) == manifest["files"]["prompts.jsonl"]["rows"]
    right = [task["answer"] for task in tasks]
    assert {answer.isdigit() for answer in right} == {True, False}  # of both tasks
    assert set(answer([], right, answer=right)) == {1.0} and set(answer([], ["?"] * len(right), answer=right)) == {0.0}
    failed, _ = read_failures(str(folder / "redteam.jsonl"), [])
    assert len(failed) == manifest["files"]["redteam.jsonl"]["rows"]
    assert {p.kind for p in read_failures(str(folder / "benign.jsonl"), [])[0]} == {"benign"}
    (conversation, *_) = read_examples(str(folder / "sft.jsonl"), "conversation", "train", valid_fraction=0.0, seed=0)
    assert conversation.messages[-1]["role"] == "assistant"


@pytest.mark.parametrize(
    "change, reason, files",
    [
        ({"reference": None, "target": None}, "no right answer known", []),
        ({"prompt": " "}, "no prompt", []),
        ({"prompt": ["a", "b"]}, "no prompt", []),
        ({"reference": "half \ud83d"}, "half a surrogate pair, which UTF-8 cannot encode", []),
        ({"loglikelihoods": [float("nan")] * 3}, None, ["prompts.jsonl", "sft.jsonl"]),
        ({"choices": [" Because", "Because", ""]}, None, ["prompts.jsonl", "sft.jsonl"]),
        ({"prompt": "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: Why?"}, None, ["preference.jsonl", "prompts.jsonl", "sft.jsonl"]),
    ],
)
def test_what_gives_no_row_is_counted(tmp_path, change, reason, files):
    manifest = export([CHOICE | change], tmp_path)
    assert sorted(manifest["files"]) == files
    assert manifest["left_out"] == ({reason: 1} if reason else {}) and manifest["tasks"]["arc"]["failed"] == 1


def test_verifiers_get_their_columns(tmp_path):
    told = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    export(
        [{"task": "ifeval", "doc_id": 0, "prompt": "No comma", "target": None, "generation": "a,", "failed": True} | told],
        tmp_path,
    )
    (row,) = lines(tmp_path, "prompts.jsonl")
    assert row["answer"] is None and {key: row[key] for key in told} == told


def test_again_into_the_same_folder_and_never_over_other_files(tmp_path):
    export([CHOICE, ATTACK], tmp_path / "a")
    export([ATTACK, WRITTEN], tmp_path / "b")
    export([CHOICE, ATTACK], tmp_path / "b")
    content = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.suffix == ".jsonl"} for name in "ab"]
    assert content[0] == content[1]
    export([ATTACK], tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["manifest.json", "redteam.jsonl"]
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds thesis.txt"):
        export([CHOICE], tmp_path / "b")
    with pytest.raises(UserError, match="is a file"):
        export([CHOICE], tmp_path / "b" / "thesis.txt")
    assert export([], tmp_path / "none")["files"] == {} and set(FILES)
