"""Use a safety judge as a reward function."""

import functools
from collections.abc import Sequence

from lm.evals.judges.judges import open_judge
from lm.evals.judges.verdict import Judge, guarded


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
