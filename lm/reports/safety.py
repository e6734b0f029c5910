"""The report of a safety loop: attack success and over-refusal before and after, with intervals, and examples."""

import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from lm.align.safety.figures import HEADLINES, headlines
from lm.files.saving import plain
from lm.reports.next_steps import next_steps
from lm.reports.page import count, number, render, save
from lm.reports.provenance import signed

SHOWN = 12  # maximum number of examples


def samples(first: Sequence[Mapping], last: Sequence[Mapping]) -> list[dict]:
    """Return examples with both answers, {"kind", "family", "hazard", "prompt", "before", "after", "said_before",
    "said_after"}.

    Final failures come first; then one of each kind and family in turn."""

    def outcome(record: Mapping) -> str:
        return record.get("verdict") or ("answered" if record["refusal"] == "none" else f"{record['refusal']} refusal")

    def key(record: Mapping) -> tuple:
        return record["id"], record["family"], record["sample"], str(record["messages"])

    def wrong(record: Mapping) -> bool:
        return record.get("verdict") == "harmful" or (record["kind"] != "harmful" and record["refusal"] != "none")

    before = {key(record): record for record in first}
    groups: dict[tuple, list] = {}
    for record in sorted(last, key=lambda r: not wrong(r)):
        if key(record) in before and record["kind"] != "task":
            groups.setdefault((record["kind"], record["family"]), []).append(record)
    picked = [group[i] for i in range(SHOWN) for group in groups.values() if i < len(group)][:SHOWN]
    shown = []
    for record in picked:
        first_answer = before[key(record)]
        answers = {"before": first_answer["response"], "after": record["response"]}
        said = {"said_before": outcome(first_answer), "said_after": outcome(record)}
        shown.append({name: record[name] for name in ("kind", "family", "hazard", "prompt")} | answers | said)
    return shown


def write(
    workdir: str | os.PathLike,
    config: Mapping,
    found: Mapping,
    first: Sequence[Mapping],
    last: Sequence[Mapping],
    stages: Mapping[str, float],
) -> None:
    """Write report.json and report.html into the workdir.

    Args:
      found: the content of safety.json (lm/align/safety/loop.py). first, last: judged records of the model before and after.
      stages: seconds by name.
    """
    report = plain(
        {
            "title": f"Safety training: {Path(workdir).name}",
            "method": "safety",
            "config": config,
            **signed(config, stages),
            "before": headlines(found["before"]),
            "after": headlines(found["after"]),
            "stages": stages,
            "finished": True,
            "safety": found,
            "samples": samples(first, last),
        }
    )
    report |= {"verdict": verdict(found["change"]), "next": next_steps(report, workdir)}
    save(Path(workdir), report, html(report))


def html(report: Mapping) -> str:
    """Return the page of a report.json."""
    loop = report["safety"]
    return render(
        "safety.html.j2",
        report,
        verdict=verdict(loop["change"]),
        data_notes=data_notes(report),
        tables=_tables(loop["before"], loop["after"], loop["held_out_families"]),
    )


def data_notes(report: Mapping) -> list[str]:
    """Return sentences on the requests of the loop, and on what it trained on."""
    loop, prompts = report["safety"], ((report.get("config") or {}).get("safety") or {}).get("prompts")
    notes = [f"Requests from {prompts}."] if prompts else []
    trained = {name: sum(counts.get(name, 0) for counts in loop["rounds"]) for name in ("learn", "pairs")}
    rounds = count(len(loop["rounds"]), "round")
    notes.append(f"{number(trained['learn'])} answers and {number(trained['pairs'])} pairs to train on, in {rounds}.")
    if isinstance(loop.get("failing"), int):
        notes.append(f"Of the attacks on these requests, {number(loop['failing'])} still succeed (failing.jsonl).")
    return notes


def verdict(changed: Mapping) -> str | None:
    """Return one sentence on attack success and over-refusal; None without them."""
    attack = changed.get(HEADLINES[0][0]) or changed.get(HEADLINES[1][0])
    if attack is None:
        return None
    sentence = f"Attacks that succeed: {attack['before']:.1%} before, {attack['after']:.1%} after"
    refusal = changed.get(HEADLINES[2][0])
    if refusal is not None:
        sentence += f"; harmless requests refused: {refusal['before']:.1%} before, {refusal['after']:.1%} after"
    return sentence + "."


def _tables(before: Mapping, after: Mapping, held_out: Sequence[str]) -> dict[str, list[tuple]]:
    """Return {title: [(name, held out, share before, share after)]}."""

    def rows(measure: str, part: str) -> list[tuple]:
        sides = before[measure][part], after[measure][part]
        return [(name, name in held_out, *(side.get(name) for side in sides)) for name in dict.fromkeys(chain(*sides))]

    others = (("tasks solved", "accuracy"), ("harmless requests answered rightly", "twins_right"))
    tables = {
        "Attack success by family": rows("attack_success", "families"),
        "Attack success by hazard": rows("attack_success", "hazards"),
        "Over-refusal by family": rows("over_refusal", "families"),
        "Other abilities": [(name, False, before.get(key), after.get(key)) for name, key in others],
    }
    known = {
        title: [row for row in rows if any(share and share["rate"] is not None for share in row[2:])]
        for title, rows in tables.items()
    }
    return {title: rows for title, rows in known.items() if rows}
