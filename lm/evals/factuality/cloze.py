"""Cloze facts: whether the true object of a relation is likelier than others, in several wordings.

LAMA (Petroni et al. 2019, "Language Models as Knowledge Bases?") with candidates: in "[X] was born in [Y].", every object of
the relation is put in for [Y], and the text after the subject is scored as a continuation. PARAREL (Elazar et al. 2021,
"Measuring and Improving Consistency in Pretrained Language Models"): whether paraphrases of the sentence give the same object.

Prompts are plain texts to continue, without a chat template.
"""

import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm.evals import outcomes
from lm.evals.stats.joining import Malformed, Problems, key_text
from lm.evals.task import Continuation, Likelihood, Outcome, Subject, TaskSettings
from lm.evals.tasks import file_task
from lm.evals.tasks.documents import TaskItem, column, texts
from lm.evals.tasks.file_task import FileTask, open_file_task
from lm.evals.tasks.settings import resolved

KEYS = file_task.KEYS | {
    "subject": "subject",  # names of columns; also the next two
    "object": "object",
    "relation": "relation",
    "template": "template",  # column of a sentence with [X] and [Y], or of a prompt before the object
    "templates": {},  # {relation: [sentence, paraphrases …]} for relations whose items have no template
}
METRICS = ("precision_at_1", "precision_at_1_bytes", "mrr", "margin", "consistency", "consistently_right")
OBJECT = re.compile(r"\[Y\]|\[MASK\]")


class Fact(NamedTuple):
    """sentences: (text before the object, text after it) of the main sentence, which is scored, and of its paraphrases."""

    item: TaskItem
    subject: str
    relation: str
    object: str
    sentences: tuple[tuple[str, str], ...]
    candidates: tuple[str, ...]


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    """Return metrics by log-likelihood.

    precision_at_1: the true object is the likeliest (ties shared); …_bytes: per UTF-8 byte. mrr: mean 1/rank (ties at their
    middle). margin: log-likelihood − that of the likeliest other object, nats. consistency: share of pairs of an item's
    sentences with the same likeliest object. consistently_right: all sentences have the true one. chance: of
    precision_at_1. `relations` has the same for each relation."""
    problems = task.documents.new_problems()
    facts = facts_of(task, problems)
    requests = [
        Continuation(before, f"{between}{candidate}{after}")
        for fact in facts
        for before, between, after in map(_spaced, fact.sentences)
        for candidate in fact.candidates
    ]
    answers, samples = iter(subject.likelihoods(requests)), []
    for fact in facts:
        own = [[next(answers) for _ in fact.candidates] for _ in fact.sentences]
        if outcomes.all_finite([likelihood for some in own for likelihood in some], problems, fact.item.id):
            samples.append({**task.about(fact.item), **_scored(fact, own)})
    results = outcomes.means(samples, METRICS)
    relations = outcomes.parts(samples, "relation", functools.partial(outcomes.means, metrics=METRICS))
    chance = math.fsum(1 / len(s["choices"]) for s in samples) / len(samples) if samples else None
    return Outcome(results | {"chance": chance, "relations": relations, "problems": problems.kinds}, samples)


def _scored(fact: Fact, likelihoods: Sequence[Sequence[Likelihood]]) -> dict[str, Any]:
    before, between, after = _spaced(fact.sentences[0])
    choices = [f"{between}{candidate}{after}" for candidate in fact.candidates]
    target = fact.candidates.index(fact.object)
    scores = [likelihood.logp for likelihood in likelihoods[0]]
    tops = [max(range(len(some)), key=lambda n, some=some: some[n].logp) for some in likelihoods]
    pairs = [a == b for a, b in itertools.combinations(tops, 2)]
    hit, rank = ranked(scores, target)
    metrics = {
        "precision_at_1": hit,
        "precision_at_1_bytes": ranked([s / len(c.encode("utf-8", "replace")) for s, c in zip(scores, choices)], target)[0],
        "mrr": 1 / rank,
        "margin": scores[target] - max(score for n, score in enumerate(scores) if n != target),
        "consistency": sum(pairs) / len(pairs) if pairs else None,
        "consistently_right": float(all(top == target for top in tops)) if pairs else None,
    }
    return {
        "prompt": before,
        "choices": choices,
        **outcomes.choice_fields(likelihoods[0]),
        "target": target,
        "reference": choices[target].strip(),
        "relation": fact.relation,
        "answer": fact.candidates[tops[0]],
        "answers": [fact.candidates[top] for top in tops],
        "metrics": metrics,
        "failed": tops[0] != target,
    }


def ranked(scores: Sequence[float], target: int) -> tuple[float, float]:
    """Return the probability that the target comes first with ties broken at random, and its mean rank, from 1."""
    above = sum(score > scores[target] for score in scores)
    equal = sum(score == scores[target] for score in scores)
    return (0.0 if above else 1 / equal), above + (equal + 1) / 2


def _spaced(sentence: tuple[str, str]) -> tuple[str, str, str]:
    """Return the text before the object, the space between (part of the continuation), and the text after it."""
    before, after = sentence
    text = before.rstrip()
    return text, before[len(text) :], after


def build(name: str, spec: Mapping[str, Any], settings: TaskSettings) -> FileTask:
    """Build the task. Items have subject, object, and template (with [X] and [Y], or [MASK]) or prompt (before the object).

    Optional: relation, distractors (default: all objects of the relation), paraphrases (templates or prompts like the first)
    and id. Other true objects of the same subject and relation are not candidates. Raises: UserError for an invalid task file
    or data.
    """
    values = resolved(name, spec, settings, KEYS) | {"num_fewshot": 0}
    return open_file_task(name, values, settings, evaluate)


def facts_of(task: FileTask, problems: Problems) -> list[Fact]:
    """Return the facts of a task with their candidates. A duplicate, or a fact without another candidate, is a problem."""
    read = file_task.readable(task.documents.items, lambda item: _read(item, task.values), problems)
    facts, distractors = [fact for _, (fact, _) in read], {item.id: own for item, (_, own) in read}
    owners: dict[tuple, list] = {}
    for fact in facts:
        owners.setdefault((fact.subject, fact.relation, fact.object, fact.sentences), []).append(fact)
    for key, same in owners.items():
        if len(same) > 1:
            problems.add("duplicate_items", f"{key_text(key[:3])}: {', '.join(str(fact.item.id) for fact in same)}")
    facts = [fact for fact in facts if len(owners[fact.subject, fact.relation, fact.object, fact.sentences]) == 1]
    objects: dict[str, set[str]] = {}
    true: dict[tuple[str, str], set[str]] = {}
    for fact in facts:
        objects.setdefault(fact.relation, set()).add(fact.object)
        true.setdefault((fact.subject, fact.relation), set()).add(fact.object)
    usable = []
    for fact in facts:
        others = set(distractors[fact.item.id] or objects[fact.relation]) - true[fact.subject, fact.relation]
        if others:
            usable.append(fact._replace(candidates=tuple(sorted({fact.object} | others))))
        else:
            problems.add("malformed_items", f"{fact.item.id}: it has no other candidate; add distractors")
    return usable


def _read(item: TaskItem, values: Mapping[str, Any]) -> tuple[Fact, tuple[str, ...]]:
    """Return the fact and its own distractors."""

    def value(key: str, *, empty: bool = False) -> str:
        return " ".join(texts(column(item.doc, key), key, empty=empty)[:1]).strip()

    relation = value(values["relation"], empty=True)
    subject, answer = value(values["subject"]), value(values["object"])
    first = column(item.doc, values["template"]) or item.doc.get("prompt")
    of_relation = values["templates"].get(relation) or ()
    templates = texts(first or of_relation, "template")
    templates += texts(item.doc.get("paraphrases"), "paraphrases", empty=True)
    sentences = tuple(dict.fromkeys(_sentence(template, subject) for template in templates))
    return Fact(item, subject, relation, answer, sentences, ()), texts(item.doc.get("distractors"), "distractors", empty=True)


def _sentence(template: str, subject: str) -> tuple[str, str]:
    holes = OBJECT.split(template)
    if len(holes) > 2:
        raise Malformed(f"{template!r} has {len(holes) - 1} places for the object")
    before, after = (part.replace("[X]", subject) for part in (*holes, "")[:2])
    if len(holes) == 1 and not before[-1:].isspace():
        before += " "
    return before, after
