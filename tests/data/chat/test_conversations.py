"""Every published shape becomes the example it means, what has nothing to learn from is counted, and the rest is an error."""

import json
from collections import Counter

import pytest

from data.chat.conversations import examples_of, read_examples
from data.chat.messages import Conversation, Labelled, Pair, Steps, Task
from data.chat.records import Record
from lm.errors import UserError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def read(kind, *records, dropped=None):
    numbered = (Record(values, f"file:{n}") for n, values in enumerate(records, start=1))
    return list(examples_of(numbered, kind, Counter() if dropped is None else dropped))


def fails(kind, record, *parts):
    with pytest.raises(UserError) as error:
        read(kind, record)
    assert "\n" not in str(error.value) and str(error.value).startswith("file:1")
    for part in parts:
        assert part in str(error.value), error.value


TALK = [user("a"), assistant("b")]
CALL = {"type": "function", "function": {"name": "find", "arguments": {"city": "Bern"}}}


@pytest.mark.parametrize(
    "record, messages",
    [
        ({"messages": TALK}, TALK),
        ({"messages": TALK, "prompt": "a", "prompt_id": "7"}, TALK),
        ({"conversation": TALK}, TALK),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "!"}]},
                    TALK[1],
                ]
            },
            [user("a!"), TALK[1]],
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, TALK),
        (
            {"conversations": [{"from": "Human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
            [system("s"), *TALK],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "user", "value": "a"},
                    {"from": "assistant", "value": "b"},
                ]
            },
            [system("s"), *TALK],
        ),
        ({"instruction": "a", "input": "", "output": "b", "text": "…"}, TALK),
        ({"instruction": "a", "input": "x", "output": "b"}, [user("a\n\nx"), TALK[1]]),
        ({"instruction": "a", "context": "x", "response": "b", "category": "qa"}, [user("a\n\nx"), TALK[1]]),
        ({"instruction": "a", "context": None, "response": "b"}, TALK),
        ({"prompt": "a", "completion": "b"}, TALK),
        ({"prompt": [user("a")], "completion": [assistant("b")]}, TALK),
        ({"prompt": "a", "response": "b", "system": "s"}, [system("s"), *TALK]),
        ({"system_prompt": "s", "question": "a", "response": "b"}, [system("s"), *TALK]),
        ({"question": "a", "answer": "b"}, TALK),
        ({"problem": "a", "solution": "b"}, TALK),
        ({"prompt": "a", "completion": "b", "label": True}, TALK),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, TALK),
        (
            {"instruction": "a", "completions": [{"response": "c", "overall_score": 2}, {"response": "b", "overall_score": 3}]},
            TALK,
        ),
    ],
)
def test_conversations(record, messages):
    assert read("conversation", record) == [Conversation(messages)]


def test_tools_and_calls_of_every_api():
    tools = [{"type": "function", "function": {"name": "find"}}]
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    answer = {"role": "tool", "content": "3", "tool_call_id": "c1"}
    text = CALL["function"] | {"arguments": '{"city": "Bern"}'}
    asked = [{"role": "developer", "content": "s"}, user("a")]
    expected = Conversation([system("s"), user("a"), called, answer, assistant("b")], tools)
    for call in (
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": text}]},
        {"role": "assistant", "content": "", "tool_calls": [CALL["function"]]},
        {"role": "assistant", "function_call": text},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
    ):
        for given in (tools, json.dumps(tools)):
            assert read("conversation", {"messages": [*asked, call, answer, assistant("b")], "tools": given}) == [expected]
    observed = {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "3"}, assistant("b")]}
    assert read("conversation", observed)[0].messages[1] == {"role": "tool", "content": "3"}


def test_conversations_with_nothing_to_learn_are_counted():
    dropped = Counter()
    records = [{"messages": [user("a")]}, {"messages": [user("a"), assistant(" \n")]}]
    assert read("conversation", *records, {"prompt": "a", "completion": "b", "label": 0}, dropped=dropped) == []
    assert dropped == {"no answer": 2, "an undesirable answer": 1}


def transcript(*turns):
    return "".join(f"\n\n{side}: {text}" for side, text in zip(("Human", "Assistant") * len(turns), turns))


def test_transcripts_share_a_prompt_up_to_the_last_answer():
    one, other = transcript("a", "b", "c", "good  \n\nstill"), transcript("a", "b", "c", " bad")
    expected = Pair([user("a"), assistant("b"), user("c")], [assistant("good  \n\nstill")], [assistant("bad")])
    assert read("pair", {"chosen": one, "rejected": other}) == [expected]
    # With the prompt in a column too, as some copies of these data have it.
    prompt = transcript("a", "b", "c") + "\n\nAssistant:"
    for chosen, rejected in ((one, other), (" good  \n\nstill", " bad")):
        pair = read("pair", {"prompt": prompt, "chosen": chosen, "rejected": rejected})[0]
        assert pair.prompt == expected.prompt
        assert [pair.chosen[0]["content"].strip(), pair.rejected[0]["content"].strip()] == ["good  \n\nstill", "bad"]


def test_transcripts_with_the_quirks_of_real_ones():
    # One answer begins like the other and goes on in a turn of its own: turns of one side in a row are one.
    pair = read("pair", {"chosen": transcript("a", "b"), "rejected": transcript("a", "b") + "\n\nAssistant:  c"})
    assert pair == [Pair([user("a")], [assistant("b")], [assistant("b\n\nc")])]
    # They part before the last turn.
    [pair] = read("pair", {"chosen": transcript("a", "b", "c", "d"), "rejected": transcript("a", "x", "y", "z")})
    assert pair == Pair([user("a")], [assistant("b"), user("c"), assistant("d")], [assistant("x"), user("y"), assistant("z")])
    [pair] = read("pair", {"chosen": transcript("a", "b", "c", "d"), "rejected": transcript("a", "b", "y", "z")})
    assert pair == Pair([user("a"), assistant("b")], [user("c"), assistant("d")], [user("y"), assistant("z")])
    # One is all of the other and more.
    [pair] = read("pair", {"chosen": transcript("a", "b"), "rejected": transcript("a", "b", "c", "d")})
    assert pair == Pair([user("a")], [assistant("b")], [assistant("b"), user("c"), assistant("d")])
    # Words that look like a side's name are words within a line.
    [pair] = read("pair", {"chosen": transcript("a", "Human: b"), "rejected": transcript("a", "c\nAssistant: d")})
    assert pair == Pair([user("a")], [assistant("Human: b")], [assistant("c\nAssistant: d")])
    dropped = Counter()
    for chosen, rejected in (("", "b"), ("b", ""), ("b", "b")):
        assert not read("pair", {"chosen": transcript("a", chosen), "rejected": transcript("a", rejected)}, dropped=dropped)
    assert not read("pair", {"chosen": transcript("a", "b", "c"), "rejected": transcript("a", "b")}, dropped=dropped)
    assert dropped == {"an empty answer": 2, "chosen and rejected are the same": 1, "no answer at the end": 1}


@pytest.mark.parametrize(
    "record, pair",
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, Pair([user("a")], [assistant("b")], [assistant("c")])),
        (
            {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
            Pair([user("a")], [assistant("b")], [assistant("c")]),
        ),
        (
            {
                "prompt": "a",
                "chosen": [*TALK],
                "rejected": [user("a"), assistant("c")],
                "score_chosen": 8.5,
                "score_rejected": 6,
            },
            Pair([user("a")], [assistant("b")], [assistant("c")], 2.5),
        ),
        (
            {"chosen": [*TALK, user("x"), assistant("d")], "rejected": [*TALK, user("x"), assistant("e")], "margin": 0.5},
            Pair([*TALK, user("x")], [assistant("d")], [assistant("e")], 0.5),
        ),
        (
            {"prompt": [user("a")], "chosen": TALK, "rejected": [user("a"), assistant("c")]},
            Pair([user("a")], [assistant("b")], [assistant("c")]),
        ),
        (
            {"prompt": TALK, "chosen": [user("x"), assistant("d")], "rejected": [user("y"), assistant("e")]},
            Pair(TALK, [user("x"), assistant("d")], [user("y"), assistant("e")]),
        ),
        (
            {"system": "s", "question": "a", "chosen": "b", "rejected": "c", "chosen-rating": 5, "rejected-rating": None},
            Pair([system("s"), user("a")], [assistant("b")], [assistant("c")]),
        ),
        (
            {"prompt": "a", "completion": "b", "rejected": "c", "answer": "b"},
            Pair([user("a")], [assistant("b")], [assistant("c")]),
        ),
        (
            {
                "instruction": "a",
                "completions": [
                    {"response": "b", "fine-grained_score": 4.5, "overall_score": 1},
                    {"response": "x", "fine-grained_score": "N/A"},
                    {"response": "c", "fine-grained_score": 2.0, "overall_score": 9},
                    {"response": "y", "fine-grained_score": 3.0},
                ],
            },
            Pair([user("a")], [assistant("b")], [assistant("c")], 2.5),
        ),
    ],
)
def test_pairs(record, pair):
    assert read("pair", record) == [pair]


def test_labelled_answers_come_from_labels_and_from_pairs():
    record = {"prompt": "a", "completion": "b"}
    assert read("labelled", record | {"label": True}, record | {"label": 0}) == [
        Labelled([user("a")], [assistant("b")], True),
        Labelled([user("a")], [assistant("b")], False),
    ]
    assert read("labelled", {"prompt": "a", "chosen": "b", "rejected": "c"}) == [
        Labelled([user("a")], [assistant("b")], True),
        Labelled([user("a")], [assistant("c")], False),
    ]


def test_steps():
    record = {"prompt": "a", "completions": ["s", "t"], "labels": [True, False]}
    assert read("steps", record) == [Steps([user("a")], ["s", "t"], [True, False])]
    assert read("steps", record | {"labels": [1, -1]})[0].labels == [True, False]
    fails("steps", record | {"labels": [True]}, "2 completions and 1 labels")
    fails("steps", record | {"labels": ["good", "bad"]}, "'good'")


@pytest.mark.parametrize(
    "record, task",
    [
        ({"prompt": "a", "answer": "7", "task": "t"}, Task([user("a")], {"answer": "7", "task": "t"})),
        ({"prompt": [system("s"), user("a")], "k": 1}, Task([system("s"), user("a")], {"k": 1})),
        ({"question": "a", "answer": "so\n#### 70,000"}, Task([user("a")], {"answer": "70000", "solution": "so\n#### 70,000"})),
        ({"instruction": "a", "input": "x", "output": "b"}, Task([user("a\n\nx")], {"output": "b"})),
        ({"instruction": "a", "context": "x", "response": "b"}, Task([user("a\n\nx")], {"response": "b"})),
        ({"messages": [system("s"), *TALK], "id": 3}, Task([system("s"), user("a")], {"id": 3})),
        ({"chosen": transcript("a", "b"), "rejected": transcript("a", "c")}, Task([user("a")], {})),
        ({"problem": "a", "solution": "b", "tools": "[{}]"}, Task([user("a")], {"solution": "b", "tools": [{}]})),
    ],
)
def test_tasks(record, task):
    assert read("task", record) == [task]


@pytest.mark.parametrize(
    "kind, record, parts",
    [
        ("conversation", {"text": "a", "url": "b"}, ["no conversation", "'text' 'url'", "messages"]),
        ("conversation", {"prompt": "a"}, ["no conversation", "'prompt'"]),
        ("conversation", {"messages": ["a"]}, ["message 1", "role"]),
        ("conversation", {"messages": [user("a"), {"role": "robot", "content": "b"}]}, ["message 2", "'robot'", "assistant"]),
        ("conversation", {"messages": [{"role": "gpt", "content": "a"}]}, ["message 1", "'gpt'", "did you mean assistant?"]),
        ("conversation", {"conversations": [{"from": "bot", "value": "a"}]}, ["message 1", "human", "did you mean assistant?"]),
        ("conversation", {"conversations": [{"from": "customer", "value": "a"}]}, ["'customer'", "did you mean user?"]),
        ("conversation", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ["message 1", "no url"]),
        ("conversation", {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, ["message 1", "name"]),
        ("conversation", {"messages": TALK, "tools": "{oops"}, ["JSON"]),
        ("conversation", {"prompt": "a", "completion": 7}, ["int"]),
        ("pair", {"messages": TALK}, ["no preference pair", "'messages'", "chosen and rejected"]),
        ("pair", {"chosen": "b", "rejected": "c"}, ["no prompt", "'chosen' 'rejected'"]),
        ("labelled", {"prompt": "a", "completion": "b"}, ["no labelled answer", "label"]),
        ("labelled", {"prompt": "a", "completion": "b", "label": "yes"}, ["'yes'", "true"]),
        ("steps", {"prompt": "a", "completion": "b"}, ["no answer in steps", "completions"]),
        ("task", {"text": "a"}, ["no prompt", "'text'"]),
    ],
)
def test_records_that_fit_no_shape_name_themselves(kind, record, parts):
    fails(kind, record, *parts)


def test_one_prompt_is_never_in_both_splits(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"Question {n % 150}", "chosen": f"b{n}", "rejected": "c"} for n in range(400)]
    # The same conversations further on, and in other case and spacing.
    for n in range(150):
        begun = [user(f"question   {n}"), assistant("b"), user("x")]
        rows.append({"chosen": [*begun, assistant("y")], "rejected": [*begun, assistant("z")]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prompts(split, **options):
        options = {"valid_fraction": 0.2, "seed": 0, **options}
        return [e.prompt[0]["content"].lower().split()[-1] for e in read_examples(str(path), "pair", split, **options)]

    train, valid = prompts("train"), prompts("valid")
    assert len(train) + len(valid) == 550 and not set(train) & set(valid)
    assert 0.1 < len(set(valid)) / 150 < 0.3
    assert set(valid) != set(prompts("valid", seed=1))
    assert prompts("valid", max_examples=5) == valid[:5]
    assert set(valid) < set(prompts("valid", valid_fraction=0.4))
    assert not prompts("valid", valid_fraction=0.0)


def test_built_in_tasks_have_splits_of_their_own():
    for kind in ("conversation", "pair", "labelled", "task"):
        options = {"valid_fraction": 0.1, "seed": 0, "max_examples": 60}
        train, valid = (list(read_examples("builtin:arithmetic", kind, split, **options)) for split in ("train", "valid"))
        assert len(train) == len(valid) == 60
        openings = [{str(e.messages[0] if kind == "conversation" else e.prompt[0]) for e in part} for part in (train, valid)]
        assert openings[0].isdisjoint(openings[1])
