"""Coherence of generated texts: repetition and entities of continuations, a judge's preference, and the gain from distant
context on long texts.

Where there are references, the same metrics are computed for them: good text is the yardstick for the model's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.evals.coherence.entity_grid import METRICS as ENTITY
from lm.evals.coherence.entity_grid import grid, measures, shares
from lm.evals.coherence.repetition import METRICS as REPETITION
from lm.evals.coherence.repetition import repetition
from lm.evals.factuality.claims import sentences
from lm.evals.judges.endpoint import Chat, endpoint
from lm.evals.judges.pairwise import preferences
from lm.evals.outcome import Outcome, TaskSettings, summed_up
from lm.evals.stats.joining import Malformed, Problems
from lm.evals.stats.measures import mean
from lm.evals.subject import Continuation, Prompt, Subject
from lm.evals.tasks import writing
from lm.evals.tasks.documents import Documents
from lm.evals.tasks.prompting import Prompts, open_prompts

DEFAULTS = {
    "prompt_words": 48,  # words of a text that are the prompt; at most half of it
    "temperature": 0.0,
    "top_p": 1.0,
    "until": [],
    "max_new_tokens": 200,
    "degenerate": 0.5,  # a continuation with at least this seq_repetition_4 counts as failed
    "bucket_bytes": 512,  # length of the parts of long texts; bits per byte are reported by part
    "buckets": 8,
    "near_bytes": 128,  # context of a part when distant context is withheld
    "judge": "",  # openai:URL; empty: the config's, if it is one
    "judge_model": "",
}
WRITTEN = (*REPETITION, *ENTITY)
METRICS = (*WRITTEN, "judge_win_rate", "judge_inconsistent", "bits_per_byte", "far_context_gain")


class Part(NamedTuple):
    """A part of a long text: its start in bytes, its size, and −log2 p in bits, with all context and with near context only."""

    begin: int
    size: int
    bits: float
    near_bits: float


class Coherence(NamedTuple):
    """A task of kind coherence. chat: the judge, or None."""

    name: str
    versions: dict[str, Any]
    values: dict[str, Any]
    documents: Documents
    prompts: Prompts
    chat: Chat | None
    seed: int

    def run(self, subject: Subject) -> Outcome:
        """Return the metrics of repetition.py and entity_grid.py for the continuations; `texts` has the references' too.

        judge_win_rate: against the reference, ties ½; judge_inconsistent: the judge's answer changed with the order.
        bits_per_byte: of the items' texts. far_context_gain: bits per byte saved by context beyond the nearest near_bytes.
        `positions` has both by position. transitions: of the continuations' entity grid.
        """
        problems, values = self.documents.new_problems(), self.values
        asked = writing.contexts(self.prompts, self.documents.items, subject, problems)
        drawn = {"temperature": float(values["temperature"]), "top_p": float(values["top_p"]), "seed": self.seed}
        requests = [Prompt(c.text, tuple(values["until"]), values["max_new_tokens"], **drawn) for _, c in asked]
        answers = writing.generated(subject, requests, [item.id for item, _ in asked], problems)
        kept = [(item, context, a) for (item, context), a in zip(asked, answers, strict=True) if a is not None]
        samples, references = [], []
        for item, context, answer in kept:
            figures = repetition(answer.text) | measures(answer.text, item.doc["prompt"])
            samples.append(
                writing.sample(self.name, self.versions["split"], item, context, answer)
                | {"reference": item.doc["reference"] or None, "target": None, "metrics": dict.fromkeys(METRICS) | figures}
                | {"failed": (figures["seq_repetition_4"] or 0.0) >= values["degenerate"]}
            )
            if item.doc["reference"]:
                references.append(repetition(item.doc["reference"]) | measures(item.doc["reference"], item.doc["prompt"]))
        self._judge(samples, [item.doc["prompt"] for item, *_ in kept], problems)
        parts = self._positions(samples, [item.doc["text"] for item, *_ in kept], subject, problems)
        results = summed_up(samples, METRICS, problems)
        summary = results.pop("problems")
        texts = {"generated": _figures([s["metrics"] for s in samples]), "reference": _figures(references)}
        moves = shares([grid(sentences(s["generation"])) for s in samples])
        return Outcome(results | {"texts": texts, "positions": parts, "transitions": moves, "problems": summary}, samples)

    def _judge(self, samples: Sequence[dict], prompts: Sequence[str], problems: Problems) -> None:
        if self.chat is None:
            return
        pairs = [(s, prompt) for s, prompt in zip(samples, prompts, strict=True) if s["reference"]]
        found = preferences(
            self.chat, [p for _, p in pairs], [s["generation"] for s, _ in pairs], [s["reference"] for s, _ in pairs]
        )
        for (sample, _), preference in zip(pairs, found, strict=True):
            sample |= {"verdict": preference.better, "reason": preference.reason}
            if preference.better == "unknown":
                problems.add("unknown_judgements", f"{sample['doc_id']}: {preference.reason}")
                continue
            sample["metrics"]["judge_win_rate"] = {"first": 1.0, "tie": 0.5, "second": 0.0}[preference.better]
            sample["metrics"]["judge_inconsistent"] = float(not preference.consistent)
            sample["failed"] |= preference.better == "second"

    def _positions(
        self, samples: Sequence[dict], texts: Sequence[str], subject: Subject, problems: Problems
    ) -> dict[str, dict]:
        """Write bits_per_byte and far_context_gain into the samples, and return them by position."""
        size, near = self.values["bucket_bytes"], self.values["near_bytes"]
        cuts = [buckets(text, size, self.values["buckets"]) for text in texts]
        requests = [
            Continuation(context, text[begin:end])
            for text, some in zip(texts, cuts, strict=True)
            for begin, end in some
            for context in (text[:begin], nearest(text, begin, near))
        ]
        answers = iter(subject.likelihoods(requests))
        by_position: dict[int, list[Part]] = {}
        for sample, text, some in zip(samples, texts, cuts, strict=True):
            parts = []
            for begin, end in some:
                full, withheld = next(answers).logp, next(answers).logp
                bytes_ = len(text[begin:end].encode("utf-8", "replace"))
                parts.append(Part(begin, bytes_, -full / math.log(2), -withheld / math.log(2)))
            if not all(math.isfinite(p.bits) and math.isfinite(p.near_bits) for p in parts):
                problems.add("likelihoods_not_finite", f"{sample['doc_id']}: a part of its text")
                continue
            for number, part in enumerate(parts):
                by_position.setdefault(number, []).append(part)
            figures = _by_bytes(parts, far=[p for p in parts if p.begin])
            sample["metrics"] |= {name: figures[name] for name in ("bits_per_byte", "far_context_gain")}
        return {
            f"{number * size}–{(number + 1) * size}": _by_bytes(parts, far=parts if number else [])
            | {"n": len(parts), "near_bits_per_byte": _rate([p.near_bits for p in parts], parts)}
            for number, parts in sorted(by_position.items())
        }


def _rate(bits: Sequence[float], parts: Sequence[Part]) -> float | None:
    return math.fsum(bits) / sum(p.size for p in parts) if parts else None


def _by_bytes(parts: Sequence[Part], far: Sequence[Part]) -> dict[str, float | None]:
    """far: the parts with context beyond the near one."""
    gain = _rate([p.near_bits - p.bits for p in far], far)
    return {"bits_per_byte": _rate([p.bits for p in parts], parts), "far_context_gain": gain}


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for metric in WRITTEN:
        figures |= mean(metric, [row[metric] for row in rows if row[metric] is not None])
    return figures | {"n": len(rows)}


def buckets(text: str, size: int, most: int) -> list[tuple[int, int]]:
    """Cut a text into parts of at least `size` bytes that begin before a space. Return (begin, end) in characters.

    The rest at the end is dropped. A text with fewer than two parts gives none, because it has no positions to compare."""
    found, begin, bytes_ = [], 0, 0
    for at, character in enumerate(text):
        if bytes_ >= size and character.isspace():
            found.append((begin, at))
            begin, bytes_ = at, 0
        bytes_ += len(character.encode("utf-8", "replace"))
    if bytes_ >= size:
        found.append((begin, len(text)))
    return found[:most] if len(found) > 1 else []


def nearest(text: str, end: int, size: int) -> str:
    """Return about `size` bytes of text before `end`, starting at a word."""
    begin, bytes_ = end, 0
    while begin and not (bytes_ >= size and text[begin - 1].isspace()):
        begin -= 1
        bytes_ += len(text[begin].encode("utf-8", "replace"))
    return text[begin:end]


def build(name: str, spec: Mapping[str, Any], settings: TaskSettings) -> Coherence:
    """Build the task. Items have text (its beginning is the prompt, the rest the reference), or prompt and optionally
    reference; optionally id. Raises: UserError for an invalid task file, judge or data.
    """
    values = writing.resolved(name, spec, settings, DEFAULTS)
    for key in ("prompt_words", "bucket_bytes", "buckets", "near_bytes"):
        if values[key] < 1:
            raise UserError(f"task {name}: {key}: {values[key]} must be at least 1")
    if values["judge"] and not values["judge"].startswith("openai:"):
        raise UserError(f"task {name}: judge: {values['judge']!r} cannot compare texts; set it to openai:URL")
    place = (values["judge"] or settings.judge).partition("openai:")[2]
    chat = endpoint(place, values["judge_model"]) if place else None
    documents = writing.load(name, values | {"num_fewshot": 0}, settings, lambda doc: _read(doc, values["prompt_words"]))
    prompts = open_prompts(name, values, settings, documents)
    versions = writing.versions(documents, values, settings)
    versions |= {"judge": f"openai:{place}" if place else None, "seed": settings.seed}
    return Coherence(name, versions, values, documents, prompts, chat, settings.seed)


def _read(doc: Mapping[str, Any], words: int) -> dict[str, Any]:
    """Return the document with its prompt, its reference ("" without one), and its text, which is both."""
    for key in ("text", "prompt", "reference"):
        if doc.get(key) is not None and not isinstance(doc[key], str):
            raise Malformed(f"{key!r} is a {type(doc[key]).__name__}, not a text")
    prompt, reference = (doc.get("prompt") or "").strip(), doc.get("reference") or ""
    if not prompt:
        text = (doc.get("text") or "").strip()
        begin, rest = _halved(text, words)
        if not begin or not rest:
            raise Malformed("neither a 'prompt' nor a 'text' of two words")
        return {**doc, "prompt": begin, "reference": rest.strip(), "text": text}
    return {**doc, "prompt": prompt, "reference": reference.strip(), "text": f"{prompt} {reference.strip()}".strip()}


def _halved(text: str, words: int) -> tuple[str, str]:
    """Split a text after that many of its words, or after half of them."""
    count = min(words, len(text.split()) // 2)
    at = 0
    for _ in range(count):
        while at < len(text) and text[at].isspace():
            at += 1
        while at < len(text) and not text[at].isspace():
            at += 1
    return text[:at], text[at:]
