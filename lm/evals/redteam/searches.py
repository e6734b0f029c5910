"""Run the attacks that rewrite each request, PAIR and TAP, on the model under test."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lm.errors import UserError
from lm.evals.judges.endpoint import Chat, endpoint
from lm.evals.judges.verdict import Judge
from lm.evals.redteam.prompts import Request
from lm.evals.redteam.safety_eval import record_of, subject_chat
from lm.evals.redteam.search import MAX_SCORE, Limits, SearchResult, by_judge, on_topic, pair_limits, rated, search
from lm.evals.task import Subject

PAIR = {"streams": 5, "depth": 3, "budget": 0}  # 0: as many as the tree can hold
TAP = {"branching": 4, "width": 10, "depth": 10, "budget": 0}
SEARCHES = ("pair", "tap")


def rewritten(
    name: str, subject: Subject, chat: Chat, requests: Sequence[Request], judge: Judge, values: dict[str, Any], seed: int
) -> tuple[list[dict], dict[str, Any]]:
    """Run PAIR or TAP. Return answered records (safety_eval.py) of the best prompt for each request, and a summary.

    Args:
      chat: with the model under test. values: the task's settings; "attacker" and "scorer" name the models that help.
    Returns: records, with "queries"; and {"queries", "found": requests with an answer of the highest score, …: counts of
      failures and pruned prompts}.
    """
    if not values["attacker"]:
        raise UserError(f"redteam: family {name} needs an attacker: options.redteam.attacker, openai:URL or subject")
    options = {key: values[key] for key in ("timeout", "retries", "key_variable")}
    sampling = {"max_new_tokens": values["attacker_tokens"], "temperature": values["attacker_temperature"], "seed": seed}
    writing = {"max_tokens": values["attacker_tokens"], "temperature": values["attacker_temperature"]}
    attacker = _helper("attacker", values, subject, options | writing, **sampling)
    texts, hazards = [r.prompt.text for r in requests], {r.prompt.text: r.prompt.hazard for r in requests}
    if values["scorer"] == "judge":
        rater, scorer = attacker, by_judge(judge, hazards)
    else:
        rater = _helper("scorer", values, subject, options, **sampling | {"temperature": 0.0})
        scorer = rated(rater)
    limits = pair_limits(**values["pair"]) if name == "pair" else Limits(**values["tap"])
    topic, targets = on_topic(rater) if name == "tap" else None, [r.target for r in requests]
    results = search(texts, attacker, chat, scorer, limits, topic, targets)
    return [_record(name, *both) for both in zip(requests, results, strict=True)], _summary(results)


def _record(name: str, request: Request, result: SearchResult) -> dict:
    prompt = request.prompt.text if result.prompt is None else result.prompt
    record = record_of(request.prompt, name, [{"role": "user", "content": prompt}])
    record |= {"conversation": record["messages"], "response": result.response, "queries": result.queries}
    return record if result.response is not None else record | {"problem": "the search found no prompt that was answered"}


def _summary(results: Sequence[SearchResult]) -> dict[str, Any]:
    counts = sum((Counter(result.counts) for result in results), Counter())
    queries, best = sum(result.queries for result in results), sum(result.score == MAX_SCORE for result in results)
    return {"queries": queries, "found": best, **dict(sorted(counts.items()))}


def _helper(key: str, values: dict[str, Any], subject: Subject, options: dict[str, Any], **sampling: Any) -> Chat:
    """Open the chat values[key]: openai:URL, or "subject", the model under test itself.

    Args: options: see `endpoint`. sampling: see `subject_chat`.
    Raises: UserError for another name.
    """
    spec = values[key]
    kind, _, url = spec.partition(":")
    if kind == "openai" and url:
        return endpoint(url, values[f"{key}_model"], **options)
    if spec == "subject":
        return subject_chat(subject, **sampling)
    raise UserError(f"redteam: {key}={spec!r} is neither openai:URL nor subject")
