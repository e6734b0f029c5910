"""SelfCheckGPT: whether a model is consistent when it is asked again (Manakul, Liusie and Gales 2023).

A model repeats what it knows in every sample; hallucinations differ between samples. Each sentence of the greedy answer is
compared with N samples:

    by a judge     the share of samples that do not support the sentence: 0 supported, 1 not (the paper's prompt variant)
    by unigrams    −log p(word) from the word counts of the samples and the answer: the mean over the answer's words, and the
                   mean over its sentences of the maximum (the paper's n-gram variant, n = 1)

The unigram metrics grow with a text's vocabulary. No variant detects an error that is in every sample: this measures
consistency, not truth.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.factuality.answers import abstains
from lm.evals.factuality.claim_judge import asking, judged, open_chat
from lm.evals.judges.verdict import Verdict
from lm.evals.task import Outcome, Prompt, Subject, TaskSettings
from lm.evals.tasks import file_task
from lm.evals.tasks.file_task import FileTask, open_file_task
from lm.evals.tasks.settings import check_least, resolved

KEYS = file_task.KEYS | {
    "abstain": "I don't know",  # the prompt's phrase for abstaining; {abstain} in the description
    "samples": 5,
    "temperature": 1.0,
    "top_p": 1.0,
    "until": [],
    "max_new_tokens": 128,
    "judge": "",  # openai:URL; empty: the config's, if it is one, else none
    "judge_model": "",
}
UNIGRAM = ("inconsistency_unigram_avg_nll", "inconsistency_unigram_max_nll")
METRICS = ("inconsistency", "samples_contradicted", *UNIGRAM, "abstained")

# Of the splitter into sentences.
ABBREVIATIONS = set(
    "dr mr mrs ms prof st no vs e.g i.e jr sr inc ltd co corp approx fig vol ca cf gen col lt sgt capt rev hon gov sen rep mt "
    "jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k a.m p.m d.c ph.d b.c a.d etc al".split()
)
ENDING = {"inc", "ltd", "co", "corp", "jr", "sr", "u.s", "u.k", "a.m", "p.m", "d.c", "ph.d", "b.c", "a.d", "etc", "al"}
STARTERS = set(
    "the a an he she it they we i you his her its their this that these those in on at after before when but".split()
)
LINE = 60  # a line of at least so many characters without an end continues on the next line

_END = re.compile(r"""[.!?]+["'”’)\]]*(?=\s+["'“‘(\[]*(\w+))""")
_ITEM = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.)]|#+)\s+")


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    """Return metrics over the answers that do not abstain, each a mean over the sentences.

    inconsistency: the share of samples that do not support the sentence. samples_contradicted: the share that contradict
    it. Failed judgements count for neither. The unigram metrics are in nats. abstained: over all greedy answers."""
    problems, values = task.documents.new_problems(), task.values
    prompted = task.contexts(subject, problems)
    requests, ids = [], []
    for item, context in prompted:
        greedy = Prompt(context.text, tuple(values["until"]), values["max_new_tokens"])
        drawn = greedy._replace(temperature=float(values["temperature"]), top_p=float(values["top_p"]))
        requests += [greedy, *(drawn._replace(seed=task.seed + n) for n in range(1, values["samples"] + 1))]
        ids += [item.id, *(f"{item.id}, sample {n}" for n in range(1, values["samples"] + 1))]
    written = file_task.generated(subject, requests, ids, problems)
    step = values["samples"] + 1
    cases = [
        (*prompted[n], written[n * step], [a.text for a in written[n * step + 1 : (n + 1) * step] if a is not None])
        for n in range(len(prompted))
    ]
    cases = [case for case in cases if case[2] is not None and case[3]]
    stated = [[] if abstains(answer.text, values["abstain"]) else sentences(answer.text) for _, _, answer, _ in cases]
    groups = [[(sentence, (text,)) for text in texts] for (*_, texts), own in zip(cases, stated) for sentence in own]
    following = iter(judged(task.chat, groups, problems) if task.chat else [[] for _ in groups])
    samples = []
    for (item, context, answer, texts), some in zip(cases, stated, strict=True):
        of_sentences = [[verdict for _, verdict in next(following)] for _ in some]
        reference = item.doc["reference"] or values["abstain"]  # the answer to prefer over an inconsistent one
        samples.append(task.sample(item, context, answer) | {"reference": reference} | scored(some, texts, of_sentences))
    return Outcome(outcomes.means(samples, METRICS) | {"problems": problems.kinds}, samples)


def scored(stated: Sequence[str], texts: Sequence[str], verdicts: Sequence[Sequence[Verdict]]) -> dict[str, Any]:
    """Return the scores of an answer's sentences. verdicts: of each sentence by the samples; [] without a judge."""
    metrics: dict[str, float | None] = dict.fromkeys(METRICS) | {"abstained": float(not stated)}
    rows = []
    for sentence, own in zip(stated, verdicts, strict=True):
        labels = [verdict.label for verdict in own if verdict.label != "unknown"]
        shares = {
            "inconsistency": sum(label != "supported" for label in labels) / len(labels) if labels else None,
            "samples_contradicted": labels.count("contradicted") / len(labels) if labels else None,
        }
        rows.append({"sentence": sentence, "verdicts": [verdict.label for verdict in own], **shares})
    for name in ("inconsistency", "samples_contradicted"):
        known = [row[name] for row in rows if row[name] is not None]
        metrics[name] = sum(known) / len(known) if known else None
    if stated:
        metrics |= unigram(stated, texts)
    share = metrics["inconsistency"]
    verdict = "unknown" if share is None else "inconsistent" if share > 0.5 else "consistent"
    return {
        "target": None,
        "samples": list(texts),
        "sentences": rows,
        "metrics": metrics,
        "verdict": verdict if stated else "abstained",
        "failed": share is not None and share > 0.5,
    }


def unigram(stated: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return −log p of the words of an answer's sentences, in nats, from the counts of the samples and the answer together.

    Each word occurs at least in the answer, so no smoothing is needed."""
    counts = collections.Counter(word for text in (*stated, *texts) for word in words(text))
    total = counts.total()
    surprise = [[-math.log(counts[word] / total) for word in words(sentence)] for sentence in stated]
    every = [value for of_sentence in surprise for value in of_sentence]
    return dict(zip(UNIGRAM, (math.fsum(every) / len(every), math.fsum(map(max, surprise)) / len(surprise))))


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; each line that is a list item, a heading or a verse is separate."""
    parts = []
    for paragraph in _paragraphs(text):
        begin = 0
        for match in _END.finditer(paragraph):
            following = match[1]
            if not (following[0].isupper() or following[0].isdigit() or not following[0].isascii()):
                continue
            before = paragraph[max(begin, match.start() - 30) : match.start()].split(" ")[-1]
            word = before.strip("([\"'“‘").lower()
            if match[0][0] == "." and (word in ABBREVIATIONS or re.fullmatch(r"[^\W\d]|(?:[^\W\d]\.)+[^\W\d]", word)):
                if word not in ENDING or following.lower() not in STARTERS:
                    continue
            parts.append(paragraph[begin : match.end()].strip())
            begin = match.end()
        parts.append(paragraph[begin:].strip())
    return [sentence for sentence in parts if re.search(r"\w", sentence)]


def _paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs: consecutive lines joined."""
    joined = ""
    for line in text.splitlines():
        apart = not line.strip() or _ITEM.match(line) or joined.endswith((".", "!", "?", ":")) or (0 < len(joined) < LINE)
        if joined and apart:
            yield joined
            joined = ""
        joined = f"{joined} {_ITEM.sub('', line).strip()}".strip()
    if joined:
        yield joined


def build(name: str, spec: Mapping[str, Any], settings: TaskSettings) -> FileTask:
    """Build the task. Items have the keys of the prompt's template, and optionally id and reference (a right answer).

    Raises: UserError for an invalid task file, judge or data.
    """
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    check_least(name, values, samples=1)
    if values["temperature"] <= 0:
        raise UserError(f"task {name}: temperature: {values['temperature']} must be above 0, or every sample is the same")
    named = values["judge"] or (settings.judge if settings.judge.startswith("openai:") else "")
    chat = open_chat("options.selfcheck.judge", named, values["judge_model"]) if named else None
    values["num_fewshot"] = 0
    values["judge"] = named
    return open_file_task(name, values, settings, evaluate, read=asking, chat=chat)
