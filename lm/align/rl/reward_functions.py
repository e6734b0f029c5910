"""The rewards that a config names: plain functions that score completions, with TRL's signature (lm/align/rl/rewards.py)."""

import difflib
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from data.tasks.answers import final_answer, same_answer
from data.tasks.style import style as style_score
from lm.errors import UserError
from lm.evals.judges.judges import open_judge
from lm.evals.judges.verdict import Judge, guarded
from lm.evals.tasks.ifeval.instructions import Instruction, follows, parsed
from lm.sandbox.run import check_many, function_check

Reward = Callable[..., list[float | None]]


def answer(prompts, completions, **columns) -> list[float | None]:
    """Return 1 if the completion's final answer equals column `answer`, else 0; see data/tasks/answers.py."""
    right = _column("answer", "answer", columns)
    return [
        None if r is None else float(same_answer(final_answer(c), final_answer(str(r)))) for c, r in zip(completions, right)
    ]


def contains(prompts, completions, **columns) -> list[float | None]:
    """Return 1 if the completion contains all texts of column `contains` (or `answer`), ignoring case, else 0.

    The column holds a text or a list of texts. `answer` is read if there is no column `contains`.
    """
    name = "contains" if "contains" in columns else "answer"
    return [
        None if w is None else float(all(text.casefold() in c.casefold() for text in ([w] if isinstance(w, str) else w)))
        for c, w in zip(completions, _column("contains", name, columns))
    ]


def format(prompts, completions, **columns) -> list[float | None]:
    """Return 1 if the whole completion matches column `format`, else 0.

    The column holds a regular expression, in which a dot also matches line ends, or "json" for a JSON object or list.
    """
    forms = _column("format", "format", columns)
    return [None if form is None else float(_has_form(c.strip(), form)) for c, form in zip(completions, forms)]


def _has_form(text: str, form: str) -> bool:
    if form == "json":
        try:
            return isinstance(json.loads(text), dict | list)
        except (ValueError, RecursionError):
            return False
    try:
        return re.fullmatch(form, text, re.DOTALL) is not None
    except re.error as error:
        raise UserError(f"reward format: column format holds {form!r}, which is no regular expression: {error}") from error


def length(prompts, completions, *, most: int = 0, **columns) -> list[float | None]:
    """Return 0 up to `most` words (default: column `max_words`), then −(words − most)/most, but at least −1."""
    limits = [most] * len(completions) if most else _column("length", "max_words", columns)
    if any(m is not None and m < 1 for m in limits):
        raise UserError("reward length: `most` and column max_words must be at least 1 word")
    return [None if m is None else -min(1.0, max(0.0, (len(c.split()) - m) / m)) for c, m in zip(completions, limits)]


def overlong(prompts, completions, *, limit: int = 0, buffer: int = 0, **columns) -> list[float | None]:
    """Return DAPO's soft overlong punishment for n policy tokens (Yu et al. 2025, eq. 13).

    It is 0 for n ≤ limit − buffer, (limit − buffer − n)/buffer up to n = limit, and −1 beyond.
    """
    if not 0 < buffer <= limit:
        raise UserError(
            f"reward overlong: needs 0 < buffer ≤ limit tokens, not limit={limit}, buffer={buffer}: "
            "write overlong?limit=256&buffer=64=1"
        )
    counts = [sum(rollout.mask) for rollout in _column("overlong", "rollouts", columns)]
    return [-min(1.0, max(0.0, (n - (limit - buffer)) / buffer)) for n in counts]


def repetition(prompts, completions, *, n: int = 3, **columns) -> list[float | None]:
    """Return −(share of repeated word n-grams in the completion): 0 if all are distinct, near −1 for a loop."""
    rewards = []
    for completion in completions:
        grams = _grams(completion, n)
        rewards.append(len(set(grams)) / len(grams) - 1.0 if grams else 0.0)
    return rewards


def copying(prompts, completions, *, n: int = 4, **columns) -> list[float | None]:
    """Return −(share of the completion's word n-grams that stand in the last message of its prompt)."""
    rewards = []
    for messages, completion in zip(prompts, completions):
        asked, said = set(_grams(messages[-1]["content"], n)), _grams(completion, n)
        rewards.append(-sum(gram in asked for gram in said) / len(said) if said else 0.0)
    return rewards


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def style(prompts, completions, *, least: float = -math.inf, **columns) -> list[float | None]:
    """Return the style score of the built-in task preferred_style (data/tasks/style.py), which reads column `statement`.

    With `least`, return 1 if the score is at least `least`, else 0. A completion that is polite at both ends and has no filler
    word scores above 1.85.
    """
    scores = [None if s is None else style_score(c, s) for c, s in zip(completions, _column("style", "statement", columns))]
    return scores if least == -math.inf else [None if score is None else float(score >= least) for score in scores]


def environment(prompts, completions, **columns) -> list[float | None]:
    """Return the sum of the rewards that the environment of config.rollout.environment gave; 0 for a rollout without a turn."""
    return [rollout.episode_return or 0.0 for rollout in _column("environment", "rollouts", columns)]


def instructions(
    prompts: Sequence, completions: Sequence[str], *, all: int = 0, least_words: int = 0, **columns
) -> list[float | None]:
    """Return the share of a prompt's instructions that the completion follows strictly; with all=1, 1 for all of them, else 0.

    Columns `instruction_id_list` and `kwargs` are as in IFEval's file (builtin:verifiable has them). A completion with fewer
    than `least_words` words follows nothing, and neither does an empty one: bare marks, such as "{}" for JSON, earn nothing.
    """
    for name in ("instruction_id_list", "kwargs"):
        if name not in columns:
            raise UserError(f"reward instructions reads column {name!r}, which the task's records lack: use builtin:verifiable")
    rewards: list[float | None] = []
    for completion, ids, kwargs in zip(completions, columns["instruction_id_list"], columns["kwargs"], strict=True):
        if not ids:
            rewards.append(None)
            continue
        enough = len(re.findall(r"\w+", completion)) >= least_words
        followed = [enough and follows(one, completion) for one in _read(ids, kwargs)]
        rewards.append(float(min(followed)) if all else sum(followed) / len(followed))
    return rewards


def _read(ids: Sequence[str], kwargs: Sequence[dict] | None) -> list[Instruction]:
    if not isinstance(kwargs, Sequence) or len(kwargs) != len(ids):
        raise UserError(f"reward instructions: column kwargs holds {kwargs!r}, not one object for each of {', '.join(ids)}")
    try:
        return [parsed(id, one) for id, one in zip(ids, kwargs)]
    except ValueError as error:
        raise UserError(f"reward instructions: {error}") from None


def tests(
    prompts: Sequence, completions: Sequence[str], *, column: str = "test", timeout: float = 3.0, **columns
) -> list[float | None]:
    """Return 1 if the program passes the tests of its record in the sandbox within `timeout` seconds, else 0.

    The program is the prompt and then the completion, or what stands in its first block of code between ```. Columns `test` and
    `entry_point` are as in HumanEval's file (builtin:programs has them). The policy never reads them. column=visible_test: the
    test of the examples that the prompt of builtin:programs shows.
    """
    wanted = zip(prompts, completions, _column("tests", column, columns), _column("tests", "entry_point", columns))
    checks = [
        test and function_check(f"{prompt[-1]['content']}\n", _block(completion), test, name)
        for prompt, completion, test, name in wanted
    ]
    ends = iter(check_many([check for check in checks if check], timeout=timeout, memory_mib=512))
    found = [next(ends) if check else None for check in checks]
    if lost := next((end.stderr for end in found if end and end.stderr.startswith("[not run")), ""):
        raise UserError(f"reward tests: the sandbox could not be set up: {lost}")
    return [None if end is None else float(end.finished) for end in found]


def _block(text: str) -> str:
    block = re.search(r"```[a-z]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    return block[1] if block else text


def harmless(
    prompts: Sequence[Sequence[dict]], completions: Sequence[str], *, judge: str = "rules", model: str = "", **columns
) -> list[float | None]:
    """Return 1 for an answer that the judge labels safe, 0 for harmful, and None without a verdict.

    judge: rules, classifier:FOLDER or openai:URL; `model` is the model name for openai:URL. The request is column `request`, or
    the prompt's last turn without that column. Columns `hazard` and `harmful_if` are optional.
    """
    requests = columns.get("request") or [prompt[-1]["content"] for prompt in prompts]
    hazards = columns.get("hazard") or [""] * len(prompts)
    patterns = columns.get("harmful_if") or [()] * len(prompts)
    opened = _opened(judge, model, tuple(sorted({(r, tuple(p)) for r, p in zip(requests, patterns) if p})))
    verdicts = guarded(opened)(requests, completions, [hazard or "" for hazard in hazards])
    return [{"safe": 1.0, "harmful": 0.0, "unknown": None}[verdict.label] for verdict in verdicts]


@functools.lru_cache(4)
def _opened(judge: str, model: str, patterns: tuple) -> Judge:
    return open_judge(judge, model=model, harmful_if=dict(patterns))


FUNCTIONS = (answer, contains, copying, environment, format, length, overlong, repetition, style, harmless, instructions, tests)
REWARDS: dict[str, Reward] = {function.__name__: function for function in FUNCTIONS}
# What others call them.
OTHER_NAMES = {name: "answer" for name in ("accuracy", "accuracy_reward", "correctness", "correct", "exact_match", "math")} | {
    "format_reward": "format",
    "think_format_reward": "format",
    "length_reward": "length",
    "soft_overlong_punishment": "overlong",
    "code_reward": "tests",
}


def _column(reward: str, name: str, columns: Mapping[str, Sequence]) -> Sequence:
    if name not in columns:
        raise UserError(
            f"reward {reward} reads column {name!r}, which the task's records lack{nearest(name, columns)}; rename it, "
            "or write a reward of your own, path/file.py:function"
        )
    return columns[name]


def nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return f"; the nearest is {difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]!r}" if known else ""
