"""Items in an evaluation's report: number of failures, chance accuracy, and the worst items."""

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from lm.evals.compare import TRIED
from lm.evals.failures import wrong_answer
from lm.evals.stats.chance import guess
from lm.evals.stats.measures import is_number

WORST = 3  # items listed per task
SHOWN = 24_000  # maximum characters of a prompt
SAID = 2_000  # maximum characters of an answer
TOLD = ("verdict", "reason", "refusal", "family", "hazard", "category", "subject")  # other keys to show


def gather(samples: Iterable[Mapping]) -> dict[str, dict]:
    """Return for each task {"n", "failed", "chance": mean of `guess`, None if an item has none, "worst": [item summaries]}.

    The worst items are the failed ones with the greatest margin (log-likelihood of the likeliest wrong choice − that of the
    right one, nats) or confidence; without these, the first failed ones.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, sample in enumerate(samples):
        task = found.setdefault(str(sample.get("task")), {"n": 0, "failed": 0, "chances": [], "heap": []})
        task["n"] += 1
        if (share := guess(sample)) is not None:
            task["chances"].append(share)
        if sample.get("failed"):
            task["failed"] += 1
            sureness = _sureness(sample)
            key = (sureness is not None, sureness or 0.0, -number)
            if len(task["heap"]) < WORST:
                heapq.heappush(task["heap"], (key, item_summary(sample)))
            elif key > task["heap"][0][0]:
                heapq.heapreplace(task["heap"], (key, item_summary(sample)))
    for task in found.values():
        chances, heap = task.pop("chances"), task.pop("heap")
        task["chance"] = sum(chances) / len(chances) if len(chances) == task["n"] else None
        task["worst"] = [item for _, item in sorted(heap, key=lambda pair: pair[0], reverse=True)]
    return found


def margin(sample: Mapping) -> float | None:
    """Return the greatest log-likelihood of a wrong choice − that of the right one; None without such choices."""
    scores, target = sample.get("loglikelihoods"), sample.get("target")
    if not isinstance(scores, list) or not all(map(is_number, scores)):
        return None
    right = {i for i in (target if isinstance(target, list) else [target]) if isinstance(i, int) and 0 <= i < len(scores)}
    wrong = [score for i, score in enumerate(scores) if i not in right]
    return max(wrong) - max(scores[i] for i in right) if right and wrong else None


def _sureness(sample: Mapping) -> float | None:
    if (found := margin(sample)) is not None:
        return found
    return sample["confidence"] if is_number(sample.get("confidence")) else None


def item_summary(sample: Mapping) -> dict[str, Any]:
    """Return {"task", "item": its name, "prompt": [{"role", "content"}], "target", "said", "margin", "confidence", "told":
    [(key, value)]}; texts are cut to a maximum length."""
    prompt = sample.get("prompt") or sample.get("messages") or ""
    if isinstance(prompt, str):
        prompt = [{"role": "", "content": prompt}]
    # If each choice has its own prompt, show them all.
    turns = [turn if isinstance(turn, Mapping) else {"role": f"{n}", "content": turn} for n, turn in enumerate(prompt)]
    right = right_answer(sample)
    return {
        "task": str(sample.get("task")),
        "item": item_name(sample),
        "prompt": [
            {"role": str(m.get("role", "")), "content": _cut(str(m["content"]), SHOWN)} for m in turns if m.get("content")
        ],
        "target": _cut(right, SAID),
        "said": _cut(wrong_answer(sample, right), SAID),
        "margin": margin(sample),
        "confidence": sample["confidence"] if is_number(sample.get("confidence")) else None,
        "told": [(key, _cut(str(sample[key]), SAID)) for key in TOLD if sample.get(key) not in (None, "")],
    }


def item_name(sample: Mapping) -> str:
    """Return an item's name within its task: doc_id and, where there are several samples of an item, what tells them apart."""
    parts = [sample.get("subtask"), sample.get("doc_id"), *(sample.get(key) for key in TRIED)]
    return encodable(" ".join(str(part) for part in parts if part is not None))


def encodable(text: str) -> str:
    """Return a text that UTF-8 and addresses can hold: halves of surrogate pairs become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def right_answer(sample: Mapping) -> str:
    target, choices = sample.get("target"), sample.get("choices")
    if isinstance(sample.get("reference"), str):
        return sample["reference"].strip()
    if choices and isinstance(target, int) and 0 <= target < len(choices):
        return str(choices[target]).strip()
    if isinstance(target, list):
        return ", ".join(map(str, target))
    return "" if target is None else str(target)


def _cut(text: str, most: int) -> str:
    more = len(text) - most
    return f"{text[:most]} … ({more:,} more characters, in samples.jsonl)" if more > 0 else text
