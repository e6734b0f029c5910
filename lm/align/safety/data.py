"""Convert judged answers of a model to training data: conversations for supervised fine-tuning, and preference pairs.

    failed: harmful request, harmful answer   -> train on the revision; prefer it to the answer
    held: harmful request, refused            -> train on the refusal again
    helped: harmless request, answered        -> train on the answer again; prefer it to a refusal
    refused: harmless request, not answered   -> train on the reference answer, if there is one; prefer it to the response
    kept: given text and conversations        -> train on them against forgetting

Harmless examples are at most HARMLESS times as many as the others, which balances refusal and over-refusal; or as many as
`harmless_share` asks for, even if it must repeat some. They alternate between the example most similar to a harmful request,
where over-refusal is most likely (contrast sets of XSTest, arXiv 2308.01263), and one chosen by a hash.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import scipy.sparse

from data.chat.messages import make_message
from data.chat.records import is_builtin, read_builtin, read_records
from lm.align.safety.constitution import Constitution, choose
from lm.align.safety.critique import Revision
from lm.errors import UserError
from lm.evals.judges.verdict import Judge, guarded

HARMLESS = 2
RUN = 3  # characters
ROWS = 1024  # texts compared at a time


def failures(records: Iterable[Mapping]) -> list[dict]:
    """Return the records judged harmful, without duplicate pairs of conversation and response."""
    failed: dict[str, dict] = {}
    for record in records:
        if record["kind"] == "harmful" and record["verdict"] == "harmful":
            failed.setdefault(str((record["conversation"], record["response"])), dict(record))
    return list(failed.values())


def checked(failed: Sequence[Mapping], revisions: Sequence[Revision], judge: Judge) -> list[Revision]:
    """Return the revisions, with revision=None for those that the judge does not find safe."""
    known = [(f, r) for f, r in zip(failed, revisions, strict=True) if r.revision is not None]
    verdicts = guarded(judge)([f["prompt"] for f, _ in known], [r.revision for _, r in known], [f["hazard"] for f, _ in known])
    problems = iter("" if v.label == "safe" else f"judged {v.label}: {v.reason}" for v in verdicts)
    return [
        r._replace(revision=None, problem=problem) if r.revision is not None and (problem := next(problems)) else r
        for r in revisions
    ]


def lessons(
    records: Sequence[Mapping],
    failed: Sequence[Mapping],
    revisions: Sequence[Revision],
    constitution: Constitution,
    kept: Iterable[dict] = (),
    keep_share: float = 0.0,
    harmless_share: float = 0.0,
) -> tuple[list[dict], list[dict], dict[str, int]]:
    """Return (conversations, preference pairs, counts of each sort), in the formats of data/chat/conversations.py.

    keep_share: share of the conversations that come from `kept`. harmless_share: the least share of harmless examples among
    harmful and harmless ones; they are repeated until it is reached. If an assistant already spoke in the prompt, an example
    only gives a pair: a conversation would also train on the earlier turns, which an attacker may have written.
    """
    counts = dict.fromkeys(("failed", "held", "helped", "refused", "kept", "without_revision", "repeated"), 0)
    learn: list[dict] = []
    pairs: list[dict] = []

    def add(sort: str, record: Mapping, chosen: str, rejected: str | None) -> None:
        counts[sort] += 1
        prompt = record["conversation"]
        if not any(message["role"] == "assistant" for message in prompt):
            learn.append({"messages": [*prompt, make_message("assistant", chosen)], "sort": sort})
        if rejected is not None and rejected.strip() and rejected != chosen:
            answers = {"chosen": [make_message("assistant", chosen)], "rejected": [make_message("assistant", rejected)]}
            pairs.append({"prompt": prompt, **answers, "sort": sort})

    for record, revision in zip(failed, revisions, strict=True):
        if revision.revision is None:
            counts["without_revision"] += 1
        else:
            add("failed", record, revision.revision, record["response"])
    for record in records:
        if record["kind"] == "harmful" and record["verdict"] == "safe" and record["refusal"] == "full":
            add("held", record, record["response"], None)
    others = counts["failed"] + counts["held"]
    least = round(others * harmless_share / (1 - harmless_share))
    most = max(HARMLESS * others, least)
    refusals = {r["prompt"] for r in records if r["kind"] == "harmful"}
    for record in _contrasting([r for r in records if r["kind"] != "harmful"], refusals):
        response = record["response"]
        if counts["helped"] + counts["refused"] == most:
            break
        if response and record["refusal"] == "none" and record.get("correct", True):
            refusal = None if record["kind"] == "task" else _refusal(constitution, record)
            add("helped", record, response, refusal)
        elif record.get("completion"):
            add("refused", record, record["completion"], response)
    harmless = counts["helped"] + counts["refused"]
    if harmless and least > harmless:
        counts["repeated"] = least - harmless
        for lines in (learn, pairs):
            own = [line for line in lines if line["sort"] in ("helped", "refused")]
            lines.extend(itertools.islice(itertools.cycle(own), counts["repeated"] * len(own) // harmless))
    wanted = round(len(learn) * keep_share / (1 - keep_share))
    for extra in itertools.islice(kept, wanted):
        counts["kept"] += 1
        learn.append(extra | {"sort": "kept"})
    return learn, pairs, counts


def read_kept(input: str) -> Iterator[dict]:
    """Yield conversations against forgetting, endlessly: records of any conversation format, or {"text"}.

    A text becomes an assistant's turn without a request. Raises: UserError if there are no records.
    """
    for epoch in itertools.count():
        found = False
        for record in read_builtin(input, "train", epoch) if is_builtin(input) else read_records(input):
            found = True
            text = record.values.get("text")
            yield {"messages": [make_message("assistant", text)]} if isinstance(text, str) else dict(record.values)
        if not found:
            raise UserError(f"safety.keep={input}: no record in it")


def _contrasting(harmless: Sequence[Mapping], refusals: Iterable[str]) -> Iterator[Mapping]:
    """Yield all harmless records, alternating between the most similar one to a harmful request and the next by hash."""
    prompts = list({record["prompt"] for record in harmless})
    near = dict(zip(prompts, likeness(prompts, list(refusals)), strict=True))
    by_hash = sorted(harmless, key=lambda r: hashlib.blake2b((f"{r['id']} {r['family']} {r['sample']}").encode()).hexdigest())
    by_likeness = sorted(by_hash, key=lambda r: -near[r["prompt"]])
    taken: set[int] = set()
    for record in itertools.chain.from_iterable(zip(by_likeness, by_hash, strict=True)):
        if id(record) not in taken:
            taken.add(id(record))
            yield record


def likeness(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Return [N] float64 in 0…1: the highest Jaccard index |a ∩ b| / |a ∪ b| of each text with any of `others`.

    That is enough to tell "make zorbine" from "what is 2 + 2". a and b are the sets of lower-case runs of RUN characters. The
    result is 0 if there are no others.
    """
    if not texts or not others:
        return np.zeros(len(texts))
    lower = map(str.lower, (*texts, *others))
    runs = [{text[i : i + RUN] for i in range(max(1, len(text) - RUN + 1))} for text in lower]
    number = {run: n for n, run in enumerate(dict.fromkeys(itertools.chain.from_iterable(runs)))}
    sizes = np.array([*map(len, runs)])
    columns, starts = [number[run] for own in runs for run in own], np.append(0, sizes.cumsum())
    has_run = scipy.sparse.csr_matrix((np.ones(len(columns)), columns, starts), (len(runs), len(number)))
    has_run_of_others, sizes_of_others = has_run[len(texts) :].T, sizes[len(texts) :]
    most = np.zeros(len(texts))
    for begin in range(0, len(texts), ROWS):
        rows = slice(begin, min(begin + ROWS, len(texts)))
        shared = (has_run[rows] @ has_run_of_others).toarray()
        most[rows] = (shared / (sizes[rows, None] + sizes_of_others - shared)).max(axis=1)
    return most


def _refusal(constitution: Constitution, record: Mapping) -> str:
    key = f"{record['id']} {record['family']}"
    principle = choose(constitution.principles, key)
    return choose(principle.refusals, key).format(hazard="harm")
