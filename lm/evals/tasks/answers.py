"""Extract answers from generated texts, and compare them with right ones.

Filters are those of lm-evaluation-harness, under the same names, and three of ours. A filter maps the texts of one item
(`repeats` of them) to texts. A list of filters is a pipeline; its first output text is the answer.

MATH: Hendrycks et al. 2021, "Measuring mathematical problem solving with the MATH dataset", `is_equiv` of its authors. Both
answers are LaTeX; spellings are normalised and the texts compared. 1/2 equals \\frac12, but 0.25 does not equal \\frac14.
data/tasks/answers.py compares numbers.
"""

import collections
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals.tasks.settings import check

INVALID = "[invalid]"  # the result if nothing is found

# Spellings of LaTeX, applied in this order.
SPELLINGS = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
UNIT = "\\text{ "  # comes only before units

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
        pipelines[entry["name"]] = functools.partial(_run, steps)
    return pipelines


def _run(steps: Sequence[Filter], texts: Sequence[str]) -> str:
    return functools.reduce(lambda texts, step: step(texts), steps, texts)[0]


def exact_match(answer: str, targets: Sequence[str], options: Mapping[str, Any]) -> float:
    """Return 1 if the answer equals a target: by the rules of MATH if `equal` is set, else as texts, both `normalised`."""
    if options.get("equal"):
        return float(any(same_math(answer, target) for target in targets))
    text = normalised(answer, **options)
    return float(any(text == normalised(target, **options) for target in targets))


def normalised(
    text: str,
    regexes_to_ignore: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> str:
    """Normalise a text as exact_match does: drop regex matches, lower the case, drop ASCII punctuation and digits."""
    for pattern in regexes_to_ignore or ():
        text = re.sub(pattern, "", text)
    text = text.lower() if ignore_case else text
    dropped = (string.punctuation if ignore_punctuation else "") + (string.digits if ignore_numbers else "")
    return text.translate(str.maketrans("", "", dropped))


def same_math(answer: str, right: str) -> bool:
    try:
        return spelled(answer) == spelled(right)
    except ValueError:
        return answer == right


def spelled(answer: str) -> str:
    """Return an answer in normalised spelling. Raises: ValueError for a text that it cannot parse."""
    for written, meant in SPELLINGS:
        answer = answer.replace(written, meant)
    if answer.count(UNIT) > 1:
        raise ValueError("two units")
    answer = answer.split(UNIT)[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if answer.startswith("."):
        answer = "0" + answer
    left, *rest = answer.split("=")
    if len(rest) == 1 and len(left) <= 2:  # x = 5
        answer = rest[0]
    answer = _fractions(_roots(answer).replace(" ", ""))
    if answer == "0.5":
        return "\\frac{1}{2}"
    whole = re.fullmatch(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)", answer)
    return f"\\frac{{{whole[1]}}}{{{whole[2]}}}" if whole else answer


def boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{…} or \fbox{…}, or the text from the last "\boxed " to a $, else None."""
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    begin = text.rfind("\\boxed")
    begin = text.rfind("\\fbox") if begin < 0 else begin
    depth, inside = 0, text.find("{", begin) if begin >= 0 else len(text)
    for i in range(inside, len(text)) if inside >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return text[inside + 1 : i]
    return None


def _roots(answer: str) -> str:
    r"""Rewrite \sqrt3 as \sqrt{3}."""
    first, *rest = answer.split("\\sqrt")
    if not all(rest):
        raise ValueError("a root of nothing")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _fractions(answer: str) -> str:
    r"""Rewrite \frac12 and \frac1{2} as \frac{1}{2}; leave the text unchanged if a part is missing."""
    whole, *rest = answer.split("\\frac")
    for part in rest:
        if not part:
            raise ValueError("a fraction of nothing")
        if part[0] == "{":
            whole += "\\frac" + part
        elif len(part) < 2:
            return answer
        elif part[1] == "{":
            whole += f"\\frac{{{part[0]}}}{part[1:]}"
        else:
            whole += f"\\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return whole
