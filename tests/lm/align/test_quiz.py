"""The quiz of held-out examples: a task of evaluate.py whose answers are those of the data."""

import json

import pytest
import yaml

from configs.align import dpo, sft
from lm.align.quiz import write_quiz


def chats(n):
    return [
        {"messages": [{"role": "user", "content": f"Who is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(n)
    ]


def pairs(n):
    return [{"prompt": f"Who is {i}?", "chosen": f"It is {i}.", "rejected": "Go away."} for i in range(n)]


def quiz(tmp_path, config, rows, kind, fraction=0.5):
    path, config = tmp_path / "rows.jsonl", config.get_config()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.data.update(input=str(path), valid_fraction=fraction)
    (tmp_path / "run").mkdir(exist_ok=True)
    write_quiz(config, tmp_path / "run", kind)
    items = tmp_path / "run" / "quiz.jsonl"
    return [json.loads(line) for line in items.read_text().splitlines()] if items.exists() else []


@pytest.mark.parametrize("config, rows, kind, choices", [(sft, chats, "conversation", 4), (dpo, pairs, "pair", 2)])
def test_the_answer_is_that_of_the_question_and_its_place_varies(config, rows, kind, choices, tmp_path):
    items = quiz(tmp_path, config, rows(30), kind)
    assert len(items) > 5 and {item["answer"] for item in items} == set(range(choices))
    for item in items:
        right = item["choices"][item["answer"]]
        assert right == f"It is {item['question'][7:-1]}." and len(set(item["choices"])) == choices
    assert yaml.safe_load((tmp_path / "run" / "quiz.yaml").read_text())["data"] == "quiz.jsonl"


def test_longer_conversations_give_their_first_exchange(tmp_path):
    rows = chats(12)
    for row in rows:
        row["messages"].insert(0, {"role": "system", "content": "Be brief."})
        row["messages"] += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    assert all("Yes." not in item["choices"] for item in quiz(tmp_path, sft, rows, "conversation"))


@pytest.mark.parametrize(
    "rows, kind, fraction", [(chats(30), "conversation", 0.0), (chats(3), "conversation", 0.05), (chats(9), "task", 0.5)]
)
def test_too_few_or_none_held_out_give_no_quiz(rows, kind, fraction, tmp_path):
    assert not quiz(tmp_path, sft, rows, kind, fraction) and not (tmp_path / "run" / "quiz.yaml").exists()
