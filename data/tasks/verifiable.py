"""Requests with instructions that a program can verify, of the 25 kinds of IFEval (Zhou et al. 2023), in words of our own.

Records have the columns of IFEval's file, `key`, `prompt`, `instruction_id_list` and `kwargs`, so a set of them is also a data
file of the task ifeval of evaluate.py. The reward `instructions` (lm/align/rl/instructions.py) verifies answers. There is no
completion to imitate.

The kinds are split too. A model that trains on TRAIN_KINDS is never told one of HELD_OUT_KINDS, so these show whether it learns
to follow instructions or only these instructions. Most groups of IFEval (the part before the colon) have kinds in both.
TRAIN_KINDS need no extra package to verify. LANGUAGE_KINDS are in neither, because their verifier guesses the language; name
them in `kinds` to use them.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from data.tasks.requests import FORMS, QUESTIONS, SUBJECTS
from data.tasks.splits import held_out, number, records
from lm.errors import UserError

Words = list[str]  # that belong to the subjects of the request


class Kind(NamedTuple):
    """draw: kwargs in IFEval's format. phrasings: the instruction in words, with the kwargs' names as fields."""

    draw: Callable[[random.Random, Words, str], dict[str, Any]]
    phrasings: tuple[str, ...]


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


def _count(name: str, low: int, high: int, step: int = 1) -> Callable:
    return lambda rng, words, request: {name: rng.randrange(low, high + 1, step)}


def _compared(name: str, relation: str, at_least: tuple[int, int], less_than: tuple[int, int], step: int = 1) -> Callable:
    """A bound, from its own range for each of the two relations."""

    def draw(rng: random.Random, words: Words, request: str) -> dict:
        which = rng.choice(("at least", "less than"))
        low, high = at_least if which == "at least" else less_than
        return {name: rng.randrange(low, high + 1, step), relation: which}

    return draw


def _keywords(name: str, most: int) -> Callable:
    return lambda rng, words, request: {name: rng.sample(words, rng.randint(1, most))}


def _frequency(rng: random.Random, words: Words, request: str) -> dict:
    which = rng.choice(("at least", "less than"))
    return {"keyword": rng.choice(words), "frequency": rng.randint(2, 4), "relation": which}


def _letter(rng: random.Random, words: Words, request: str) -> dict:
    if rng.random() < 0.5:
        return {"letter": rng.choice("aehnost"), "let_frequency": rng.randint(5, 15), "let_relation": "at least"}
    return {"letter": rng.choice("jqxz"), "let_frequency": rng.randint(3, 6), "let_relation": "less than"}


def _first_word(rng: random.Random, words: Words, request: str) -> dict:
    paragraphs = rng.randint(2, 4)
    return {"num_paragraphs": paragraphs, "nth_paragraph": rng.randint(1, paragraphs), "first_word": rng.choice(FIRST_WORDS)}


KINDS: dict[str, Kind] = {
    "keywords:existence": Kind(
        _keywords("keywords", 3),
        (
            "Include these words in your answer: {keywords}.",
            "Your text must contain the following: {keywords}.",
            "Make sure that you use {keywords}.",
            "Somewhere in the answer, write {keywords}.",
        ),
    ),
    "keywords:frequency": Kind(
        _frequency,
        (
            'The word "{keyword}" should appear {relation} {frequency} times.',
            'Use the word "{keyword}" {relation} {frequency} times.',
            "Write {keyword} {relation} {frequency} times in your answer.",
        ),
    ),
    "keywords:forbidden_words": Kind(
        _keywords("forbidden_words", 3),
        (
            "Do not use these words: {forbidden_words}.",
            "Avoid the following completely: {forbidden_words}.",
            "Your answer must not contain {forbidden_words}.",
            "Without ever saying {forbidden_words}.",
        ),
    ),
    "keywords:letter_frequency": Kind(
        _letter,
        (
            "The letter {letter} should appear {relation} {let_frequency} times.",
            'Use the letter "{letter}" {relation} {let_frequency} times.',
            "Your answer should have {relation} {let_frequency} times the letter {letter}.",
        ),
    ),
    "language:response_language": Kind(
        lambda rng, words, request: {"language": rng.choice(list(LANGUAGES))},
        ("Answer in {language} only.", "Your whole answer should be in {language}.", "Write in {language}, not in English."),
    ),
    "length_constraints:number_sentences": Kind(
        _compared("num_sentences", "relation", (3, 6), (4, 6)),
        (
            "Use {relation} {num_sentences} sentences.",
            "Your answer should have {relation} {num_sentences} sentences.",
            "Write {relation} {num_sentences} sentences.",
        ),
    ),
    "length_constraints:number_paragraphs": Kind(
        _count("num_paragraphs", 2, 4),
        (
            "Write exactly {num_paragraphs} paragraphs, with three asterisks (***) between them.",
            "There should be {num_paragraphs} paragraphs. Separate paragraphs with the divider ***",
            "Split the answer into {num_paragraphs} paragraphs and put *** between two paragraphs.",
        ),
    ),
    "length_constraints:number_words": Kind(
        _compared("num_words", "relation", (30, 60), (20, 70), 5),
        (
            "Answer with {relation} {num_words} words.",
            "Your answer should have {relation} {num_words} words.",
            "Use {relation} {num_words} words.",
            "The length must be {relation} {num_words} words.",
        ),
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        _first_word,
        (
            "Write {num_paragraphs} paragraphs with an empty line between them. Paragraph {nth_paragraph} must begin with the "
            'word "{first_word}".',
            "There should be exactly {num_paragraphs} paragraphs with empty lines between them, and paragraph {nth_paragraph} "
            "has to start with {first_word}.",
            "Give exactly {num_paragraphs} paragraphs with an empty line between them. Let the first word of paragraph "
            "{nth_paragraph} be {first_word}.",
        ),
    ),
    "detectable_content:number_placeholders": Kind(
        _count("num_placeholders", 1, 4),
        (
            "Use at least {num_placeholders} placeholders in square brackets, such as [name].",
            "Leave at least {num_placeholders} blanks to fill in, written like [date].",
            "Your text must contain {num_placeholders} or more placeholders like [address].",
        ),
    ),
    "detectable_content:postscript": Kind(
        lambda rng, words, request: {"postscript_marker": rng.choice(("P.S.", "P.S.", "P.P.S"))},
        (
            "At the end, add a postscript that starts with {postscript_marker}",
            "Finish with a postscript. Begin it with {postscript_marker}",
            "After the text, write a last remark that starts with {postscript_marker}",
        ),
    ),
    "detectable_format:number_bullet_lists": Kind(
        _count("num_bullets", 2, 5),
        (
            "Answer with exactly {num_bullets} bullet points, each on a line that starts with *",
            "Your answer must contain exactly {num_bullets} bullets in Markdown, such as:\n* This is a bullet.",
            "Make a list of exactly {num_bullets} points. Start each with a dash (-).",
        ),
    ),
    "detectable_format:constrained_response": Kind(
        _nothing,
        (
            'Reply with one of these: "My answer is yes.", "My answer is no.", "My answer is maybe."',
            "Choose one of the following as your answer: My answer is yes. / My answer is no. / My answer is maybe.",
            "Your answer must be one of: (My answer is yes., My answer is no., My answer is maybe.)",
        ),
    ),
    "detectable_format:number_highlighted_sections": Kind(
        _count("num_highlights", 1, 4),
        (
            "Highlight at least {num_highlights} parts of your answer with asterisks, like *this*.",
            "Mark at least {num_highlights} phrases in Markdown, such as *important phrase*.",
            "Put at least {num_highlights} pieces of text in *asterisks*.",
        ),
    ),
    "detectable_format:multiple_sections": Kind(
        lambda rng, words, request: {
            "section_spliter": rng.choice(("Section", "Part", "Chapter")),
            "num_sections": rng.randint(2, 4),
        },
        (
            "Divide the answer into {num_sections} sections. Head each with {section_spliter} X, as in {section_spliter} 1.",
            "Your answer must have {num_sections} sections, headed {section_spliter} 1, {section_spliter} 2 and so on.",
            "Structure it in {num_sections} sections, marked with {section_spliter} and its number.",
        ),
    ),
    "detectable_format:json_format": Kind(
        _nothing,
        (
            "Give the whole answer in JSON.",
            "Your entire output must be valid JSON.",
            "Answer with a JSON object and nothing else.",
            "Wrap everything in JSON format.",
        ),
    ),
    "detectable_format:title": Kind(
        _nothing,
        (
            "Give it a title in double angle brackets, such as <<my title>>.",
            "Your answer must have a title, written like <<this>>.",
            "Add a title and put it between << and >>.",
        ),
    ),
    "combination:two_responses": Kind(
        _nothing,
        (
            "Give two different answers, separated by six asterisks: ******",
            "Write two versions. Put only ****** between them.",
            "I want exactly two different responses with ****** between the first and the second.",
        ),
    ),
    "combination:repeat_prompt": Kind(
        lambda rng, words, request: {"prompt_to_repeat": request},
        (
            "Before you answer, repeat the request above word for word. Say nothing before it.",
            "First repeat the sentence above without any change, then answer it.",
            "Start by copying my request exactly (without this sentence). Then give your answer.",
        ),
    ),
    "startend:end_checker": Kind(
        lambda rng, words, request: {"end_phrase": rng.choice(ENDINGS)},
        (
            "End with exactly this sentence: {end_phrase}",
            'The last words of your answer must be "{end_phrase}"',
            'Finish your answer with the phrase "{end_phrase}" Nothing may follow it.',
        ),
    ),
    "startend:quotation": Kind(
        _nothing,
        (
            "Put your whole answer in double quotation marks.",
            'Wrap the entire answer in double quotes ("like this").',
            'Begin and end your answer with a double quotation mark (").',
        ),
    ),
    "change_case:capital_word_frequency": Kind(
        _compared("capital_frequency", "capital_relation", (2, 6), (5, 9)),
        (
            "Words in all capital letters should appear {relation} {capital_frequency} times.",
            "Use {relation} {capital_frequency} words that are written in CAPITALS.",
            "There should be {relation} {capital_frequency} fully capitalised words.",
        ),
    ),
    "change_case:english_capital": Kind(
        _nothing, ("Answer in English and in capital letters only.", "Write everything in CAPITALS.", "Use no small letters.")
    ),
    "change_case:english_lowercase": Kind(
        _nothing,
        ("Answer in English and in lowercase only.", "Write everything in small letters.", "Use no capital letters at all."),
    ),
    "punctuation:no_comma": Kind(
        _nothing,
        (
            "Do not use any commas.",
            "Write without commas.",
            "There must be no comma in your answer.",
            "Avoid commas in the whole text.",
        ),
    ),
}
LANGUAGE_KINDS = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
HELD_OUT_KINDS = (
    "keywords:frequency",
    "length_constraints:number_sentences",
    "detectable_content:postscript",
    "detectable_format:multiple_sections",
    "detectable_format:title",
    "startend:end_checker",
    "change_case:capital_word_frequency",
)
TRAIN_KINDS = tuple(kind for kind in KINDS if kind not in LANGUAGE_KINDS + HELD_OUT_KINDS)
NAMED = {"train": TRAIN_KINDS, "held_out": HELD_OUT_KINDS, "all": TRAIN_KINDS + HELD_OUT_KINDS}
# These decide the form of the whole answer, so no other instruction stands beside them.
ALONE = (
    "language:response_language",
    "detectable_format:constrained_response",
    "detectable_format:json_format",
    "combination:two_responses",
    "combination:repeat_prompt",
    "change_case:english_capital",
    "change_case:english_lowercase",
)


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

    def draw(rng: random.Random) -> tuple[bool, dict]:
        ids = _some_kinds(rng, chosen, most)
        form = rng.choice(QUESTIONS if "detectable_format:constrained_response" in ids else FORMS)
        subjects = rng.sample(list(SUBJECTS), form.count("{}"))
        request = form.format(*subjects)
        words = list(dict.fromkeys(word for subject in subjects for word in SUBJECTS[subject]))
        kwargs = [KINDS[id].draw(rng, words, request) for id in ids]
        told = [_told(rng.choice(KINDS[id].phrasings), one) for id, one in zip(ids, kwargs)]
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
