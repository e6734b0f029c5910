"""Rewards: what counts as the answer, near misses, how they compose, and what a broken one says."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from data.tasks.answers import final_answer, same_answer
from lm.align.rl.rewards import REWARDS, Rewards, parse_rewards, scored
from lm.errors import UserError


def given(spec: str, completions: list[str], **columns) -> list[float]:
    columns = {key: value if isinstance(value, list) else [value] * len(completions) for key, value in columns.items()}
    prompts = [[{"role": "user", "content": "?"}]] * len(completions)
    return scored(parse_rewards(spec), prompts, completions, columns)[0].tolist()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4", "4"),
        ("  four\n", "four"),
        ("2 + 2 is 4.\n#### 4", "4"),
        ("#### 3\nno, wait\n#### 4\nI am sure.", "4"),
        (r"so \boxed{4}, or rather \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        ("Answer: d a c b\nThank you", "d a c b"),
        ("the ANSWER IS: 4", "4"),
        (r"\boxed{3} but #### 4", "4"),
        (r"#### 4 or \boxed{3}", "3"),
        ("#### 4\n####", ""),  # a mark that nothing follows is no answer
        (r"\boxed{4", ""),
        ("the answer is 4", "the answer is 4"),  # no mark: the whole text
    ],
)
def test_the_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000.0"),
        ("1e3", "1000"),
        ("$1,234.50", "1234.5"),
        ("-3", "\u22123"),
        ("+7", "7"),
        ("1/2", "0.5"),
        ("007", "7"),
        ("42.", "42"),
        ("a  b\nc", "a b c"),
        ("$x^2$", "x^2"),
        (".5", "0.50"),
        ("Paris.", "Paris"),
    ],
)
def test_the_same_answer(one, other):
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,00", "100"),
        ("1000", "1000.01"),
        ("3", "-3"),
        ("12", "1 2"),
        ("42", "42 apples"),
        ("B A", "b a"),
        ("", "0"),
        ("1/0", "0"),
        ("5%", "5"),
        ("a b c", "a b c d"),
        (".", ""),
        ("1e9999", "1e9998"),
        ("1_000", "1000"),
        ("...", ".."),
        ("1" * 5000, "1" * 4999),
        ("1,000,00", "100000"),
        ("²", "2"),
    ],
)
def test_near_misses_are_not_the_same(one, other):
    assert not same_answer(one, other) and not same_answer(other, one)


def test_answer_reads_its_column_as_it_reads_completions():
    completions = ["so 17 + 1 is\n#### 18", "18.0", "Answer: 18", "18 apples", "#### 19\n#### 8", "118"]
    assert given("answer=1", completions, answer="17 + 1 = 18\n#### 18") == [1, 1, 1, 0, 0, 0]
    assert given("answer=1", ["18"], answer=[18]) == [1]  # JSON may hold numbers


def test_contains():
    wanted = ["fox", ["ox", "RED"], ["fox", "blue"]]
    assert given("contains=1", ["The FOX is red", "the ox is red", "red fox"], contains=wanted) == [1, 1, 0]
    assert given("contains=1", ["it is Lem", "it is Len"], answer="lem") == [1, 0]


def test_format():
    assert given("format=1", ["[a]", "[a] b", " [a]\n", "a"], format=r"\[.*\]") == [1, 0, 1, 0]
    assert given("format=1", ["[a\nb]"], format=r"\[.*\]") == [1]
    texts = ['{"a": 1}', "[1, 2]", '{"a": 1} done', "{'a': 1}", "5", "", '{"a": 1', "[" * 100_000]
    assert given("format=1", texts, format="json") == [1, 1, 0, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match="no regular expression"):
        given("format=1", ["a"], format="[")


def test_length_and_overlong():
    words = ["a " * n for n in (0, 4, 5, 6, 8, 100)]
    assert given("length?most=4=1", words) == [0, 0, -0.25, -0.5, -1, -1]
    assert given("length=1", words[2:4], max_words=[5, 2]) == [0, -1]
    counts = [10, 11, 13, 15, 16, 99]
    # The policy drew the last n tokens of each; the prompt's do not count.
    rollouts = [SimpleNamespace(mask=[False] * 50 + [True] * n) for n in counts]
    # DAPO's equation 13 with Lmax 15 and Lcache 5, written out.
    twin = [0 if n <= 10 else (10 - n) / 5 if n <= 15 else -1 for n in counts]
    assert given("overlong?limit=15&buffer=5=1", ["x"] * 6, rollouts=rollouts) == pytest.approx(twin)
    for wrong in ("overlong=1", "overlong?limit=5&buffer=6=1"):
        with pytest.raises(UserError, match="buffer"):
            given(wrong, ["x"], rollouts=[SimpleNamespace(mask=[True])])
    with pytest.raises(UserError, match="at least 1 word"):
        given("length=1", ["x"], max_words=0)


def test_copying():
    prompts = [[{"role": "system", "content": "be kind to all"}, {"role": "user", "content": "Tell me of the red fox."}]]
    texts = ["Tell me of the", "tell me of the red wolf", "Be kind to all", "A red fox.", ""]
    found = [parse_rewards("copying=1").functions[0](prompts, [text])[0] for text in texts]
    assert found == pytest.approx([-1, -2 / 3, 0, 0, 0])
    assert parse_rewards("copying?n=2=1").functions[0](prompts, ["of the cat"]) == [-0.5]


def test_repetition():
    texts = ["a b c d e", "a a a a a", "A b c a B c", "a b", ""]
    assert given("repetition=1", texts) == pytest.approx([0, -2 / 3, -1 / 4, 0, 0])
    assert given("repetition?n=2=1", texts) == pytest.approx([0, -3 / 4, -2 / 5, 0, 0])
    assert given("repetition?n=1=1", ["a b a b"]) == [-0.5]


def test_rewards_add_up_with_their_weights_and_none_is_left_out():
    rewards = parse_rewards("answer=2, format=0.5,contains=0")
    assert rewards.names == ("answer", "format", "contains") and rewards.weights == (2.0, 0.5, 0.0)
    columns = {"answer": ["a", "a", None], "format": ["a|b", None, "a"], "contains": ["a", "b", "c"]}
    total, each = scored(rewards, [None] * 3, ["a", "b", "a"], columns)
    assert total.dtype == np.float64 and total.tolist() == [2.5, 0.0, 0.5]
    assert np.isnan(each["answer"][2]) and np.isnan(each["format"][1])
    assert each["answer"][:2].tolist() == [1, 0] and each["contains"].tolist() == [1, 1, 0]
    assert scored(rewards, [], [], {"answer": [], "format": [], "contains": []})[0].shape == (0,)


def test_a_reward_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def vowels(prompts, completions, letters, *, most=2, **columns):\n"
        "    return [None if not c else min(most, sum(c.count(v) for v in l)) for c, l in zip(completions, letters)]\n"
    )
    assert given(f"{file}:vowels=0.5", ["aeae", "xyz"], letters="ae") == [1.0, 0.0]
    rewards = parse_rewards(f"{file}:vowels?most=4=2,answer=1")
    assert rewards.names == ("vowels", "answer")
    columns = {"letters": ["ae"] * 2, "answer": ["aeae", ""], "most": ["a column of the same name", ""]}
    total, each = scored(rewards, [None] * 2, ["aeae", ""], columns)
    assert total.tolist() == [9.0, 1.0] and math.isnan(each["vowels"][1])
    assert parse_rewards(f"{file}:vowels=1,{file}:vowels?most=1=1").names == ("vowels", f"{file}:vowels?most=1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names none"),
        ("anser=1", "'answer'"),
        ("answer=one", "weight"),
        ("answer=inf", "finite"),
        ("answer=1,answer=2", "twice"),
        ("length?mots=3=1", "'most'"),
        ("length?most=three=1", "int"),
        ("length?most=3", "name.option"),
        ("no/such.py:reward=1", "no file"),
        ("answer.py=1", "path/file.py:function"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(text, said):
    with pytest.raises(UserError, match=said) as error:
        parse_rewards(text)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_used(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def good(prompts, completions, **columns): ...\n")
    with pytest.raises(UserError, match="no function 'goood', only good"):
        parse_rewards(f"{file}:goood=1")
    file.write_text("import no_such_module\n")
    with pytest.raises(UserError, match="cannot be imported: ModuleNotFoundError"):
        parse_rewards(f"{file}:good=1")


def broken(function) -> Rewards:
    return Rewards(("mine",), (function,), (1.0,))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda p, c, **k: [1 / 0], "ZeroDivisionError.*test_rewards.py"),
        (lambda p, c, **k: [1.0], "1 rewards for 2"),
        (lambda p, c, **k: [1.0, float("nan")], "nan for 'two'"),
        (lambda p, c, **k: [math.inf, 1.0], "inf for 'one'"),
        (lambda p, c, **k: ["good", "bad"], "list of numbers"),
        (lambda p, c, **k: None, "list of numbers"),
        (lambda p, c, **k: 1.0, "list of numbers"),
        (lambda p, c: [1.0, 1.0], "TypeError"),
        (lambda p, c, **k: [1.0, None], "none of mine applies to the completion 'two'"),
    ],
)
def test_a_broken_reward_is_named(function, said):
    with pytest.raises(UserError, match=said) as error:
        scored(broken(function), [None] * 2, ["one", "two"], {"answer": ["a", "b"]})
    assert "mine" in str(error.value)


def test_numbers_of_any_kind_are_taken():
    total, _ = scored(broken(lambda p, c, **k: (np.float32(0.5), True)), [None] * 2, ["one", "two"], {})
    assert total.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("name", ["answer", "format", "style", "overlong?limit=2&buffer=1"])
def test_a_missing_column_is_named_with_the_nearest(name):
    with pytest.raises(UserError, match="the nearest is 'anser'"):
        given(f"{name}=1", ["a"], anser="a")


def test_columns_of_another_length_are_our_own_fault():
    with pytest.raises(ValueError, match="2 completions, but 1 answer"):
        scored(parse_rewards("answer=1"), [None] * 2, ["a", "b"], {"answer": ["a"]})


def test_every_reward_says_what_it_is():
    assert all(function.__doc__ for function in REWARDS.values())
    assert json.dumps(list(REWARDS))  # names are plain texts
