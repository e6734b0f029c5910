"""Perplexity of documents by word and by byte, and bits per byte.

ℓ is the log-likelihood of a whole document after the begin symbol, in nats:
  bits_per_byte = −Σℓ / (Σ bytes · ln 2), byte_perplexity = exp(−Σℓ / Σ bytes), word_perplexity = exp(−Σℓ / Σ words).
Bytes are UTF-8 and words are split at white space, as in lm-evaluation-harness. The metrics do not depend on the tokenizer.
Their standard errors are those of a `ratio` of two sums over documents, to first order for the exponentials.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm.evals import outcomes
from lm.evals.stats.joining import Malformed
from lm.evals.stats.measures import ratio
from lm.evals.task import Outcome, Subject, TaskSettings
from lm.evals.tasks import documents, items, prompting
from lm.evals.tasks.documents import TaskItem
from lm.evals.tasks.file_task import FileTask, open_file_task, plural, readable
from lm.evals.tasks.settings import resolved

KEYS = documents.KEYS | {"doc_to_target": str, "counted": str}


def evaluate(task: FileTask, subject: Subject) -> Outcome:
    """Score doc_to_target. Bytes and words are those of `counted`, if given (WikiText counts the text before clean-up)."""
    problems, columns = task.documents.new_problems(), task.documents.columns
    keys = (task.values.get(key) or task.values["doc_to_target"] for key in ("doc_to_target", "counted"))
    forms = [prompting.Form("", None, template, columns) for template in keys]

    def texts_of(item: TaskItem) -> tuple[str, str]:
        with prompting.reading():
            text, counted = (str(form.answer(item.doc)) for form in forms)
        if not text.strip() or not counted.strip():
            raise Malformed("no text", "empty_documents")
        return text, counted

    texts = readable(task.documents.items, texts_of, problems)
    samples = []
    for (item, (text, counted)), rolled in zip(texts, subject.rolled([text for _, (text, _) in texts]), strict=True):
        logp, size = math.fsum(rolled.logps), len(counted.encode("utf-8", "surrogatepass"))
        known = math.isfinite(logp) and bool(rolled.logps)
        sample = {
            **task.about(item),
            "prompt": text,
            "target": None,
            "tokens": list(rolled.tokens),
            "loglikelihood": logp,
            "words": len(re.split(r"\s+", counted)),
            "bytes": size,
            "metrics": {"bits_per_byte": -logp / size / math.log(2) if known else None},
            "failed": False,
        }
        if not known:
            problems.add("loglikelihoods_not_finite", f"{item.id}: {logp} of {len(rolled.logps)} tokens")
        samples.append(sample)
    scored = [sample for sample in samples if sample["metrics"]["bits_per_byte"] is not None]
    results = figures(scored)
    if by := task.values.get("group_by"):
        results[plural(by)] = outcomes.parts(scored, "group", figures)
    return Outcome(results | {"problems": problems.kinds}, samples)


def build(name: str, spec: dict, settings: TaskSettings) -> FileTask:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_target",))
    return open_file_task(name, values, settings._replace(num_fewshot=0), evaluate, endings=items.ENDINGS + items.TEXTS)


def figures(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of samples with loglikelihood, words, bytes. Without samples they are None."""
    nats, sizes, words = [-s["loglikelihood"] for s in samples], [s["bytes"] for s in samples], [s["words"] for s in samples]
    by_byte, byte_error = ratio(nats, sizes)
    by_word, word_error = ratio(nats, words)
    results: dict[str, Any] = {
        "bits_per_byte": by_byte and by_byte / math.log(2),
        "bits_per_byte_stderr": byte_error and byte_error / math.log(2),
    }
    for name, rate, error in (("byte_perplexity", by_byte, byte_error), ("word_perplexity", by_word, word_error)):
        value = math.exp(rate) if rate is not None and rate < 700 else None
        results |= {name: value, f"{name}_stderr": value * error if value is not None and error is not None else None}
    return results | {"n": len(samples), "bytes": sum(sizes), "words": sum(words)}
