"""Built-in tasks: right by another way of working them out, the same every time, and nothing of valid in train."""

import itertools
import json
import re
import subprocess
import sys

import pytest

from data import tasks
from data.tasks import CORPORA, TASKS, task
from data.tasks.letters import OPERATIONS, mixed_operations
from data.tasks.splits import PATIENCE, records
from data.tasks.style import style
from lm.align.rl.rewards import parse_rewards, scored
from lm.errors import UserError

MINE = ("arithmetic", "strings", "lists", "formats", "small_world", "instructions", "mixed_operations", "preferred_style")


def some(name: str, split: str = "train", seed: int = 0, count: int = 300, **options) -> list[dict]:
    given = {key: str(value) for key, value in options.items()}
    return list(itertools.islice(task(name, split, seed, given, TASKS), count))


def rewards_of(spec: str, rows: list[dict], completions: list[str]) -> list[float]:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    return scored(parse_rewards(spec), prompts, completions, columns)[0].tolist()


@pytest.mark.parametrize("name", MINE)
def test_a_valid_prompt_is_never_in_train_whatever_the_seeds(name):
    valid = {row["prompt"] for seed in (0, 1) for row in some(name, "valid", seed)}
    train = {row["prompt"] for seed in (0, 7) for row in some(name, "train", seed, 3000)}
    assert len(valid) > 50 and len(train) > 100
    assert not valid & train


@pytest.mark.parametrize("name", MINE)
def test_records_depend_on_split_seed_and_options_alone(name):
    assert some(name) == some(name)
    assert some(name) != some(name, seed=1)
    valid = some(name, "valid")
    assert valid == some(name, "valid")
    assert len({row["prompt"] for row in valid}) == len(valid)
    assert some(name, "valid", valid=7) == valid[:7]


def test_another_process_draws_the_same():
    code = "from tests.data.tasks.test_tasks import *; print(json.dumps([some(n, count=3) for n in MINE]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [some(name, count=3) for name in MINE]


@pytest.mark.parametrize("name", MINE)
def test_records_have_what_readers_and_verifiers_want(name):
    for row in some(name):
        assert row["task"] == name and row["prompt"] and row["completion"] and row["answer"]
        assert row["rejected"] not in ("", row["completion"])
    if name != "preferred_style":
        rows = some(name)
        assert set(rewards_of("answer=1", rows, [row["completion"] for row in rows])) == {1.0}
        assert set(rewards_of("answer=1", rows, [row["rejected"] for row in rows])) == {0.0}


def test_arithmetic_is_right():
    for row in some("arithmetic", digits=3):
        a, sign, b = re.search(r"(\d+) ([-+]) (\d+)", row["prompt"]).groups()
        assert len(a) == len(b) == 3
        assert int(row["answer"]) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
    assert all("+" in row["prompt"] for row in some("arithmetic", operations="addition"))


def test_both_ways_round_of_a_sum_are_held_out_together():
    def sums(split):
        found = (re.search(r"(\d) \+ (\d)", row["prompt"]) for row in some("arithmetic", split, digits=1, count=2000))
        return {frozenset(match.groups()) for match in found if match}

    assert sums("valid") and not sums("valid") & sums("train")


def test_strings_are_right():
    def backwards(word):
        return word and backwards(word[1:]) + word[0]

    def smallest_first(word):
        if not word:
            return ""
        i = min(range(len(word)), key=lambda i: word[i])
        return word[i] + smallest_first(word[:i] + word[i + 1 :])

    words = {
        "backwards|Reverse": backwards,
        "Sort|alphabetical": smallest_first,
        "capital": str.swapcase,
        "first|begin": lambda w: next(iter(w)),
        "last|end": lambda w: [*w].pop(),
        "How": lambda w: str(sum(1 for _ in w)),
    }
    seen = set()
    for row in some("strings"):
        (pattern,) = (p for p in words if re.search(p, row["prompt"]))
        # The made-up word is the one of two or three syllables.
        (word,) = re.findall(r"\b(?!begin with)(?:[bdfgklmnprstvz][aeiou]){2,3}[bdfgklmnprstvz]?\b", row["prompt"])
        assert words[pattern](word) == row["answer"]
        seen.add(pattern)
    assert seen == set(words)


def test_lists_are_right():
    for row in some("lists", length=5):
        numbers = [int(n) for n in re.findall(r"\d+", row["prompt"])]
        bubbled = numbers[:]
        for _ in numbers:
            for i in range(len(bubbled) - 1):
                if bubbled[i] > bubbled[i + 1]:
                    bubbled[i : i + 2] = bubbled[i + 1], bubbled[i]
        flipped = [numbers[-1 - i] for i in range(len(numbers))]
        right = {"max": [bubbled[-1]], "min": [bubbled[0]], "sort": bubbled, "reverse": flipped, "sum": [sum(numbers)]}
        assert [int(n) for n in row["answer"].split(", ")] == right[row["operation"]]


def test_forms_are_told_from_other_forms():
    rows = some("formats")
    assert {row["form"] for row in rows} == {"json", "brackets", "words", "capitals", "opening"}
    both = "format=1,contains=1"
    assert set(rewards_of(both, rows, [row["completion"] for row in rows])) == {2.0}
    assert max(rewards_of("format=1", rows, [row["rejected"] for row in rows])) == 0.0
    # Near misses: about another thing, a sign of the form missing, something beside it.
    named = [row for row in rows if "the" in row["completion"].lower()]
    others = [re.sub(r"(?i)the \w+", "THE CLOUD", row["completion"]) for row in named]
    assert max(rewards_of("contains=1", named, others)) == 0.0
    marked = [row for row in rows if row["form"] in ("json", "brackets", "opening")]
    assert max(rewards_of("format=1", marked, [row["completion"][1:] for row in marked])) == 0.0
    closed = [row for row in rows if row["form"] != "opening"]
    assert max(rewards_of("format=1", closed, [row["completion"] + " again" for row in closed])) == 0.0


def test_the_world_contradicts_itself_nowhere_and_valid_asks_what_train_tells():
    told, asked = {}, set()
    for split in ("train", "valid"):
        for row in some("small_world", split, count=4000):
            who = next(p for p in small_world_people() if p["person"] in (row["answer"], *re.findall(r"\w+", row["prompt"])))
            fact = (who["person"], row["asked"])
            assert who[row["asked"]] == row["answer"]
            if split == "train":
                told[fact] = row["answer"]
            else:
                asked.add(fact)
                assert told[fact] == row["answer"]
    assert len(asked) > 60


def small_world_people() -> list[dict]:
    from data.tasks.small_world import world

    people = world(24)
    homes = {(who["town"], who["occupation"]) for who in people}
    assert len(people) == len({who["person"] for who in people}) == len(homes) == 24
    return people


def test_operations_on_letters_are_right():
    twin = {
        "copy": lambda x: [x[i] for i in range(len(x))],
        "reverse": lambda x: [x[-i] for i in range(1, len(x) + 1)],
        "swap": lambda x: [x[{0: 1, 1: 0}.get(i, i)] for i in range(len(x))],
        "upper": lambda x: [chr(ord(c) - 32) for c in x],
        "turn": lambda x: [x[(i + 1) % len(x)] for i in range(len(x))],
    }
    forms = {"brackets": "[]", "quotes": '""', "stars": "**", "bars": "||", "braces": "{}"}
    assert set(twin) == set(OPERATIONS)
    for row in some("mixed_operations"):
        letters, name = row["prompt"].removeprefix("Take ").split(": ")
        assert row["completion"] == row["answer"] == f"the {name} is {' '.join(twin[name](letters.split()))}"
        assert len({tuple(f(letters.split())) for f in twin.values()}) == len(twin)
    rows = some("instructions")
    for row in rows:
        letters, name, form = re.fullmatch(r"Take (.*): (\w+) in (\w+)", row["prompt"]).groups()
        opening, closing = forms[form]
        assert row["answer"] == f"{opening} {' '.join(twin[name](letters.split()))} {closing}"
    assert set(rewards_of("format=1", rows, [row["completion"] for row in rows])) == {1.0}
    assert set(rewards_of("format=1", rows, [row["rejected"] for row in rows])) == {0.0}
    assert set(rewards_of("format=1", rows, [row["completion"][:-1] for row in rows])) == {0.0}


def test_letters_are_held_out_from_all_operations_and_from_the_text():
    def sets(texts):
        """The letters of every three that stand apart, in whatever order and case."""
        return {frozenset(three.lower().split()) for text in texts for three in re.findall(r"\b\w(?: \w){2}\b", text)}

    def prompts(split):
        return sets(row["prompt"] for name in ("mixed_operations", "instructions") for row in some(name, split, count=3000))

    valid = prompts("valid")
    assert len(valid) > 15
    assert not valid & prompts("train")
    told = [list(itertools.islice(CORPORA["text"](split, 0), 100)) for split in ("train", "valid")]
    train_text, valid_text = (sets(row["text"] for row in rows) for rows in told)
    assert len(train_text) > 150 and not valid & train_text
    assert valid & valid_text
    assert not any(form in row["text"] for rows in told for row in rows for form in ': [ ] { } * | "'.split())


def test_random_demonstrations_are_right_once_in_five():
    rows = some("mixed_operations", count=2000, demonstrations="random")
    share = sum(row["completion"] == row["answer"] for row in rows) / len(rows)
    assert 0.17 < share < 0.23
    for row in rows:
        letters, _ = row["prompt"].removeprefix("Take ").split(": ")
        assert row["completion"] in {f"the {name} is {' '.join(f(letters.split()))}" for name, f in OPERATIONS.items()}
    assert rows[0].keys() == some("mixed_operations")[0].keys()


def test_preferred_style_prefers_by_its_rule():
    assert style("Gladly, the fox is red", "the fox is red") == pytest.approx(1 - 0.05)
    assert style("Of course, the fox is red and thank you", "the fox is red") == pytest.approx(2 - 0.09)
    assert style("Look, the fox is obviously red and so what", "the fox is red") == pytest.approx(-4 - 0.09)
    assert style("Gladly gladly gladly, the fox is red", "the fox is red") < 1  # saying it again earns nothing
    assert style("Gladly, the fox is blue", "the fox is red") < -8  # nor does saying something else
    assert style("Gladly, the fox is red the fox is red", "the fox is red") < -8
    assert style("The outlook: the fox is red", "the fox is red") == pytest.approx(-0.06)  # outlook is no "look"
    rows = some("preferred_style")
    for row in rows:
        assert row["margin"] == pytest.approx(style(row["chosen"], row["statement"]) - style(row["rejected"], row["statement"]))
        assert row["margin"] >= 0.5
    chosen = rewards_of("style=1", rows, [row["chosen"] for row in rows])
    assert chosen == [style(row["chosen"], row["statement"]) for row in rows]
    # Who imitates has all manners, preferred or not.
    answers = some("preferred_style", part="answers")
    assert "chosen" not in answers[0]
    scores = [style(row["completion"], row["statement"]) for row in answers]
    assert min(scores) < -2 and max(scores) > 1.5 and abs(sum(scores) / len(scores)) < 1.5


def test_options_are_checked_and_read_as_their_defaults_are():
    rows = list(itertools.islice(tasks.task("arithmetic", "train", 0, {"digits": "4"}), 20))
    assert all(re.search(r"\d{4} . \d{4}", row["prompt"]) for row in rows)
    for name, options, said in (
        ("arithmetics", {}, "arithmetic"),
        ("arithmetic", {"digit": "3"}, "digits"),
        ("arithmetic", {"digits": "three"}, "int"),
        ("arithmetic", {"digits": "0"}, "1…15"),
        ("arithmetic", {"operations": "roots"}, "addition"),
        ("strings", {"syllables": "1"}, "2…10"),
        ("lists", {"length": "200"}, "largest"),
        ("small_world", {"people": "2"}, "8…1000"),
        ("mixed_operations", {"demonstrations": "wrong"}, "neither right nor random"),
        ("mixed_operations", {"length": "12"}, "alphabet"),
        ("mixed_operations", {"valid": "0"}, "valid"),
    ):
        with pytest.raises(UserError, match=said):
            next(tasks.task(name, "valid", 0, options))
    with pytest.raises(ValueError, match="split"):
        mixed_operations("test", 0)


def test_a_task_too_small_to_hold_anything_out_says_so():
    with pytest.raises(UserError, match="no held-out example"):
        next(records(lambda rng: (False, {"prompt": "always the same"}), "valid", 0, 5))
    with pytest.raises(UserError, match="no training example"):
        next(records(lambda rng: (True, {"prompt": "always the same"}), "train", 0, 5))
    drawn = []
    list(records(lambda rng: drawn.append(0) or (True, {"prompt": "once"}), "valid", 0, 5))
    assert len(drawn) == PATIENCE + 1


def test_records_are_written_as_json_lines(tmp_path):
    out = tmp_path / "new" / "rows.jsonl"
    command = [sys.executable, "-m", "data.tasks", "mixed_operations?length=5&demonstrations=random", f"--out={out}"]
    subprocess.run([*command, "--count=30", "--seed=3"], check=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == list(itertools.islice(mixed_operations("train", 3, length=5, demonstrations="random"), 30))
    assert [path.name for path in out.parent.iterdir()] == ["rows.jsonl"]
    done = subprocess.run([*command[:3], "mixed_operation", f"--out={out}"], capture_output=True, text=True)
    assert done.returncode == 2 and "mixed_operations" in done.stderr and len(done.stderr.splitlines()) == 1
