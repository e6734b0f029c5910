"""The page to browse documents of a corpus: a sample of those that stay and of those that each rule drops.

Of each it shows the text as it was read and as each stage left it, all measures with the bounds of the rules, and every rule
that it breaks. The page is one file that needs no network: data as JSON, and templates/browse.js, which also finds what a
stage changed. Documents are hostile, so nothing of them becomes HTML.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from data.recipe import documents
from data.recipe.documents import Found
from data.recipe.inputs import Unit
from data.recipe.units import Job
from lm.files import saving
from lm.progress import progress
from lm.reports.page import encoded, render

PAGE = "browse.html"
MIN_BYTES = 2000  # that a document may take on the page; about 60 measures take half of it
STRING = 1000  # most characters of an id, an address or another string
EXACT = 1 << 53  # larger whole numbers are not exact in JavaScript, so they become strings
NUMBERS = ("duplicate_of", "near_duplicate_of", "near_duplicate_cluster")  # columns that hold the number of a document


def write(
    title: str, job: Job, units: Sequence[Unit], chosen: Mapping[str, Sequence], options: Mapping[str, Any], total: int
) -> Counter[tuple[str, str]]:
    """Write browse.html into the workdir of the job. Return how many of its documents have each (id, reason or "kept").

    Without a document to show, an old page is removed. Memory: that of the page, or of `documents` times `characters`, whatever
    the size of the corpus.

    chosen: reason or "kept" -> [hash, number] of documents, lowest hashes first. options: config.browse. total: documents that
    were read.
    """
    size = int(options["megabytes"] * 1e6)
    reasons = stratified(chosen, min(options["documents"], size // MIN_BYTES))
    if not reasons:
        (job.workdir / PAGE).unlink(missing_ok=True)
        return Counter()
    characters = min(options["characters"], 10 * size // len(reasons))
    columns = columns_of(job, units[0])
    shown = []
    with progress("browse", len(reasons), unit=" documents", soon=False) as bar:
        for document in documents.read(job, units, list(reasons), characters):
            fails = [rule.column for rule in job.rules if rule.drops([document.columns[rule.column]])[0]]
            shown.append(entry(document, reasons[document.number], columns, fails, characters))
            bar.update(1)
    ids = documents.names(job, units, {number for entry in shown for number in entry["links"].values()})
    shown = [entry | {"links": {name: ids[n] for name, n in entry["links"].items() if n in ids}} for entry in shown]
    shown = fitted(shown, characters, size)
    data = encoded({"columns": columns, "rules": {rule.column: rule.told() for rule in job.rules}, "documents": shown})
    page = render("browse.html.j2", {"title": title, "finished": True}, data=Markup(data), shown=len(shown), total=total)
    saving.write(job.workdir / PAGE, page)
    id = [column["name"] for column in columns].index("id")
    return Counter((entry["values"][id], entry["reason"]) for entry in shown)


def stratified(chosen: Mapping[str, Sequence], most: int) -> dict[int, str]:
    """Return number -> reason of at most `most` documents, in the order of their numbers: of each reason as many.

    What a reason with few documents leaves goes to the others.
    """
    reasons: dict[int, str] = {}
    order = sorted(chosen, key=lambda reason: (len(chosen[reason]), reason))
    for k, reason in enumerate(order):
        share = -(-(most - len(reasons)) // (len(order) - k))
        reasons.update((number, reason) for _, number in chosen[reason][:share])
    return dict(sorted(reasons.items()))


def columns_of(job: Job, unit: Unit) -> list[dict[str, Any]]:
    """Return {"name", "stage": the last one that writes it, "compares": whether that stage compares only the documents that the
    rules before it leave, "kind": number, flag or text} of all columns but the text, stage by stage."""
    columns: dict[str, dict[str, Any]] = {}
    for stage in job.stages:
        for field in pq.read_schema(job.path(stage, unit)):
            kind = "text" if pa.types.is_string(field.type) else "flag" if pa.types.is_boolean(field.type) else "number"
            if field.name != "text":
                columns.pop(field.name, None)
                columns[field.name] = {"name": field.name, "stage": stage.name, "compares": stage.compares, "kind": kind}
    return list(columns.values())


def entry(document: Found, reason: str, columns: Sequence[Mapping], fails: Sequence[str], characters: int) -> dict[str, Any]:
    """Return what the page says about a document: {"number", "reason" or "kept", "values": in the order of `columns`, "fails":
    columns of all rules that it breaks, in order, "texts": [[stage, beginning, characters of all of it]] as it was read and
    as each stage left it that changed it, "links": column -> number of another document}.
    """
    whole = {
        "number": document.number,
        "reason": reason,
        "values": [_plain(document.columns[column["name"]]) for column in columns],
        "fails": fails,
        "texts": [list(text) for text in document.texts],
        "links": {n: document.columns[n] for n in NUMBERS if document.columns.get(n) not in (None, document.number)},
    }
    return cut(whole, characters)


def cut(entry: Mapping[str, Any], characters: int) -> dict[str, Any]:
    """Return an entry with at most these characters of each text, and shorter strings."""
    most = min(STRING, max(20, characters))
    return {
        **entry,
        "values": [_short(value, most) for value in entry["values"]],
        "texts": [[stage, start[:characters], length] for stage, start, length in entry["texts"]],
        "links": {name: _short(value, most) for name, value in entry["links"].items()},
    }


def fitted(shown: Sequence[Mapping[str, Any]], characters: int, size: int) -> list[dict[str, Any]]:
    """Return the entries with their texts cut until all together take about `size` bytes, or next to nothing is left to cut."""
    shown = list(shown)
    while (total := sum(len(encoded(one).encode()) for one in shown)) > size and characters > 20:
        characters = int(characters * max(0.5, min(0.9, size / total)))
        shown = [cut(one, characters) for one in shown]
    return shown


def address(id: str, reason: str) -> str:
    """Return the link to a document on the page."""
    return f"{PAGE}#id={quote(id, safe='')}&reason={quote(reason, safe='')}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, int) and abs(value) > EXACT else value


def _short(value: Any, most: int) -> Any:
    return value[: most - 1] + "…" if isinstance(value, str) and len(value) > most else value
