"""The 25 instructions of IFEval, each with the program that verifies it, and whether a response follows one, strictly or
loosely (Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models").

A verifier is f(response, **kwargs) -> followed?, with the kwargs of the published input_data.jsonl, which `parsed` checks
against their annotations. They decide as the authors' checker does, in its edge cases too: a phrase to look for is a regular
expression; sections, highlights and placeholders are a minimum, bullets and paragraphs an exact number. A phrase that is no
regular expression is looked for as it stands, where theirs ends with an error.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from lm.evals.tasks.ifeval.text import known_languages, sentences, words
from lm.evals.tasks.ifeval.text import language as language_of

Relation = Literal["less than", "at least"]

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")


def keywords_existence(response: str, keywords: list[str]) -> bool:
    return all(_pattern("", keyword).search(response) for keyword in keywords)


def keywords_frequency(response: str, keyword: str, frequency: int, relation: Relation) -> bool:
    """Within longer words too: "cat" occurs in "concatenate"."""
    return _holds(len(_pattern("", keyword.strip()).findall(response)), relation, frequency)


def forbidden_words(response: str, forbidden_words: list[str]) -> bool:
    """As whole words: "cat" does not occur in "concatenate"."""
    return not any(_pattern(r"\b", word, r"\b").search(response) for word in forbidden_words)


def letter_frequency(response: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """The letter may be any character, such as "#". Its case does not count."""
    return _holds(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(response: str, language: str) -> bool:
    """A response without a letter follows."""
    return language_of(response) in (language, None)


def number_sentences(response: str, num_sentences: int, relation: Relation) -> bool:
    return _holds(len(sentences(response)), relation, num_sentences)


def number_paragraphs(response: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between ***; the first and the last of them may be empty, and then do not count."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def number_words(response: str, num_words: int, relation: Relation) -> bool:
    """A contraction, such as don't, has two."""
    return _holds(len(re.findall(r"\w+", response)), relation, num_words)


def nth_paragraph_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between empty lines. Empty ones do not count, and yet have a number when the nth is looked for."""
    paragraphs = response.split("\n\n")
    if sum(bool(paragraph.strip()) for paragraph in paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    nth = paragraphs[nth_paragraph - 1].split()
    word = nth[0].lstrip("'").lstrip('"') if nth else ""
    return re.split(r"""[.,?!'"]""", word, maxsplit=1)[0].lower() == first_word.lower()


def number_placeholders(response: str, num_placeholders: int) -> bool:
    """[such as this], on one line, and perhaps empty."""
    brackets = re.findall(r"\[[^\]\n]*+\]?", response)
    return sum(bracket.endswith("]") for bracket in brackets) >= num_placeholders


def postscript(response: str, postscript_marker: str) -> bool:
    """The marker may stand anywhere, in letters of any case; one space may stand between the letters of P.S. and P.P.S."""
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(_pattern("", known.get(marker, marker.lower())).search(response.lower()))


def number_bullet_lists(response: str, num_bullets: int) -> bool:
    """A bullet is a line that begins with one * or with -, perhaps indented."""
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(response: str) -> bool:
    return any(option in response for option in OPTIONS)


def number_highlighted_sections(response: str, num_highlights: int) -> bool:
    """Of *these* and **these**, on one line each and not empty."""
    single = [part.strip("*") for part in re.findall(r"\*[^\n\*]*\*", response)]
    double = [part[2:-2] for part in re.findall(r"\*\*[^\n\*]*\*\*", response)]
    return sum(bool(part.strip()) for part in single + double) >= num_highlights


def multiple_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    """A section begins where a number follows the splitter: "Section 1"."""
    return len(_pattern(r"\s?", section_spliter.strip(), r"\s?\d+\s?", 0).split(response)) - 1 >= num_sections


def json_format(response: str) -> bool:
    """The whole response, but for a fence of backticks around it."""
    inner = response.strip()
    for fence in FENCES:
        inner = inner.removeprefix(fence)
    try:
        json.loads(inner.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """<<such as this>>, anywhere, on one line."""
    return any(mark.lstrip("<").rstrip(">").strip() for mark in re.findall(r"<<[^\n]+>>", response))


def two_responses(response: str) -> bool:
    """Two different ones between ******, which may stand before and behind them as well."""
    parts = [part.strip() for part in response.split("******")]
    responses = [part for part in parts if part]
    return all(parts[1:-1]) and len(responses) == 2 and responses[0] != responses[1]


def repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(response: str, end_phrase: str) -> bool:
    """Quotation marks behind the phrase do not count."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(response: str, capital_frequency: int, capital_relation: Relation) -> bool:
    """Words of the Penn Treebank whose letters are all capitals: I and U.S. are, and DON'T is two."""
    return _holds(sum(word.isupper() for word in words(response)), capital_relation, capital_frequency)


def english_capital(response: str) -> bool:
    return response.isupper() and response_language(response, "en")


def english_lowercase(response: str) -> bool:
    return response.islower() and response_language(response, "en")


def no_comma(response: str) -> bool:
    return "," not in response


def quotation(response: str) -> bool:
    stripped = response.strip()
    return len(stripped) > 1 and stripped[0] == stripped[-1] == '"'


VERIFIERS: dict[str, Callable[..., bool]] = {
    "keywords:existence": keywords_existence,
    "keywords:frequency": keywords_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}


def _holds(count: int, relation: Relation, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


@functools.lru_cache(maxsize=4096)
def _pattern(before: str, phrase: str, after: str = "", flags: int = re.IGNORECASE) -> re.Pattern:
    try:
        return re.compile(before + phrase + after, flags)
    except (re.error, OverflowError, RecursionError):
        return re.compile(before + re.escape(phrase) + after, flags)


class Instruction(NamedTuple):
    id: str
    kwargs: dict[str, Any]


def parsed(id: str, kwargs: Mapping[str, Any]) -> Instruction:
    """Return an instruction of an item. A kwarg that is None counts as missing, as some editions of the data write it.

    Raises: ValueError for an unknown instruction, or a kwarg that is unknown, missing (the authors' checker draws a random
      value) or makes no sense.
    """
    if id not in VERIFIERS:
        raise ValueError(f"{id!r} is none of the 25 instructions")
    present = {name: value for name, value in kwargs.items() if value is not None}
    wanted = _parameters(id)
    for name in sorted(present.keys() - wanted.keys()):
        raise ValueError(f"{id} takes no {name!r}")
    for name in sorted(wanted.keys() - present.keys()):
        raise ValueError(f"{id} lacks {name!r}")
    read = {name: _value(name, kind, present[name]) for name, kind in wanted.items()}
    if id.endswith(":nth_paragraph_first_word") and not 1 <= read["nth_paragraph"] <= read["num_paragraphs"]:
        raise ValueError(f"{id}: there is no paragraph {read['nth_paragraph']} of {read['num_paragraphs']}")
    if id.endswith(":letter_frequency") and len(read["letter"].strip()) != 1:
        raise ValueError(f"{id}: 'letter' is {read['letter']!r}, not one character")
    if id.endswith(":response_language") and read["language"] not in known_languages():
        raise ValueError(f"{id}: 'language' is {read['language']!r}, none of {', '.join(known_languages())}")
    return Instruction(id, read)


def follows(instruction: Instruction, response: str) -> bool:
    """Return whether a response follows strictly, as it is. One of nothing but space follows nothing."""
    return bool(response.strip()) and VERIFIERS[instruction.id](response, **instruction.kwargs)


def follows_loosely(instruction: Instruction, response: str) -> bool:
    """Return whether one of the variants follows: an upper bound, which forgives a bare "Sure, here it is:"."""
    return any(follows(instruction, variant) for variant in variants(response))


def variants(response: str) -> list[str]:
    """Return the response; without its first line, its last line, both of them, in case they are said around it; and each of
    the four without asterisks, in case they are markup. Eight, less those that are the same."""
    lines = response.split("\n")
    cut = [response, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))


@functools.cache
def _parameters(id: str) -> dict[str, Any]:
    """Return {kwarg: its type}."""
    _, *kwargs = inspect.signature(VERIFIERS[id]).parameters.values()
    return {parameter.name: parameter.annotation for parameter in kwargs}


def _value(name: str, kind: Any, value: Any) -> Any:
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
            raise ValueError(f"{name!r} is {value!r}, not a number ≥ 0")
        return int(value)
    if kind is Relation:
        if value not in get_args(Relation):
            raise ValueError(f"{name!r} is {value!r}, neither {' nor '.join(get_args(Relation))}")
        return value
    texts = value if kind == list[str] else [value]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{name!r} is {value!r}, not {'texts' if kind == list[str] else 'a text'}")
    return value
