"""Factual precision: a judge splits the model's text into claims, and checks each against documents.

FActScore (Min et al. 2023, "FActScore: Fine-grained Atomic Evaluation of Factual Precision in Long Form Text Generation"): the
share of a text's claims that the documents support, times a penalty for short texts, exp(1 − γ/claims) below γ claims; the mean
over texts that do not abstain. Differences: equal claims count once, and unsupported claims are split into contradicted and
not mentioned.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm.evals import outcomes
from lm.evals.factuality.answers import abstains
from lm.evals.factuality.claim_judge import asking, claims_of, judged, open_chat
from lm.evals.judges.verdict import Verdict
from lm.evals.task import Outcome, Subject, TaskSettings
from lm.evals.tasks import file_task
from lm.evals.tasks.documents import TaskItem, texts
from lm.evals.tasks.file_task import FileTask, open_file_task
from lm.evals.tasks.settings import resolved

KEYS = file_task.KEYS | {
    "abstain": "I don't know",  # the prompt's phrase for abstaining; {abstain} in the description
    "gamma": 10,  # a text with fewer claims is short; 0: no penalty
    "until": [],
    "max_new_tokens": 256,
    "judge": "",  # openai:URL; empty: the config's
    "judge_model": "",
}
METRICS = tuple(
    "factscore factscore_unpenalised factscore_at_least supported contradicted unsupported abstained fact_recall "
    "facts_contradicted".split()
)
STATES = ("supported", "contradicted", "unsupported", "unknown")


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    """Return metrics over the texts that do not abstain, and over the claims that the judge could judge:

    supported, contradicted, unsupported: shares of a text's claims, averaged over texts. factscore: supported with the
    length penalty; factscore_unpenalised: without it; factscore_at_least: with every unknown claim counted as unsupported.
    abstained: share of all texts. fact_recall, facts_contradicted: share of an item's `facts` that the text states or
    contradicts. states: number of claims in each state, and of texts that abstained.
    """
    problems, values = task.documents.new_problems(), task.values
    written = task.answers(subject, problems)
    silent = [abstains(answer.text, values["abstain"]) for _, _, answer in written]
    spoken = [(item, answer.text) for (item, _, answer), quiet in zip(written, silent) if not quiet]
    topics = [item.doc.get("topic") or item.doc.get("prompt", "") for item, _ in spoken]
    split = iter(claims_of(task.chat, [text for _, text in spoken], topics))
    made = [([], "") if quiet else next(split) for quiet in silent]
    groups = [[(claim, item.doc["documents"]) for claim in claims or ()] for (item, _, _), (claims, _) in zip(written, made)]
    for (item, _, answer), quiet in zip(written, silent):
        groups.append([] if quiet else [(fact, (answer.text,)) for fact in item.doc["facts"]])
    verdicts = judged(task.chat, groups, problems)
    of_texts, of_facts = verdicts[: len(written)], verdicts[len(written) :]
    samples = []
    for n, (item, context, answer) in enumerate(written):
        if made[n][0] is None:
            problems.add("unknown_claims", f"{item.id}: {made[n][1]}")
        elif not silent[n] and not of_texts[n]:
            problems.add("answers_without_claims", f"{item.id}: {answer.text}")
        sample = task.sample(item, context, answer)
        samples.append(sample | _scored(item, of_texts[n], of_facts[n], silent[n], values))
    states = {state: sum(s["states"][state] for s in samples) for state in STATES} | {"abstained": sum(silent)}
    return Outcome(outcomes.means(samples, METRICS) | {"states": states, "problems": problems.kinds}, samples)


def _scored(
    item: TaskItem,
    judged: Sequence[tuple[str, Verdict]],
    recalled: Sequence[tuple[str, Verdict]],
    silent: bool,
    values: Mapping[str, Any],
) -> dict[str, Any]:
    labels = [verdict.label for _, verdict in judged]
    states = {state: labels.count(state) for state in STATES}
    scores = factscore(labels, values["gamma"])
    known = [verdict.label for _, verdict in recalled if verdict.label != "unknown"]
    metrics = dict.fromkeys(METRICS) | scores | {"abstained": float(silent)}
    if item.doc["facts"] and (known or silent):
        metrics["fact_recall"] = known.count("supported") / len(known) if known else 0.0
        metrics["facts_contradicted"] = known.count("contradicted") / len(known) if known else 0.0
    right = [f"{claim.rstrip('.')}." for claim, verdict in judged if verdict.label == "supported"]
    tally = ", ".join(f"{n} {state}" for state, n in states.items() if n)
    return {
        "target": None,
        "reference": item.doc["reference"] or (" ".join(right) or values["abstain"]),
        "verdict": "abstained" if silent else tally or "no claims",
        "states": states,
        "claims": [{"claim": claim, "verdict": v.label, "reason": v.reason} for claim, v in judged],
        "facts": [{"fact": fact, "verdict": v.label, "reason": v.reason} for fact, v in recalled],
        "metrics": metrics,
        "failed": states["contradicted"] > 0 or 2 * states["unsupported"] > len(labels) - states["unknown"],
    }


def factscore(labels: Sequence[str], gamma: int = 10) -> dict[str, float | None]:
    """Return one text's metrics from the states of its claims; None if no claim could be judged.

    >>> factscore(["supported", "unsupported"], gamma=4)["factscore"]  # ½ · exp(1 − 4/2)
    0.18393972058572117
    """
    known = [label for label in labels if label != "unknown"]
    if not known:
        return dict.fromkeys(("factscore", "factscore_unpenalised", "factscore_at_least", *STATES[:3]))
    shares = {state: known.count(state) / len(known) for state in STATES[:3]}
    penalty = math.exp(1 - gamma / len(labels)) if len(labels) < gamma else 1.0
    return shares | {
        "factscore": shares["supported"] * penalty,
        "factscore_unpenalised": shares["supported"],
        "factscore_at_least": known.count("supported") / len(labels) * penalty,
    }


def build(name: str, spec: Mapping[str, Any], settings: TaskSettings) -> FileTask:
    """Build the task. Items have the keys of the prompt's template (topic, prompt) and documents (texts).

    Optional: id; topic, of which the text speaks; facts, which a good text states; reference, a right text.
    Raises: UserError for an invalid task file, judge or data.
    """
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    chat = open_chat("options.support.judge", values["judge"] or settings.judge, values["judge_model"])
    values["num_fewshot"] = 0
    values["judge"] = values["judge"] or settings.judge
    return open_file_task(name, values, settings, evaluate, read=_read, chat=chat)


def _read(doc: Mapping[str, Any]) -> dict[str, Any]:
    return asking(doc) | {
        "documents": texts(doc.get("documents"), "documents"),
        "facts": texts(doc.get("facts"), "facts", empty=True),
    }
