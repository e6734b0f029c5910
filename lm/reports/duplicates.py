"""The report's section on duplicates: what each stage counted, sizes of clusters, and the largest clusters."""

import json
from collections.abc import Sequence
from typing import Any

from data.dedup import clusters
from data.recipe import documents
from data.recipe.inputs import Unit
from data.recipe.plan import Planned, code
from data.recipe.units import Job
from lm.files import saving

CLUSTERS = {"exact_duplicates": clusters.EXACT, "near_duplicates": clusters.NEAR}
SHOWN_CHARACTERS = 300  # of the kept document of a cluster


def duplicates(job: Job, units: Sequence[Unit]) -> list[dict[str, Any]]:
    """Return a row for each stage that compares all documents: {"stage", "counts": what it counted, "dropped": whether a rule
    drops what it does not keep}, and, if it finds clusters, what data.dedup.clusters.summary returns.

    A kept document is {"id", "source", "url", "text": its beginning, as read}, or None if an older corpus has it; "removed" are
    ids. The summary is kept beside the stage's table, so that a second run reads it there.
    """
    return [_of_stage(job, stage, units) for stage in job.stages if stage.compares]


def _of_stage(job: Job, stage: Planned, units: Sequence[Unit]) -> dict[str, Any]:
    table = job.table(stage)
    counts = json.loads(table.with_name("counts.json").read_text(encoding="utf-8"))
    row = {"stage": stage.name, "counts": counts, "dropped": bool(stage.rules)}
    if stage.name not in CLUSTERS:
        return row
    done = table.with_name(f"clusters-{code('data.dedup.clusters')}.json")
    if not done.exists():
        saving.write_json(done, clusters.summary(table, CLUSTERS[stage.name]))
    summary = json.loads(done.read_text(encoding="utf-8"))
    first = Job(job.workdir, job.stages[:1])
    numbers = [cluster["kept"] for cluster in summary["largest"]]
    kept_documents = {document.number: document for document in documents.read(first, units, numbers, SHOWN_CHARACTERS)}
    ids = documents.names(first, units, [number for cluster in summary["largest"] for number in cluster["removed"]])
    for cluster in summary["largest"]:
        cluster["removed"] = [ids[number] for number in cluster["removed"] if number in ids]
        cluster["kept"] = _described(kept_documents.get(cluster["kept"]))
    return row | summary


def _described(document: documents.Found | None) -> dict[str, Any] | None:
    if document is None:
        return None
    return {name: document.columns[name] for name in ("id", "source", "url")} | {"text": document.texts[0].start}
