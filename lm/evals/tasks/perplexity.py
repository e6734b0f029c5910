"""Perplexity of documents by word and by byte, and bits per byte.

ℓ is the log-likelihood of a whole document after the begin symbol, in nats:
  bits_per_byte = −Σℓ / (Σ bytes · ln 2), byte_perplexity = exp(−Σℓ / Σ bytes), word_perplexity = exp(−Σℓ / Σ words).
Bytes are UTF-8 and words are split at white space, as in lm-evaluation-harness. The metrics do not depend on the tokenizer.
Their standard errors are those of a ratio of two sums over documents (Cochran 1977, chapter 6), to first order for the
exponentials.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm.evals.stats.joining import Malformed
from lm.evals.task import Outcome, Subject, TaskSettings
from lm.evals.tasks import documents, items, prompting
from lm.evals.tasks.aggregate import PLURALS, about, versions_of
from lm.evals.tasks.documents import Documents
from lm.evals.tasks.settings import resolved

KEYS = documents.KEYS | {"doc_to_target": str, "counted": str}


class Rolling(NamedTuple):
    """A task of kind rolling. form.target: the text to score. counted: the text whose bytes and words are counted, if different
    (WikiText counts the text before clean-up)."""

    name: str
    spec: Mapping[str, Any]
    documents: Documents
    form: prompting.Form
    counted: prompting.Form
    versions: dict[str, Any]

    def run(self, subject: Subject) -> Outcome:
        problems = self.documents.new_problems()
        asked = []
        for item in self.documents.items:
            try:
                with prompting.reading():
                    text, counted = (str(form.answer(item.doc)) for form in (self.form, self.counted))
            except Malformed as why:
                problems.add("malformed_items", f"{item.id}: {why}")
                continue
            if not text.strip() or not counted.strip():
                problems.add("empty_documents", str(item.id))
                continue
            asked.append((item, text, counted))
        samples = []
        for (item, text, counted), rolled in zip(asked, subject.rolled([text for _, text, _ in asked]), strict=True):
            logp, size = math.fsum(rolled.logps), len(counted.encode("utf-8", "surrogatepass"))
            sample = {
                **about(self.name, self.spec, item, self.documents),
                "prompt": text,
                "target": None,
                "tokens": list(rolled.tokens),
                "loglikelihood": logp,
                "words": len(re.split(r"\s+", counted)),
                "bytes": size,
                "metrics": {"bits_per_byte": -logp / size / math.log(2)},
                "failed": False,
            }
            if not math.isfinite(logp) or not rolled.logps:
                problems.add("loglikelihoods_not_finite", f"{item.id}: {logp} of {len(rolled.logps)} tokens")
                sample["metrics"] = {"bits_per_byte": None}
            samples.append(sample)
        scored = [sample for sample in samples if sample["metrics"]["bits_per_byte"] is not None]
        results = figures(scored)
        if by := self.spec.get("group_by"):
            groups = sorted({sample["group"] for sample in scored})
            results[PLURALS.get(by, by + "s")] = {
                group: figures([s for s in scored if s["group"] == group]) for group in groups
            }
        return Outcome(results | {"problems": problems.kinds}, samples)


def build(name: str, spec: dict, settings: TaskSettings) -> Rolling:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    spec = resolved(name, spec, settings, KEYS, needed=("doc_to_target",))
    settings = settings._replace(num_fewshot=0)
    read = documents.load(name, spec, settings, items.ENDINGS + items.TEXTS)
    forms = (
        prompting.Form("", None, spec.get(key) or spec["doc_to_target"], read.columns) for key in ("doc_to_target", "counted")
    )
    prompting.open_prompts(name, spec, settings, read)  # raises UserError for an invalid template
    return Rolling(name, spec, read, *forms, versions_of(spec, settings, read))


def figures(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of samples with loglikelihood, words, bytes. Without samples they are None."""
    logps, sizes, words = ([sample[key] for sample in samples] for key in ("loglikelihood", "bytes", "words"))
    by_byte, byte_error = _ratio(logps, sizes)
    by_word, word_error = _ratio(logps, words)
    results: dict[str, Any] = {
        "bits_per_byte": by_byte and by_byte / math.log(2),
        "bits_per_byte_stderr": byte_error and byte_error / math.log(2),
    }
    for name, rate, error in (("byte_perplexity", by_byte, byte_error), ("word_perplexity", by_word, word_error)):
        value = math.exp(rate) if rate is not None and rate < 700 else None
        results |= {name: value, f"{name}_stderr": value * error if value is not None and error is not None else None}
    return results | {"n": len(samples), "bytes": sum(sizes), "words": sum(words)}


def _ratio(logps: Sequence[float], sizes: Sequence[int]) -> tuple[float | None, float | None]:
    """Return r = −Σℓ/Σs and its standard error √(n/(n−1) · Σ(ℓ + r·s)²)/Σs."""
    if not sizes:
        return None, None
    total, n = sum(sizes), len(sizes)
    rate = -math.fsum(logps) / total
    squares = math.fsum((logp + rate * size) ** 2 for logp, size in zip(logps, sizes))
    return rate, math.sqrt(squares * n / (n - 1)) / total if n > 1 else None
