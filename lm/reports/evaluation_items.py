"""What pages show of an item of an evaluation: all of it in items.html, and the worst items of each task in the report."""

import heapq
import json
from collections.abc import Iterable, Mapping
from typing import Any

from lm.evals.compare import TRIED
from lm.evals.failures import wrong_answer
from lm.evals.stats.chance import guess
from lm.evals.stats.measures import is_number

WORST = 3  # items listed per task
PROMPT, TEXT, FIELD = 24_000, 8_000, 1_000  # most characters of a prompt, an answer, another field
SAID = ("generation", "response", "completion", "answer")  # keys of the model's answer
# Keys of a sample that the page shows elsewhere, or not at all.
SHOWN = {"task", "doc_id", "prompt", "prompts", "messages", "tokens", "choices", "options", "loglikelihoods", "prediction"}
SHOWN |= {"target", "reference", "metrics", "failed", "flags", "group", "generations", "context_tokens", *SAID}
BESIDE = ("verdict", "reason", "refusal", "family", "hazard", "category", "subject")  # keys that a worst item shows


def gather(samples: Iterable[Mapping]) -> dict[str, dict]:
    """Return for each task {"n", "failed", "chance": mean of `guess`, None if an item has none, "worst": [see `worst_item`]}.

    The worst items are the failed ones with the greatest margin (log-likelihood of the likeliest wrong choice − that of the
    right one, nats) or confidence; without these, the first failed ones.
    """
    by_task: dict[str, dict[str, Any]] = {}
    for number, sample in enumerate(samples):
        task = by_task.setdefault(str(sample.get("task")), {"n": 0, "failed": 0, "chances": [], "heap": []})
        task["n"] += 1
        if (share := guess(sample)) is not None:
            task["chances"].append(share)
        if sample.get("failed"):
            task["failed"] += 1
            sureness = next((x for x in (margin(sample), _confidence(sample)) if x is not None), None)
            heapq.heappush(task["heap"], ((sureness is not None, sureness or 0.0, -number), sample))
            if len(task["heap"]) > WORST:
                heapq.heappop(task["heap"])
    for task in by_task.values():
        chances, heap = task.pop("chances"), task.pop("heap")
        task["chance"] = sum(chances) / len(chances) if len(chances) == task["n"] else None
        task["worst"] = [worst_item(sample) for _, sample in sorted(heap, reverse=True)]
    return by_task


def worst_item(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"item": its name, "wrong": the model's answer, "margin", "confidence", "beside": [[key, text]]} and `entry`."""
    shown = entry(sample)
    return shown | {
        "item": item_name(sample),
        "wrong": shortened(wrong_answer(sample, right_answer(sample)), TEXT),
        "margin": margin(sample),
        "confidence": _confidence(sample),
        "beside": [pair for pair in shown["more"] if pair[0] in BESIDE],
    }


def entry(sample: Mapping) -> dict[str, Any]:
    """Return what the page shows of an item beside its row in the index.

    Returns: {"prompt": [[role, text]], "choices": [[text, log-likelihood or None, tokens or None]], "right": indices, "chosen":
    index or None, "gold": the right answer, "said": [[kind, text]] of the model, "metrics": {name: value}, "more": [[key,
    text]]}.
    """
    choices = sample.get("choices") or sample.get("options") or []
    scores, tokens = sample.get("loglikelihoods") or [], sample.get("tokens") or []
    rows = [[shortened(str(choice), TEXT), _at(scores, i), _length(_at(tokens, i))] for i, choice in enumerate(choices)]
    scored = [row[1] for row in rows]
    chosen = sample.get("prediction")
    if chosen is None and scored and all(map(is_number, scored)):
        chosen = scored.index(max(scored))
    said = [[key, shortened(_text(sample[key]), TEXT)] for key in SAID if sample.get(key) not in (None, "")]
    several = sample.get("generations")
    said += [[f"generation {n}", shortened(_text(one), TEXT)] for n, one in enumerate(several or (), 1) if n > 1]
    rest = {key: value for key, value in sample.items() if key not in SHOWN and value not in (None, "")}
    return {
        "prompt": [[role, shortened(text, PROMPT)] for role, text in turns(sample)],
        "choices": [[text, round(score, 5) if is_number(score) else None, length] for text, score, length in rows],
        "right": _right(sample, len(rows)),
        "chosen": chosen if isinstance(chosen, int) else None,
        "gold": shortened(right_answer(sample), TEXT),
        "said": said,
        "metrics": sample.get("metrics") or {},
        "more": [[key, shortened(_text(value), FIELD)] for key, value in rest.items()],
    }


def turns(sample: Mapping) -> list[tuple[str, str]]:
    """Return (role or number, text) of a prompt as the model saw it: one, or one for each choice, or messages."""
    prompt = sample.get("prompts") or sample.get("prompt") or sample.get("messages") or ""
    if not isinstance(prompt, list):
        return [("", str(prompt))] if prompt else []
    labelled = [
        (str(m.get("role", "")), _text(m.get("content"))) if isinstance(m, Mapping) else (str(n), _text(m))
        for n, m in enumerate(prompt)
    ]
    return [(role, text) for role, text in labelled if text]


def margin(sample: Mapping) -> float | None:
    """Return the greatest log-likelihood of a wrong choice − that of the right one; None without such choices."""
    scores = sample.get("loglikelihoods")
    if not isinstance(scores, list) or not all(map(is_number, scores)):
        return None
    right = _right(sample, len(scores))
    wrong = [score for i, score in enumerate(scores) if i not in right]
    return max(wrong) - max(scores[i] for i in right) if right and wrong else None


def _right(sample: Mapping, choices: int) -> list[int]:
    """Return the indices of the right choices, of so many."""
    target = sample.get("target")
    return [i for i in (target if isinstance(target, list) else [target]) if isinstance(i, int) and 0 <= i < choices]


def _confidence(sample: Mapping) -> float | None:
    return sample["confidence"] if is_number(sample.get("confidence")) else None


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


def shortened(text: str, most: int) -> str:
    """Return a text of at most about `most` characters: if it is longer, its first quarter and its end."""
    more, first = len(text) - most, most // 4
    if more <= 0:
        return text
    return f"{text[:first]}\n… {more:,} characters are left out here; samples.jsonl has them …\n{text[first + more :]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _at(values: Any, i: int) -> Any:
    return values[i] if isinstance(values, list) and i < len(values) else None


def _length(tokens: Any) -> int | None:
    """Return the tokens of a choice from [context ids, its own ids]."""
    return len(tokens[1]) if isinstance(tokens, list) and len(tokens) == 2 and isinstance(tokens[1], list) else None
