"""The report of a curation run: funnel, histograms with thresholds, duplicates, samples, a page of documents."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.dedup import clusters
from data.recipe import documents
from data.recipe.inputs import Unit
from data.recipe.plan import Planned, code
from data.recipe.units import Job
from lm.errors import UserError
from lm.files import saving
from lm.reports import browse
from lm.reports.data_used import files_of
from lm.reports.next_steps import next_steps
from lm.reports.page import count, render, save, short
from lm.reports.provenance import signed

KEPT = "kept"
CLUSTERS = {"exact_duplicates": clusters.EXACT, "near_duplicates": clusters.NEAR}
SHOWN_CHARACTERS = 300  # of the kept document of a cluster
SHOWN = 50  # files and records that could not be read
NAMED = 3  # of these files, in a sentence
FRAME = LEFT, TOP, RIGHT, BOTTOM = 44, 8, 366, 140  # of a histogram, in a picture of 389 × 173


def write(
    workdir: str | os.PathLike, config: Mapping, figures: Mapping[str, Any], prepared: tuple[Sequence[Planned], Sequence[Unit]]
) -> None:
    """Write report.json, report.html and browse.html.

    figures, prepared: what `run` and `prepare` of data/recipe/run.py return; "dataset" of the figures is what
    data.recipe.tokenized.write returns.

    Raises: UserError if no document could be read; the reports are there.
    """
    workdir, (planned, units) = Path(workdir), prepared
    job, figures = Job(workdir, tuple(planned)), dict(figures)
    name, total, unread = f"Curated corpus: {workdir.name}", totals(figures["funnel"]), figures["quarantined"]
    stages = json.loads((workdir / "manifest.json").read_text(encoding="utf-8"))["stages"]
    chosen = figures.pop("chosen")
    figures["duplicates"] = duplicates(job, units)
    report = saving.plain(
        {
            "title": name,
            "config": config.to_dict(),
            **signed(config.to_dict(), {"curation": figures["seconds"]}, devices=False),
            "recipe": stages,
            "figures": figures,
            "stages": {"curation": figures["seconds"]},
            "finished": True,
        }
    )
    report["verdict"] = [verdict(total, steps(report), unread), *sentences(unread)]
    report["next"] = next_steps(report, workdir) if total["kept"][0] else []
    shown = browse.write(f"{name}: documents", job, units, chosen, config.browse.to_dict(), total["all"][0])
    save(workdir, report, html(report, shown))
    if not total["all"][0]:
        raise UserError(f"input={config.input!r}: {cure(unread)}; {workdir / 'report.html'} lists the files")


def totals(funnel: Mapping) -> dict[str, list[int]]:
    """Return {"all", "kept": [documents, bytes]} over all sources and languages."""
    parts = [reasons for languages in funnel.values() for reasons in languages.values()]
    return {
        "all": [sum(counts[k] for part in parts for counts in part.values()) for k in (0, 1)],
        "kept": [sum(part.get(KEPT, (0, 0))[k] for part in parts) for k in (0, 1)],
    }


def steps(report: Mapping) -> list[dict]:
    """Return the funnel, a row for each rule in order: stage, rule, documents dropped, their share, and documents left."""
    dropped: Counter = Counter()
    for languages in report["figures"]["funnel"].values():
        for reasons in languages.values():
            dropped.update({reason: documents for reason, (documents, _) in reasons.items()})
    left, rows = dropped.total(), []
    rules = [(stage["name"], rule["told"], rule["column"]) for stage in report["recipe"] for rule in stage["rules"]]
    for stage, rule, column in [*rules, ("end", "some text is left", "empty")]:
        share = dropped[column] / left if left else 0.0
        left -= dropped[column]
        rows.append({"stage": stage, "rule": rule, "dropped": dropped[column], "share": share, "documents": left})
    return rows


def parts(report: Mapping) -> list[dict]:
    """Return a row for each source and language: documents and bytes read and kept, and the commonest reasons to go."""
    rows = []
    for source, languages in sorted(report["figures"]["funnel"].items()):
        for language, reasons in sorted(languages.items()):
            total = totals({source: {language: reasons}})
            why = Counter({reason: counts[0] for reason, counts in reasons.items() if reason != KEPT}).most_common(3)
            written = report["figures"]["kept_bytes"].get(source, {}).get(language, 0)
            rows.append({"source": source, "language": language, **total, "written": written, "why": why})
    return rows


def sources(report: Mapping) -> list[dict]:
    """Return a row for each source: its files, and documents and bytes read and kept."""
    funnel = report["figures"]["funnel"]
    files = files_of({"input": (report.get("config") or {}).get("input")}, sorted(funnel))
    return [{"source": name, "files": files[name], **totals({name: funnel[name]})} for name in sorted(funnel)]


def tokens(dataset: Mapping | None) -> int | None:
    """Return the tokens in the rows of a dataset.json, or None."""
    splits = [split for source in (dataset or {}).get("sources", {}).values() for split in (source["train"], source["valid"])]
    return sum(split["tokens_packed"] for split in splits) if splits else None


def fairness(figures: Mapping) -> dict[str, list[dict]]:
    """Return rows of the identity groups and of the topics that occur, see data.filters.bias, if they were counted."""
    bias, topics = figures["bias"], figures["topics"]
    if not bias and not topics:
        return {}
    from data.filters.bias import balance, bias_rates

    before, after = ({name: np.array(values) for name, values in bias.get(when, {}).items()} for when in ("before", "after"))
    return {
        "groups": bias_rates(before, after) if bias else [],
        "topics": balance(topics["before"], topics["after"]) if topics else [],
    }


def samples(figures: Mapping) -> list[tuple[str, list[dict]]]:
    """Return (reason, samples) for the documents that stay, and then for each reason."""
    of_reason, names = figures["samples"], ("hash", "id", "url", "value", "text")
    order = sorted(of_reason, key=lambda reason: (reason != KEPT, reason))
    return [(reason, [dict(zip(names, sample)) for sample in of_reason[reason]]) for reason in order]


def duplicates(job: Job, units: Sequence[Unit]) -> list[dict[str, Any]]:
    """Return a row for each stage that compares all documents: {"stage", "counts": what it counted, "dropped": whether a rule
    drops what it does not keep}, and, if it finds clusters, what data.dedup.clusters.summary returns.

    A kept document is {"id", "source", "url", "text": its beginning, as read}; "removed" are ids.
    """
    rows = []
    for stage in (stage for stage in job.stages if stage.compares):
        table = job.table(stage)
        counts = json.loads(table.with_name("counts.json").read_text(encoding="utf-8"))
        row = {"stage": stage.name, "counts": counts, "dropped": bool(stage.rules)}
        rows.append(row | (_clusters(job, units, table, CLUSTERS[stage.name]) if stage.name in CLUSTERS else {}))
    return rows


def _clusters(job: Job, units: Sequence[Unit], table: Path, column: int) -> dict[str, Any]:
    """Return the summary of a table's clusters. It is kept beside the table, so that a second run reads it there."""
    done = table.with_name(f"clusters-{code('data.dedup.clusters')}.json")
    if not done.exists():
        saving.write_json(done, clusters.summary(table, column))
    summary = json.loads(done.read_text(encoding="utf-8"))
    first = Job(job.workdir, job.stages[:1])
    numbers = [cluster["kept"] for cluster in summary["largest"]]
    texts = {
        document.number: {name: document.columns[name] for name in ("id", "source", "url")} | {"text": document.texts[0].start}
        for document in documents.read(first, units, numbers, SHOWN_CHARACTERS)
    }
    ids = documents.names(first, units, [number for cluster in summary["largest"] for number in cluster["removed"]])
    for cluster in summary["largest"]:
        cluster["removed"] = [ids[number] for number in cluster["removed"] if number in ids]
        cluster["kept"] = texts.get(cluster["kept"])
    return summary


def html(report: Mapping, shown: Mapping[tuple[str, str], int] = {}) -> str:
    """Return the page. shown: how many documents of an (id, reason) browse.html beside it shows."""
    figures, funnel = report["figures"], steps(report)
    total, unread = totals(figures["funnel"]), figures["quarantined"]
    rules = [rule for stage in report["recipe"] for rule in stage["rules"]]
    return render(
        "curate.html.j2",
        report,
        verdict=verdict(total, funnel, unread),
        losses=sentences(unread),
        sources=sources(report),
        tokens=tokens(figures.get("dataset")),
        total=total,
        steps=funnel,
        parts=parts(report),
        histograms=histograms(rules, figures["histograms"]),
        frame=FRAME,
        samples=samples(figures),
        shown=shown,
        reasons=dict(sorted(shown, reverse=True)),  # of equal ids, one
        address=browse.address,
        about=browse.PAGE,
        # What the stages pii and unicode found in all documents that were read.
        masked=[(name, int(n)) for name, n in sorted(figures["sums"].items()) if name.startswith(("pii_", "unicode_"))],
        **fairness(figures),
        items=sorted(figures["contamination"].items(), key=lambda item: (-item[1][0], item[0])),
        faults=by_reason(unread),
        unread=[fault | {"bytes": place(fault)} for fault in sorted(unread, key=lambda fault: -bytes_of([fault]))[:SHOWN]],
    )


def verdict(total: Mapping[str, Sequence[int]], funnel: Sequence[Mapping], unread: Sequence[Mapping] = ()) -> str:
    """Return one sentence on what was kept, and on the rule that dropped most. unread: what could not be read."""
    (read, size), (kept, left) = total["all"], total["kept"]
    of = f"{kept:,} of {read:,} documents" + (" that could be read" if unread else "")
    sentence = f"{of} were kept ({_share(kept, read)}), with {_share(left, size)} of the bytes"
    most = max(funnel, key=lambda row: row["dropped"], default=None)
    if most is None or not most["dropped"]:
        return f"{sentence}."
    return f"{sentence}. The stage {most['stage']} dropped most, {most['dropped']:,}: a document stays if {most['rule']}."


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


# Histograms of measures with the thresholds of the rules. templates/curate.html.j2 draws them as SVG: Matplotlib would take
# longer to import than all else in the report takes.


def histograms(rules: Sequence[Mapping], figures: Mapping[str, Mapping]) -> list[dict]:
    """Return {"title", "note"} and what `drawn` returns for the column of each rule.

    rules: those of manifest.json. figures: column -> {"edges", "counts"}.
    """
    return [
        {"title": rule["column"], "note": rule["told"], **drawn(figures[rule["column"]], rule["bounds"])}
        for rule in rules
        if rule["column"] in figures
    ]


def drawn(figure: Mapping, bounds: Sequence[float]) -> dict[str, Any]:
    """Return {"area": the path of a histogram of documents, "across", "up": [(place, text)] of the ticks, "bounds": places}.

    The height is the logarithm of 1 + the number of documents.
    """
    edges, counts = figure["edges"], figure["counts"]
    is_share = edges[-1] <= 1
    used = [i for i, count in enumerate(counts) if count]
    last = len(counts) if is_share or not used else min(len(counts), used[-1] + 2)
    # Bins of counts grow by powers, so they are drawn equally wide.
    places = edges[: last + 1] if is_share else range(last + 1)
    highest = math.log10(1 + max(counts, default=0)) or 1.0

    def x(place: float) -> str:
        return f"{LEFT + (RIGHT - LEFT) * place / places[-1]:.1f}"

    def y(count: float) -> str:
        return f"{BOTTOM - (BOTTOM - TOP) * math.log10(1 + count) / highest:.1f}"

    powers = range(0, int(math.log10(max(1, *counts))) + 1, 1 + int(highest) // 5)
    near = highest > 2.8  # 0 and 1 would lie on one another
    heights = [0, *(10**power for power in powers if power or not near)] if used else [0]
    ticks = [(place, round(place, 1)) for place in np.linspace(0, 1, 6)]
    if not is_share:
        whole = [i for i in range(last + 1) if float(edges[i]).is_integer()]
        ticks = [(i, edges[i]) for i in whole[:: -(-len(whole) // 6)]]
    at = [bound if is_share else float(np.interp(bound, edges, range(len(edges)))) for bound in bounds]
    return {
        "area": f"M{x(0)} {y(0)}" + "".join(f"V{y(counts[i])}H{x(places[i + 1])}" for i in range(last)) + f"V{y(0)}Z",
        "across": [(x(place), short(value)) for place, value in ticks],
        "up": [(y(n), short(n)) for n in heights],
        "bounds": [x(place) for place in at if place <= places[-1]],
    }


# What a run could not read.


def sentences(unread: Sequence[Mapping]) -> list[str]:
    """Return a sentence on the files that were read in part, and one on those that gave no document; [] if all was read.

    unread: as data/recipe/units.py collects it.
    """
    files: dict[str, list[Mapping]] = {}
    for fault in unread:
        files.setdefault(fault["path"], []).append(fault)
    part = [path for path, rows in files.items() if rows[0]["documents"]]
    none = [f"{path} ({rows[0]['reason']})" for path, rows in files.items() if path not in part]
    most = [f"{path}, {loss(files[path])}" for path in sorted(part, key=lambda path: -bytes_of(files[path]))]
    was = "was" if len(part) == 1 else "were"
    lines = [f"{count(len(part), 'file')} {was} read in part: {_named(most)}."] if part else []
    return lines + ([f"{count(len(none), 'file')} gave no document: {_named(none)}."] if none else [])


def loss(rows: Sequence[Mapping]) -> str:
    """Return where most of a file's loss is, and why, with the number of its other faults."""
    row = max(rows, key=lambda row: bytes_of([row]))
    first = ", ".join(filter(None, (row["where"], place(row)))) + f" ({row['reason']})"
    others = sum(row["count"] for row in rows) - 1
    return first + (f" and {count(others, 'other fault')}" if others else "")


def place(row: Mapping) -> str:
    """Return the bytes of the file that hold what could not be read, "" if they are not known."""
    if not row["place"]:
        return ""
    first, end = row["place"]
    return f"bytes {first:,} to {end:,}" if first < end else f"byte {first:,}, where the file ends"


def bytes_of(rows: Sequence[Mapping]) -> int:
    """Return how many bytes of a file are known to hold what could not be read."""
    return sum(row["place"][1] - row["place"][0] for row in rows if row["place"])


def by_reason(unread: Sequence[Mapping]) -> list[tuple[str, int]]:
    """Return (reason, files or records), the commonest first."""
    counts: Counter = Counter()
    for fault in unread:
        counts[fault["reason"]] += fault["count"]
    return counts.most_common()


def cure(unread: Sequence[Mapping]) -> str:
    """Return why no document could be read, and what to do."""
    why = ", ".join(reason + (f" ({n:,} times)" if n > 1 else "") for reason, n in by_reason(unread)[:3])
    keys = "docs/curate.md lists the formats, and --config.read.text_key names the field of the text"
    return f"nothing could be read: {why or 'the files hold no text'}; {keys}"


def _named(names: Sequence[str]) -> str:
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
