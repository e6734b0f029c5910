"""Run the attacks that search on the model under test: GCG finds a suffix, PAIR and TAP rewrite each request."""

from collections.abc import Sequence
from typing import Any

from data.chat.template import encode_chat
from lm.errors import UserError
from lm.evals.judges.endpoint import Chat
from lm.evals.judges.verdict import Judge
from lm.evals.redteam.ask import by_judge, on_topic, rated
from lm.evals.redteam.gcg import gcg
from lm.evals.redteam.in_chat import in_chat
from lm.evals.redteam.prompts import Request
from lm.evals.redteam.search import Found, pair, tap
from lm.evals.redteam.talk import helper, with_system
from lm.evals.task import Subject

GCG = {"steps": 100, "batch": 128, "topk": 64, "requests": 8, "init": " ".join("!" * 16), "chunk": 64}
PAIR = {"streams": 5, "depth": 3, "budget": 0}  # 0: as many as the tree can hold
TAP = {"branching": 4, "width": 10, "depth": 10, "budget": 0}
SEARCHES = ("pair", "tap")


def suffix(subject: Subject, requests: Sequence[Request], options: dict[str, Any], system: str, seed: int) -> dict[str, Any]:
    """Find one suffix for the first requests: {"suffix", "loss", "loss_before", "steps", "requests", "rejected"}.

    Raises: UserError for a subject without gradients (one that is not our model), and without a request.
    """
    model, tokenizer = getattr(subject, "model", None), getattr(subject, "tokenizer", None)
    if model is None or tokenizer is None:
        raise UserError(f"redteam: family gcg needs a model's gradients, and {subject.name} has none; remove gcg")
    used = requests[: options["requests"]]
    if not used:
        raise UserError("redteam: family gcg needs a harmful request, but there is none")

    def encode(messages: list[dict]) -> list[int]:
        messages = with_system(system, messages)
        if encoding := getattr(subject, "encoding", None):
            return encoding.ids(subject.chat_prompt(messages))
        return encode_chat(tokenizer, messages, add_generation_prompt=True).ids

    texts, targets = [r.prompt.text for r in used], [r.target for r in used]
    place = in_chat(tokenizer, texts, targets, init=options["init"], encode=encode)
    settings = {key: options[key] for key in ("steps", "batch", "topk", "chunk")}
    history = gcg(model, tokenizer, place.places, place.init, seed=seed, fits=place.fits, **settings)
    return {
        "suffix": place.text(history.best),
        "loss": history.best_loss,
        "loss_before": history.losses[0],
        "steps": options["steps"],
        "requests": len(used),
        "rejected": history.rejected,
    }


def rewritten(
    name: str, subject: Subject, chat: Chat, requests: Sequence[Request], judge: Judge, given: dict[str, Any], seed: int
) -> tuple[list[dict], dict[str, Any]]:
    """Run PAIR or TAP. Return answered records (safety_eval.py) of the best prompt for each request, and a summary.

    Args:
      chat: with the model under test. given: the task's settings; "attacker" and "scorer" name the models that help.
    Returns: records, with "queries"; and {"queries", "found": requests with an answer of the highest score, …: counts of
      failures and pruned prompts}.
    """
    if not given["attacker"]:
        raise UserError(f"redteam: family {name} needs an attacker: options.redteam.attacker, openai:URL or subject")
    options = {key: given[key] for key in ("timeout", "retries", "key_variable")}
    talking = {"max_new_tokens": given["attacker_tokens"], "temperature": given["attacker_temperature"], "seed": seed}
    attacker = helper(
        "attacker",
        given["attacker"],
        given["attacker_model"],
        subject,
        options | {"max_tokens": given["attacker_tokens"], "temperature": given["attacker_temperature"]},
        **talking,
    )
    judging = {"max_new_tokens": given["attacker_tokens"], "temperature": 0.0, "seed": seed}
    texts, hazards = [r.prompt.text for r in requests], {r.prompt.text: r.prompt.hazard for r in requests}
    if given["scorer"] == "judge":
        rater, scorer = attacker, by_judge(judge, hazards)
    else:
        rater = helper("scorer", given["scorer"], given["scorer_model"], subject, options, **judging)
        scorer = rated(rater)
    limits = {key: value for key, value in given[name].items() if value}
    targets = [r.target for r in requests]
    if name == "pair":
        found = pair(texts, attacker, chat, scorer, targets=targets, **limits)
    else:
        found = tap(texts, attacker, chat, scorer, on_topic(rater), targets=targets, **limits)
    return [_record(name, *both) for both in zip(requests, found, strict=True)], _summary(found)


def _record(name: str, request: Request, found: Found) -> dict:
    p = request.prompt
    messages = [{"role": "user", "content": p.text if found.prompt is None else found.prompt}]
    record = {
        "id": p.id,
        "prompt": p.text,
        "kind": p.kind,
        "hazard": p.hazard,
        "family": name,
        "sample": 0,
        "messages": messages,
        "answer": p.answer,
        "completion": p.completion,
        "harmful_if": list(p.harmful_if),
        "conversation": messages,
        "response": found.response,
        "queries": found.queries,
    }
    return record if found.response is not None else record | {"problem": "the search found no prompt that was answered"}


def _summary(found: Sequence[Found]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for one in found:
        for what, n in one.counts.items():
            counts[what] = counts.get(what, 0) + n
    queries, best = sum(one.queries for one in found), sum(one.score == 10 for one in found)
    return {"queries": queries, "found": best, **dict(sorted(counts.items()))}
