"""Contamination check: word n-gram overlap of benchmark items with training text, and scores on the clean items.

An item is dirty if one 13-gram of its words occurs in the training text (GPT-3, Brown et al. 2020, appendix C; a strict rule),
or if 70 % of its 8-grams do (PaLM, Chowdhery et al. 2022, section 8). Words are runs of letters and digits; case is ignored. In
scripts without spaces a character is a word. An item of fewer than 8 words cannot be checked and is neither dirty nor clean.
The items are held in memory, and the text is streamed.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.dedup.decontaminate import Report, benchmark, find
from data.text.near_copies import batched
from lm.errors import UserError
from lm.evals.stats.measures import is_number, mean

LONG, SHORT = 13, 8  # n-gram sizes, words
SHARE = 0.7  # of the short grams
SHOWN = 3  # matched grams listed per item
BATCH_CHARACTERS = 1 << 18  # of texts that are read at a time


class BenchmarkItem(NamedTuple):
    task: str
    doc_id: Any
    text: str


def check(items: Sequence[BenchmarkItem], texts: Iterable[str]) -> list[dict]:
    """Return for each item {"task", "doc_id", "words", "overlap": share of its 8-grams that occur in a text, "overlap_13": the
    same for its 13-grams (None if it is shorter), "matched": some matching grams, "dirty": bool, or None below 8 words}.
    """
    rows = [{"id": i, "text": item.text} for i, item in enumerate(items)]
    long, short = (Report(benchmark(rows, size, size, keep_symbols=False)) for size in (LONG, SHORT))
    for batch in batched(texts, len, BATCH_CHARACTERS):
        for report in (long, short):
            report.add(find(batch, report.held))
    return [
        {
            "task": item.task,
            "doc_id": item.doc_id,
            "words": int(short.held.words[i]),
            "overlap": short.share(i),
            "overlap_13": long.share(i),
            "matched": [" ".join(gram) for gram in (long.matched(i) or short.matched(i))[:SHOWN]],
            "dirty": None if (share := short.share(i)) is None else bool(long.share(i)) or share >= SHARE,
        }
        for i, item in enumerate(items)
    ]


def of_samples(samples: Iterable[Mapping], texts: Iterable[str]) -> dict[str, Any]:
    """Check an evaluation's samples and return their scores with and without the dirty ones.

    Returns: {"tasks": {task: {"items", "dirty", "untold": items too short to check, "metrics": {metric: {"all", "clean",
    "clean_stderr", "dirty"}}}}, "items": the dirty entries of `check`}. Samples with the same doc_id count as one item.
    """
    items: dict[tuple[str, str], BenchmarkItem] = {}
    metrics_of = []
    for sample in samples:
        key = str(sample["task"]), str(sample["doc_id"])
        items.setdefault(key, BenchmarkItem(key[0], sample["doc_id"], query(sample)))
        metrics_of.append((key, sample.get("metrics") or {}))
    checked = dict(zip(items, check(list(items.values()), texts), strict=True))
    tasks: dict[str, dict] = {}
    for (task, _), item in checked.items():
        counts = tasks.setdefault(task, {"items": 0, "dirty": 0, "untold": 0, "metrics": {}})
        counts["items"] += 1
        counts["dirty"] += item["dirty"] is True
        counts["untold"] += item["dirty"] is None
    values: dict[tuple[str, str], list[tuple[float, bool | None]]] = {}
    for key, metrics in metrics_of:
        for metric in filter(lambda metric: is_number(metrics[metric]), metrics):
            values.setdefault((key[0], metric), []).append((metrics[metric], checked[key]["dirty"]))
    for (task, metric), pairs in values.items():
        every, dirty = [value for value, _ in pairs], [value for value, is_dirty in pairs if is_dirty]
        clean = mean("clean", [value for value, is_dirty in pairs if is_dirty is False])
        tasks[task]["metrics"][metric] = {"all": mean("all", every)["all"], "dirty": mean("dirty", dirty)["dirty"]} | clean
    return {"tasks": tasks, "items": [item for item in checked.values() if item["dirty"]]}


def query(sample: Mapping) -> str:
    """Return the question of a sample without its few-shot examples: its `query`, else the last user message. Of a text prompt,
    return the part after the last blank line, where the examples end."""
    if isinstance(sample.get("query"), str):
        return sample["query"]
    prompt = sample.get("messages") or sample.get("prompt") or ""
    if isinstance(prompt, list) and isinstance(prompt[0], str):  # a prompt for each choice
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt.rstrip().rpartition("\n\n")[2]
    turns = [str(m.get("content") or "") for m in prompt if isinstance(m, Mapping) and m.get("role") == "user"]
    return turns[-1] if turns else ""


def texts(input: str | os.PathLike) -> Iterator[str]:
    """Yield the training text of `input`: a run's workdir, a packed dataset in it (workdir/data/HASH), or any value of
    data.input (files, folders, globs, a TFDS name).

    Packed text is cut at the ends of rows, so n-grams across a cut are missed. Name the original files if they still exist.
    Raises: UserError if the input is missing or cannot be read.
    """
    from data.sources import open_sources
    from data.text.batches import prepared
    from data.text.dataset import texts as packed_texts
    from data.text.tokenizer import load_tokenizer

    folder = Path(input)
    packed = [path for path in (folder, *sorted(folder.glob("data/*"))) if prepared(path)] if folder.is_dir() else []
    for path in packed:
        workdir = path.resolve().parent.parent
        if not any((workdir / name).exists() for name in ("tokenizer.model", "tokenizer.json")):
            raise UserError(f"{path}: no tokenizer in {workdir} to decode it with; name the run's workdir or the text files")
        for piece in packed_texts(path, "train", load_tokenizer(workdir)):
            yield piece.decode("utf-8", "replace")
    if not packed:
        for source in open_sources(os.fspath(input)):
            yield from (document.text for document in source.read())
