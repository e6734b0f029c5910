"""The report of a curation run: funnel, histograms with thresholds, duplicates, samples, a page of documents."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from data.recipe.inputs import Unit
from data.recipe.plan import Planned
from data.recipe.units import Job
from lm.errors import UserError
from lm.files import saving
from lm.reports import browse
from lm.reports.data_used import files_of
from lm.reports.duplicates import duplicates
from lm.reports.histograms import histograms
from lm.reports.next_steps import next_steps
from lm.reports.page import render, replace_json
from lm.reports.provenance import signed
from lm.reports.unread import bytes_of, place, sentences

KEPT = "kept"
SHOWN = 50  # files and records that could not be read


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
    replace_json(workdir / "report.json", report)
    shown = browse.write(f"{name}: documents", job, units, chosen, config.browse.to_dict(), total["all"][0])
    rules = [rule for stage in stages for rule in stage["rules"]]
    saving.write(workdir / "report.html", html(report, histograms(rules, figures["histograms"]), shown))
    if not total["all"][0]:
        raise UserError(f"input={config.input!r}: {_nothing_read(report)}; {workdir / 'report.html'} lists the files")


def _nothing_read(report: Mapping) -> str:
    """Return why no document could be read, and what to do."""
    reasons = _faults(report["figures"]["quarantined"])[:3]
    why = ", ".join(reason + (f" ({count:,} times)" if count > 1 else "") for reason, count in reasons)
    cure = "docs/curate.md lists the formats, and --config.read.text_key names the field of the text"
    return f"nothing could be read: {why or 'the files hold no text'}; {cure}"


def _faults(unread: Sequence[Mapping]) -> list[tuple[str, int]]:
    """Return (reason, files or records), the commonest first."""
    counts: Counter = Counter()
    for fault in unread:
        counts[fault["reason"]] += fault["count"]
    return counts.most_common()


def totals(funnel: Mapping) -> dict[str, list[int]]:
    """Return {"all", "kept": [documents, bytes]} over all sources and languages."""
    total = {"all": [0, 0], "kept": [0, 0]}
    for languages in funnel.values():
        for rows in languages.values():
            for reason, (documents, size) in rows.items():
                for name in ("all", "kept") if reason == KEPT else ("all",):
                    total[name][0] += documents
                    total[name][1] += size
    return total


def steps(report: Mapping) -> list[dict]:
    """Return the funnel, a row for each rule in order: stage, rule, dropped and left (documents and bytes)."""
    dropped: dict[str, Counter] = {}
    for languages in report["figures"]["funnel"].values():
        for rows in languages.values():
            for reason, (documents, size) in rows.items():
                dropped.setdefault(reason, Counter()).update(documents=documents, bytes=size)
    left, rows = Counter({"documents": 0, "bytes": 0}), []
    for counts in dropped.values():
        left.update(counts)
    rules = [(stage["name"], rule["told"], rule["column"]) for stage in report["recipe"] for rule in stage["rules"]]
    for stage, rule, column in [*rules, ("end", "some text is left", "empty")]:
        counts = dropped.get(column, Counter())
        before, left = left["documents"], Counter({k: left[k] - counts[k] for k in ("documents", "bytes")})
        share = counts["documents"] / before if before else 0.0
        rows.append({"stage": stage, "rule": rule, "dropped": counts["documents"], "share": share, **left})
    return rows


def tables(report: Mapping) -> list[dict]:
    """Return a row for each source and language: documents and bytes read and kept, and the commonest reasons to go."""
    table = []
    for source, languages in sorted(report["figures"]["funnel"].items()):
        for language, rows in sorted(languages.items()):
            read = [sum(counts[k] for counts in rows.values()) for k in (0, 1)]
            kept = rows.get(KEPT, [0, 0])
            why = Counter({reason: counts[0] for reason, counts in rows.items() if reason != KEPT}).most_common(3)
            written = report["figures"]["kept_bytes"].get(source, {}).get(language, 0)
            table.append({"source": source, "language": language, "read": read, "kept": kept, "written": written, "why": why})
    return table


def sources(report: Mapping) -> list[dict]:
    """Return a row for each source: its files, and documents and bytes read and kept."""
    funnel = report["figures"]["funnel"]
    files = files_of({"input": (report.get("config") or {}).get("input")}, sorted(funnel))
    sums = {name: totals({name: languages}) for name, languages in sorted(funnel.items())}
    return [{"source": name, "files": files[name], "read": both["all"], "kept": both["kept"]} for name, both in sums.items()]


def tokens(dataset: Mapping | None) -> int | None:
    """Return the tokens in the rows of a dataset.json, or None."""
    splits = [split for source in (dataset or {}).get("sources", {}).values() for split in (source["train"], source["valid"])]
    return sum(split["tokens_packed"] for split in splits) if splits else None


def masked(report: Mapping) -> list[tuple[str, int]]:
    """Return (kind, count) of what the stages pii and unicode found in all documents that were read."""
    sums = report["figures"]["sums"]
    return [(name, int(value)) for name, value in sorted(sums.items()) if name.startswith(("pii_", "unicode_"))]


def groups(tables: Mapping) -> list[dict]:
    """Return a row for each identity group that occurs, see data.filters.bias.bias_rates."""
    if not tables:
        return []
    from data.filters.bias import bias_rates

    before, after = ({name: np.array(values) for name, values in tables[when].items()} for when in ("before", "after"))
    return bias_rates(before, after)


def topic_rows(tables: Mapping) -> list[dict]:
    """Return a row for each topic, see data.filters.bias.balance."""
    if not tables:
        return []
    from data.filters.bias import balance

    return balance(tables["before"], tables["after"])


def samples(report: Mapping) -> list[dict]:
    """Return for each reason, and for the documents that stay, its samples."""
    by_reason = report["figures"]["samples"]
    order = [KEPT, *sorted(reason for reason in by_reason if reason != KEPT)]
    names = ("hash", "id", "url", "value", "text")
    return [
        {"reason": reason, "samples": [dict(zip(names, sample)) for sample in by_reason[reason]]}
        for reason in order
        if reason in by_reason
    ]


def html(report: Mapping, histograms: Sequence[Mapping], shown: Set[tuple[str, str]] = frozenset()) -> str:
    """Return the page.

    histograms: see lm/reports/histograms.py. shown: (id, reason) of the documents that browse.html beside it shows.
    """
    total, bad, funnel = totals(report["figures"]["funnel"]), report["figures"]["quarantined"], steps(report)
    return render(
        "curate.html.j2",
        report,
        verdict=verdict(total, funnel, bad),
        losses=sentences(bad),
        sources=sources(report),
        tokens=tokens(report["figures"].get("dataset")),
        total=total,
        steps=funnel,
        tables=tables(report),
        histograms=histograms,
        samples=samples(report),
        duplicates=report["figures"]["duplicates"],
        shown=shown,
        reasons=dict(sorted(shown, reverse=True)),  # of equal ids, one
        address=browse.address,
        about=browse.PAGE,
        masked=masked(report),
        groups=groups(report["figures"]["bias"]),
        topics=topic_rows(report["figures"]["topics"]),
        items=sorted(report["figures"]["contamination"].items(), key=lambda one: (-one[1][0], one[0])),
        faults=_faults(bad),
        unread=[one | {"bytes": place(one)} for one in sorted(bad, key=lambda one: -bytes_of([one]))[:SHOWN]],
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
