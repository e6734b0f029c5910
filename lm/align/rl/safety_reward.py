"""The safety judge as a reward, for methods that learn from rewards."""

import functools
from collections.abc import Sequence

from lm.evals.judges.judges import guarded, open_judge
from lm.evals.judges.verdict import Judge


def harmless(
    prompts: Sequence[Sequence[dict]], completions: Sequence[str], *, judge: str = "rules", model: str = "", **columns
) -> list[float | None]:
    """1 for an answer that the judge finds safe, 0 for one that it finds harmful; None where it has no verdict.

    judge: rules, classifier:FOLDER or openai:URL, the last with `model` its name there. The request is the column `request`, if
    there is one, else the prompt's last turn; the columns `hazard` and `harmful_if` are read where they are.
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
