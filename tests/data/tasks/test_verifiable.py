"""Requests with verifiable instructions: drawn the same every time, disjoint splits, and instructions that can be followed."""

import itertools
import json
import random
import subprocess
import sys

import pytest

from data.tasks import TASKS
from data.tasks.verifiable import ENDINGS, HELD_OUT_KINDS, KINDS, LANGUAGE_KINDS, TRAIN_KINDS, request_texts
from lm.align.rl.rewards import parse_rewards, scored
from lm.errors import UserError
from lm.evals.tasks.ifeval.instructions import VERIFIERS
from lm.evals.tasks.ifeval.task import score

ALL = ",".join(KINDS)


def some(split: str = "train", seed: int = 0, count: int = 400, **options) -> list[dict]:
    return list(itertools.islice(TASKS["verifiable"](split, seed, **options), count))


def rewards_of(spec: str, rows: list[dict], completions: list[str]) -> list[float]:
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    return scored(parse_rewards(spec), [[{"role": "user", "content": row["prompt"]}] for row in rows], completions, columns)[0]


def test_records_depend_on_split_seed_and_options_alone():
    code = "from tests.data.tasks.test_verifiable import *; print(json.dumps(some(count=5)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == some(count=5)
    assert some() != some(seed=1)
    assert some("valid", valid=7) == some("valid")[:7]


def test_kinds_are_split_in_two_and_a_split_draws_all_of_its_kinds():
    assert set(KINDS) == set(VERIFIERS)
    assert sorted(TRAIN_KINDS + HELD_OUT_KINDS + LANGUAGE_KINDS) == sorted(KINDS)
    assert 0.25 < len(HELD_OUT_KINDS) / len(TRAIN_KINDS + HELD_OUT_KINDS) < 0.4
    for name, kinds in (("train", TRAIN_KINDS), ("held_out", HELD_OUT_KINDS), ("all", TRAIN_KINDS + HELD_OUT_KINDS)):
        assert {id for row in some(kinds=name) for id in row["instruction_id_list"]} == set(kinds)
    assert {id for row in some(kinds="punctuation:no_comma") for id in row["instruction_id_list"]} == {"punctuation:no_comma"}


def test_a_request_of_valid_is_in_no_training_prompt_whatever_the_kinds_and_seeds():
    def requests(rows):
        """The first sentence, whose end is the first . or ? of the prompt."""
        return {row["prompt"][: min(row["prompt"].find(end) % 10_000 for end in ".?") + 1] for row in rows}

    valid = requests([row for seed in (0, 1) for kinds in ("train", "held_out") for row in some("valid", seed, kinds=kinds)])
    train = requests(
        [row for seed in (0, 7) for kinds in ("train", "held_out") for row in some("train", seed, 3000, kinds=kinds)]
    )
    assert len(valid) > 200 and len(train) > 1000
    assert not valid & train


def test_there_are_hundreds_of_requests_and_no_ending_holds_a_word_that_may_be_forbidden():
    texts = request_texts()
    assert len(texts["forms"]) * len(texts["subjects"]) > 1000 and len(texts["questions"]) > 5
    ends = {word.strip(".,!?").lower() for ending in ENDINGS for word in ending.split()}
    assert not ends & {word.lower() for words in texts["subjects"].values() for word in words}


def test_the_number_of_instructions_and_their_groups():
    rows = some(most=3)
    assert {len(row["instruction_id_list"]) for row in rows} == {1, 2, 3}
    for row in rows:
        groups = [id.partition(":")[0] for id in row["instruction_id_list"]]
        assert len(set(groups)) == len(groups)
    assert {len(row["instruction_id_list"]) for row in some(most=1)} == {1}


def test_prompts_name_their_arguments():
    for row in some(kinds=ALL, count=1000):
        for kwargs in row["kwargs"]:
            for name, value in kwargs.items():
                if name != "language":
                    assert all(str(one) in row["prompt"] for one in (value if isinstance(value, list) else [value]))


# For each kind a text that follows it and one that does not, made from its kwargs.
def of_words(n: int) -> str:
    return " ".join(["word"] * n)


def bound(text, n: int, relation: str) -> tuple[str, str]:
    """text(n) has n of what is counted."""
    return (text(n), text(n - 1)) if relation == "at least" else (text(n - 1), text(n))


CASES = {
    "keywords:existence": lambda keywords: (" and ".join(keywords), "nothing of it"),
    "keywords:frequency": lambda keyword, frequency, relation: bound(lambda n: f"say{f' {keyword}' * n}", frequency, relation),
    "keywords:forbidden_words": lambda forbidden_words: ("nothing of it", f"the {forbidden_words[0]}!"),
    "keywords:letter_frequency": lambda letter, let_frequency, let_relation: bound(
        lambda n: "my" + letter * n, let_frequency, let_relation
    ),
    "language:response_language": lambda language: (
        {
            "de": "Das ist ein schönes Haus und wir wohnen gern hier.",
            "fr": "Nous sommes très heureux de vous voir aujourd'hui.",
            "es": "Estamos muy contentos de verte otra vez en la ciudad.",
            "it": "Siamo molto felici di vederti oggi nella nostra città.",
        }[language],
        "This is a nice house and we like to live here.",
    ),
    "length_constraints:number_sentences": lambda num_sentences, relation: bound(
        lambda n: " ".join(["It is a day."] * n), num_sentences, relation
    ),
    "length_constraints:number_paragraphs": lambda num_paragraphs: (
        "\n***\n".join(["One."] * num_paragraphs),
        "\n***\n".join(["One."] * (num_paragraphs + 1)),
    ),
    "length_constraints:number_words": lambda num_words, relation: bound(of_words, num_words, relation),
    "length_constraints:nth_paragraph_first_word": lambda num_paragraphs, nth_paragraph, first_word: (
        "\n\n".join([f"{first_word}, it is."] * num_paragraphs),
        "\n\n".join(["It is."] * num_paragraphs),
    ),
    "detectable_content:number_placeholders": lambda num_placeholders: (
        "to" + " [name]" * num_placeholders,
        "to" + " [name]" * (num_placeholders - 1),
    ),
    "detectable_content:postscript": lambda postscript_marker: (
        f"All is well.\n{postscript_marker} Not quite.",
        "All is well.",
    ),
    "detectable_format:number_bullet_lists": lambda num_bullets: (
        "* a point\n" * num_bullets,
        "* a point\n" * (num_bullets + 1),
    ),
    "detectable_format:constrained_response": lambda: ("My answer is maybe.", "Maybe."),
    "detectable_format:number_highlighted_sections": lambda num_highlights: (
        "so" + " *it* is" * num_highlights,
        "so" + " *it* is" * (num_highlights - 1),
    ),
    "detectable_format:multiple_sections": lambda section_spliter, num_sections: (
        "\n".join(f"{section_spliter} {n + 1}\nSome" for n in range(num_sections)),
        "\n".join(f"{section_spliter} {n + 1}\nSome" for n in range(num_sections - 1)),
    ),
    "detectable_format:json_format": lambda: ('{"answer": "yes"}', '{"answer": yes}'),
    "detectable_format:title": lambda: ("<<A day>>\nIt rains.", "<A day>\nIt rains."),
    "combination:two_responses": lambda: ("One. ****** Two.", "One. ****** One."),
    "combination:repeat_prompt": lambda prompt_to_repeat: (f"{prompt_to_repeat} Yes.", f"Yes. {prompt_to_repeat}"),
    "startend:end_checker": lambda end_phrase: (f"It rains. {end_phrase}", f"It rains. {end_phrase} Really."),
    "startend:quotation": lambda: ('"It rains."', '"It rains.'),
    "change_case:capital_word_frequency": lambda capital_frequency, capital_relation: bound(
        lambda n: "so " + " ".join(["YES"] * n), capital_frequency, capital_relation
    ),
    "change_case:english_capital": lambda: (
        "THIS IS THE STORY OF A HOUSE AND OF THE PEOPLE WHO LIVED THERE WITH THEIR CHILDREN",
        "This is the story of a house and of the people who lived there with their children",
    ),
    "change_case:english_lowercase": lambda: (
        "this is the story of a house and of the people who lived there with their children",
        "This is the story of a house and of the people who lived there with their children",
    ),
    "punctuation:no_comma": lambda: ("It rains and it pours.", "It rains, it pours."),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_tells_who_follows_an_instruction_from_who_does_not(kind):
    rows = some(kinds=kind, count=40)
    pairs = [CASES[kind](**row["kwargs"][0]) for row in rows]
    assert set(rewards_of("instructions=1", rows, [yes for yes, _ in pairs])) == {1.0}
    assert set(rewards_of("instructions=1", rows, [no for _, no in pairs])) == {0.0}


# Texts that follow several instructions: parts that are put together in this order, and marks around the whole.
def followed(row: dict) -> str:
    told = dict(zip(row["instruction_id_list"], row["kwargs"]))
    for id, kwargs in told.items():
        if len(told) == 1:
            return CASES[id](**kwargs)[0]
    parts = ["<<A day>>"] if "detectable_format:title" in told else []
    body, ends = ["It rains."], []
    for id, kwargs in told.items():
        match id.partition(":")[2]:
            case "existence":
                body.append(" and ".join(kwargs["keywords"]))
            case "frequency" if kwargs["relation"] == "at least":
                body.append(" ".join([kwargs["keyword"]] * kwargs["frequency"]))
            case "letter_frequency" if kwargs["let_relation"] == "at least":
                body.append(kwargs["letter"] * kwargs["let_frequency"])
            case "number_words" if kwargs["relation"] == "at least":
                body.append(of_words(kwargs["num_words"]))
            case "number_sentences" if kwargs["relation"] == "at least":
                body += ["It is a day."] * kwargs["num_sentences"]
            case "capital_word_frequency" if kwargs["capital_relation"] == "at least":
                body.append(" ".join(["YES"] * kwargs["capital_frequency"]))
            case "number_placeholders" | "number_highlighted_sections" | "number_bullet_lists" | "multiple_sections":
                body.append("\n" + CASES[id](**kwargs)[0])
            case "postscript":
                ends.insert(0, kwargs["postscript_marker"] + " yes")
            case "end_checker":
                ends.append(kwargs["end_phrase"])
    text = "\n".join(["\n".join(parts + [" ".join(body)]).strip(), *ends])
    if paragraphs := told.get("length_constraints:number_paragraphs"):
        text = "One.\n***\n" * (paragraphs["num_paragraphs"] - 1) + text
    if (first := told.get("length_constraints:nth_paragraph_first_word")) is not None:
        text = f"{first['first_word']} it is.\n\n" * (first["num_paragraphs"] - 1) + f"{first['first_word']} {text}"
    return f'"{text}"' if "startend:quotation" in told else text


def test_all_instructions_of_a_prompt_can_be_followed_at_once():
    rows = some(kinds="all", most=3, count=3000)
    pairs = {pair for row in rows for pair in itertools.combinations(sorted(row["instruction_id_list"]), 2)}
    assert len(pairs) > 100
    texts = [followed(row) for row in rows]
    failed = [(row, text) for row, text, got in zip(rows, texts, rewards_of("instructions?all=1=1", rows, texts)) if got < 1]
    assert not failed, failed[0]


def test_records_are_items_of_ifeval():
    rows = some("valid", kinds="all", most=3)
    results, samples = score(rows, [{"prompt": row["prompt"], "response": followed(row)} for row in rows])
    assert not results["problems"]
    assert results["n"] == len(rows) == len({row["key"] for row in rows})
    assert results["prompt_strict"] == 1.0


def test_what_it_cannot_be_asked_for():
    for options, said in (
        ({"kinds": "no_comma"}, "punctuation:no_comma"),
        ({"kinds": ""}, "held_out"),
        ({"most": 0}, "most=0"),
    ):
        with pytest.raises(UserError, match=said):
            TASKS["verifiable"]("train", 0, **options)


def test_random_order_does_not_reach_the_records():
    random.seed(5)
    one = some(count=3)
    random.seed(6)
    assert one == some(count=3)
