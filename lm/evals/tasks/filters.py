"""What of generated texts is the answer: the filters of lm-evaluation-harness by their names there, and three of ours.

A filter takes the texts that one item got (`repeats` of them) and gives texts. A list of filters is a pipeline, whose first
text is the answer.
"""

import collections
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals.tasks.math_answers import boxed
from lm.evals.tasks.spec import check

INVALID = "[invalid]"  # where nothing is found

Filter = Callable[[Sequence[str]], list[str]]


def regex(regex_pattern: str = r"#### (\-?[0-9\.\,]+)", group_select: int = 0, fallback: str = INVALID) -> Filter:
    """The match of that number (-1: the last), of which the first group that is not empty counts, trimmed."""
    pattern = re.compile(regex_pattern)

    def one(text: str) -> str:
        found = pattern.findall(text)
        if not found or not -len(found) <= group_select < len(found):
            return fallback
        match = found[group_select]
        if isinstance(match, tuple):
            match = next((group for group in match if group), fallback)
        return match.strip()

    return lambda texts: [one(text) for text in texts]


def first_regex(regex_patterns: Sequence[str], group_select: int = 0) -> Filter:
    """What the first of the patterns that finds anything finds; else the text, trimmed."""
    filters = [regex(pattern, group_select) for pattern in regex_patterns]

    def one(text: str) -> str:
        found = (some([text])[0] for some in filters)
        return next((match for match in found if match != INVALID), text.strip())

    return lambda texts: [one(text) for text in texts]


def dollars() -> Filter:
    """What stands between the first and the last $; all of it where there are not two."""
    return lambda texts: [text[text.index("$") + 1 : text.rindex("$")] if text.count("$") > 1 else text for text in texts]


def last_boxed() -> Filter:
    r"""What stands in the last \boxed{…}; all of it where there is none."""
    return lambda texts: [text if (found := boxed(text)) is None else found for text in texts]


def majority_vote() -> Filter:
    """The most frequent text; of equally frequent ones the first (self-consistency, Wang et al. 2023)."""
    return lambda texts: [collections.Counter(texts).most_common(1)[0][0]]


FILTERS: dict[str, Callable[..., Filter]] = {
    "regex": regex,
    "first_regex": first_regex,
    "dollars": dollars,
    "last_boxed": last_boxed,
    "majority_vote": majority_vote,
    "take_first": lambda: lambda texts: list(texts[:1]),
    "take_first_k": lambda k: lambda texts: list(texts[:k]),
    "remove_whitespace": lambda: lambda texts: [text.strip() for text in texts],
    "lowercase": lambda: lambda texts: [text.lower() for text in texts],
    "uppercase": lambda: lambda texts: [text.upper() for text in texts],
    "map": lambda mapping_dict, default_value="": lambda texts: [mapping_dict.get(text, default_value) for text in texts],
}


def open_pipelines(name: str, filter_list: Sequence[Mapping[str, Any]] | None) -> dict[str, Callable[[Sequence[str]], str]]:
    """The pipelines of `filter_list`, as task files write it, by name. Without any: {"none": the first text}.

    Raises: UserError for a filter that there is not or that does not take its options.
    """
    pipelines: dict[str, Callable[[Sequence[str]], str]] = {}
    for entry in filter_list or [{"name": "none", "filter": [{"function": "take_first"}]}]:
        check(f"{name}: filter_list", entry, {"name": str, "filter": list}, needed=("name", "filter"))
        steps = []
        for step in entry["filter"]:
            options = dict(step)
            called = options.pop("function", None)
            if called not in FILTERS:
                raise UserError(f"task {name}: filter_list: function {called!r} is none of {', '.join(FILTERS)}")
            try:
                steps.append(FILTERS[called](**options))
            except (TypeError, re.error) as error:
                raise UserError(f"task {name}: filter_list: {called}: {error}") from None
        pipelines[entry["name"]] = _pipeline(steps)
    return pipelines


def _pipeline(steps: Sequence[Filter]) -> Callable[[Sequence[str]], str]:
    def run(texts: Sequence[str]) -> str:
        for step in steps:
            texts = step(texts)
        return texts[0]

    return run


def normalised(
    text: str,
    regexes_to_ignore: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> str:
    """As exact_match compares texts: without what the patterns find, in lower case, without ASCII punctuation or digits."""
    for pattern in regexes_to_ignore or ():
        text = re.sub(pattern, "", text)
    text = text.lower() if ignore_case else text
    dropped = (string.punctuation if ignore_punctuation else "") + (string.digits if ignore_numbers else "")
    return text.translate(str.maketrans("", "", dropped))
