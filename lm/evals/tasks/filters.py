"""Extract answers from generated texts: the filters of lm-evaluation-harness, under the same names, and three of ours.

A filter maps the texts of one item (`repeats` of them) to texts. A list of filters is a pipeline; its first output text is the
answer.
"""

import collections
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals.tasks.answer_metrics import boxed
from lm.evals.tasks.settings import check

INVALID = "[invalid]"  # the result if nothing is found

Filter = Callable[[Sequence[str]], list[str]]


def regex(regex_pattern: str = r"#### (\-?[0-9\.\,]+)", group_select: int = 0, fallback: str = INVALID) -> Filter:
    """Return match number `group_select` (-1: the last): its first non-empty group, stripped."""
    pattern = re.compile(regex_pattern)

    def extract(text: str) -> str:
        matches = pattern.findall(text)
        if not matches or not -len(matches) <= group_select < len(matches):
            return fallback
        match = matches[group_select]
        if isinstance(match, tuple):
            match = next((group for group in match if group), fallback)
        return match.strip()

    return lambda texts: [extract(text) for text in texts]


def first_regex(regex_patterns: Sequence[str], group_select: int = 0) -> Filter:
    """Return the match of the first pattern that has one; else the text, stripped."""
    filters = [regex(pattern, group_select) for pattern in regex_patterns]

    def extract(text: str) -> str:
        matches = (some([text])[0] for some in filters)
        return next((match for match in matches if match != INVALID), text.strip())

    return lambda texts: [extract(text) for text in texts]


def dollars() -> Filter:
    """Return the text between the first and the last $; the whole text if there are not two."""
    return lambda texts: [text[text.index("$") + 1 : text.rindex("$")] if text.count("$") > 1 else text for text in texts]


def last_boxed() -> Filter:
    r"""Return the content of the last \boxed{…}; the whole text if there is none."""
    return lambda texts: [text if (inside := boxed(text)) is None else inside for text in texts]


def majority_vote() -> Filter:
    """Return the most frequent text, the first in a tie (self-consistency, Wang et al. 2023)."""
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
    """Return the pipelines of a task file's `filter_list` by name; if it is empty, {"none": the first text}.

    Raises: UserError for an unknown filter or invalid options.
    """
    pipelines: dict[str, Callable[[Sequence[str]], str]] = {}
    for entry in filter_list or [{"name": "none", "filter": [{"function": "take_first"}]}]:
        check(f"task {name}: filter_list", entry, {"name": str, "filter": list}, needed=("name", "filter"))
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
