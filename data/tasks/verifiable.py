"""Requests with instructions that a program can verify, of the 25 kinds of IFEval (Zhou et al. 2023), in words of our own.

Records have the columns of IFEval's file, `key`, `prompt`, `instruction_id_list` and `kwargs`, so a set of them is also a data
file of the task ifeval of evaluate.py. The reward `instructions` (lm/align/rl/rewards.py) verifies answers. There is no
completion to imitate.

The kinds are split too. A model that trains on TRAIN_KINDS is never told one of HELD_OUT_KINDS, so these show whether it learns
to follow instructions or only these instructions. Most groups of IFEval (the part before the colon) have kinds in both.
TRAIN_KINDS need no extra package to verify. LANGUAGE_KINDS are in neither, because their verifier guesses the language; name
them in `kinds` to use them.
"""

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

from data.tasks.splits import held_out, number, records, texts
from lm.errors import UserError

Words = list[str]  # that belong to the subjects of the request
Draw = Callable[[random.Random, Words, str], dict[str, Any]]  # (…, words, request) -> kwargs in IFEval's format

ENDINGS = (
    "That is all for now.",
    "I hope this helps you.",
    "And so the day was over.",
    "Please write back soon.",
    "Thank you for your time.",
    "Do you agree with me?",
    "There is nothing more to say.",
    "Good luck with everything!",
)
FIRST_WORDS = ("Today", "However", "Imagine", "First", "Many", "Perhaps", "Nobody", "Finally", "Once", "Although")
LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "it": "Italian"}


def _nothing(rng: random.Random, words: Words, request: str) -> dict:
    return {}


def _one_of(name: str, *values: str) -> Draw:
    return lambda rng, words, request: {name: rng.choice(values)}


def _count(name: str, low: int, high: int) -> Draw:
    return lambda rng, words, request: {name: rng.randrange(low, high + 1)}


def _compared(name: str, relation: str, at_least: tuple[int, int], less_than: tuple[int, int], step: int = 1) -> Draw:
    """A bound, from its own range for each of the two relations."""

    def draw(rng: random.Random, words: Words, request: str) -> dict:
        which = rng.choice(("at least", "less than"))
        low, high = at_least if which == "at least" else less_than
        return {name: rng.randrange(low, high + 1, step), relation: which}

    return draw


def _keywords(name: str, most: int) -> Draw:
    return lambda rng, words, request: {name: rng.sample(words, rng.randint(1, most))}


def _frequency(rng: random.Random, words: Words, request: str) -> dict:
    which = rng.choice(("at least", "less than"))
    return {"keyword": rng.choice(words), "frequency": rng.randint(2, 4), "relation": which}


def _letter(rng: random.Random, words: Words, request: str) -> dict:
    if rng.random() < 0.5:
        return {"letter": rng.choice("aehnost"), "let_frequency": rng.randint(5, 15), "let_relation": "at least"}
    return {"letter": rng.choice("jqxz"), "let_frequency": rng.randint(3, 6), "let_relation": "less than"}


def _sections(rng: random.Random, words: Words, request: str) -> dict:
    return {"section_spliter": rng.choice(("Section", "Part", "Chapter")), "num_sections": rng.randint(2, 4)}


def _first_word(rng: random.Random, words: Words, request: str) -> dict:
    paragraphs = rng.randint(2, 4)
    return {"num_paragraphs": paragraphs, "nth_paragraph": rng.randint(1, paragraphs), "first_word": rng.choice(FIRST_WORDS)}


KINDS: dict[str, Draw] = {
    "keywords:existence": _keywords("keywords", 3),
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _keywords("forbidden_words", 3),
    "keywords:letter_frequency": _letter,
    "language:response_language": _one_of("language", *LANGUAGES),
    "length_constraints:number_sentences": _compared("num_sentences", "relation", (3, 6), (4, 6)),
    "length_constraints:number_paragraphs": _count("num_paragraphs", 2, 4),
    "length_constraints:number_words": _compared("num_words", "relation", (30, 60), (20, 70), 5),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _count("num_placeholders", 1, 4),
    "detectable_content:postscript": _one_of("postscript_marker", "P.S.", "P.S.", "P.P.S"),
    "detectable_format:number_bullet_lists": _count("num_bullets", 2, 5),
    "detectable_format:constrained_response": _nothing,
    "detectable_format:number_highlighted_sections": _count("num_highlights", 1, 4),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _nothing,
    "detectable_format:title": _nothing,
    "combination:two_responses": _nothing,
    "combination:repeat_prompt": lambda rng, words, request: {"prompt_to_repeat": request},
    "startend:end_checker": _one_of("end_phrase", *ENDINGS),
    "startend:quotation": _nothing,
    "change_case:capital_word_frequency": _compared("capital_frequency", "capital_relation", (2, 6), (5, 9)),
    "change_case:english_capital": _nothing,
    "change_case:english_lowercase": _nothing,
    "punctuation:no_comma": _nothing,
}
LANGUAGE_KINDS = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
HELD_OUT_KINDS = tuple(
    "keywords:frequency length_constraints:number_sentences detectable_content:postscript detectable_format:multiple_sections "
    "detectable_format:title startend:end_checker change_case:capital_word_frequency".split()
)
TRAIN_KINDS = tuple(kind for kind in KINDS if kind not in LANGUAGE_KINDS + HELD_OUT_KINDS)
NAMED = {"train": TRAIN_KINDS, "held_out": HELD_OUT_KINDS, "all": TRAIN_KINDS + HELD_OUT_KINDS}
# These decide the form of the whole answer, so no other instruction stands beside them.
ALONE = tuple(
    "language:response_language detectable_format:constrained_response detectable_format:json_format "
    "combination:two_responses combination:repeat_prompt change_case:english_capital change_case:english_lowercase".split()
)


@functools.cache
def request_texts() -> dict[str, Any]:
    """Return requests.yaml: {"subjects": {subject: words}, "forms", "questions": requests, "phrasings": {kind: texts}}."""
    return texts("requests")


def verifiable(split: str, seed: int, kinds: str = "train", most: int = 2, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Write a poem about penguins. Do not use any commas."

    kinds: train, held_out, all, or names of kinds with commas between them. most: instructions of a prompt, of different groups
    (the part before the colon), so that all of them can be followed at once.
    A request (form and subjects) is held out with every instruction.
    """
    chosen = NAMED.get(kinds) or tuple(dict.fromkeys(name for name in kinds.split(",") if name))
    if not chosen or not set(chosen) <= set(KINDS):
        raise UserError(f"verifiable: kinds={kinds!r} must be {', '.join(NAMED)}, or some of {','.join(KINDS)}")
    if most < 1:
        raise UserError(f"verifiable: most={most} must be at least 1 instruction")
    wording = request_texts()

    def draw(rng: random.Random) -> tuple[bool, dict]:
        ids = _some_kinds(rng, chosen, most)
        form = rng.choice(wording["questions" if "detectable_format:constrained_response" in ids else "forms"])
        subjects = rng.sample(list(wording["subjects"]), form.count("{}"))
        request = form.format(*subjects)
        words = list(dict.fromkeys(word for subject in subjects for word in wording["subjects"][subject]))
        kwargs = [KINDS[id](rng, words, request) for id in ids]
        told = [_told(rng.choice(wording["phrasings"][id]), one) for id, one in zip(ids, kwargs)]
        prompt = "\n".join([request, *told]) if rng.random() < 0.2 else " ".join([request, *told])
        record = {
            "key": f"{number(prompt):016x}",
            "prompt": prompt,
            "instruction_id_list": ids,
            "kwargs": kwargs,
            "task": "verifiable",
        }
        return held_out(request), record

    return records(draw, split, seed, valid)


def _some_kinds(rng: random.Random, chosen: tuple[str, ...], most: int) -> list[str]:
    """Draw a kind, and others that can stand beside it, up to a random number."""
    wanted, ids = rng.randint(1, most), [rng.choice(chosen)]
    while len(ids) < wanted and ids[0] not in ALONE:
        taken = {id.partition(":")[0] for id in ids}
        if not (left := [id for id in chosen if id not in ALONE and id.partition(":")[0] not in taken]):
            break
        ids.append(rng.choice(left))
    return ids


def _told(phrasing: str, kwargs: dict[str, Any]) -> str:
    fields = {name: ", ".join(value) if isinstance(value, list) else value for name, value in kwargs.items()}
    for name in kwargs.keys() & {"let_relation", "capital_relation"}:
        fields["relation"] = kwargs[name]
    if "language" in kwargs:
        fields["language"] = LANGUAGES[kwargs["language"]]
    return phrasing.format(**fields)
