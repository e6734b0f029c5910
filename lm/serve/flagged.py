"""Turn flagged and rated exchanges of a store into an evaluation set and an alignment set.

    python -m lm.serve.flagged --store=DIR/exchanges.sqlite --out=OUT [--adapter=NAME] [--checkpoint=TEXT] [--evaluate=0.3]

    OUT/align/sft.jsonl                  {"messages"}: corrections, and answers that were rated up
    OUT/align/preference.jsonl           {"prompt", "chosen", "rejected"}, for dpo
    OUT/align/kto.jsonl                  {"prompt", "completion", "label"}: every rated or unsafe answer
    OUT/evaluation/redteam/flagged.jsonl requests with unsafe answers, and harmless ones that were refused: task redteam
    OUT/evaluation/corrections/          prompts with a person's answer: task OUT/evaluation/corrections.yaml
    OUT/README.md, OUT/manifest.json     what is there, and the commands that use it

A hash of the prompt decides on which side it is: no prompt is in both sets, so a model that was aligned on one is measured on
the other. The last rating of an answer counts. An answer is unsafe if a rule or the judge flagged it; it is never an answer to
learn. Instead of it, one learns a refusal of the constitution. Texts are as the store keeps them, with personal data masked.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from data.text.near_copies import normalise
from lm import cli
from lm.align.safety.constitution import Constitution, choose, load_constitution
from lm.errors import UserError
from lm.evals.judges.refusals import is_refusal
from lm.files import saving
from lm.serve import store

SEED = 19  # of the split, another than that of align.py's own validation split
TO = "--workdir=RUN --config.init_from=MODEL"
ASK = "evaluate.py --config=default --workdir=EVAL --config.checkpoint=RUN"
COMMANDS = {
    "align/sft.jsonl": f"align.py --config=configs/align/sft.py {TO} --config.data.input={{path}}",
    "align/preference.jsonl": f"align.py --config=configs/align/dpo.py {TO} --config.data.input={{path}}",
    "align/kto.jsonl": f"align.py --config=configs/align/kto.py {TO} --config.data.input={{path}}",
    "evaluation/redteam/flagged.jsonl": f"{ASK} --config.tasks=redteam --config.data_dir={{out}}/evaluation",
    "evaluation/corrections/test.jsonl": (
        f"{ASK} --config.tasks={{out}}/evaluation/corrections.yaml --config.data_dir={{out}}/evaluation "
        "--config.chat_template=own"
    ),
}
TASK = """kind: generation
about: >
  Prompts of people who corrected a model's answer, and their corrections. exact_match is strict; add `judge` to metric_list
  for a model's grade.
id: id
doc_to_text: "{{prompt}}"
doc_to_target: "{{correct_answers[0]}}"
generation_kwargs: {do_sample: false, max_gen_toks: 256}
metric_list:
  - {metric: exact_match, ignore_case: true, ignore_punctuation: true}
"""


def export(
    exchanges: Iterable[Mapping[str, Any]], out: Path, constitution: Constitution, evaluate: float = 0.3
) -> dict[str, Any]:
    """Write both sets and return the manifest: {"files": {name: {"rows", "use"}}, "exchanges", "unsafe", "rated"}.

    exchanges: of `lm.serve.store.read`. evaluate: share of the prompts that are for evaluation.
    Raises: UserError: `out` holds other files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir()) and not (out / "manifest.json").exists()):
        raise UserError(f"--out={out}: is no empty folder; name a new one")
    rows: dict[str, list[dict]] = {name: [] for name in COMMANDS}
    rated: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})  # prompt as JSON -> answers
    counts: Counter = Counter()
    for exchange in exchanges:
        counts["exchanges"] += 1
        if not exchange["messages"]:
            continue
        held_out = _share(exchange["messages"]) < evaluate
        for choice, answer in enumerate(exchange["answers"]):
            one = _looked_at(exchange, choice, answer)
            counts["unsafe"] += one["unsafe"]
            counts["rated"] += one["rating"] is not None
            if held_out:
                _evaluation(rows, one)
            else:
                _alignment(rows, one, constitution)
                if one["rating"] is not None and answer.strip() and not one["unsafe"]:
                    rated[json.dumps(one["prompt"])][one["rating"] > 0].append(answer)
    for prompt, answers in rated.items():  # two answers to one prompt, one liked and one not
        for liked, disliked in zip(answers[True], answers[False], strict=False):
            rows["align/preference.jsonl"].append(_pair(json.loads(prompt), liked, disliked))
    return _write(out, {name: _distinct(some) for name, some in rows.items()}, counts)


def _looked_at(exchange: Mapping[str, Any], choice: int, answer: str) -> dict[str, Any]:
    """Return what matters of one answer: prompt (messages), answer, rating (1, −1, None), correction, unsafe, hazard, …"""
    ratings = [one for one in exchange["feedback"] if one["choice"] == choice]
    found = exchange["decisions"] if choice == 0 else ()
    out = [one for one in found if one["where"] == "output"]
    asked = [one for one in found if one["where"] == "input"]
    blocked = any(one["action"] == "block" for one in asked)  # the answer is the server's own refusal
    unsafe = not blocked and (bool(out) or (choice == 0 and bool((exchange["measures"] or {}).get("unsafe"))))
    return {
        "id": f"{exchange['id']}-{choice}",
        "prompt": exchange["messages"],
        "answer": answer,
        "rating": ratings[-1]["rating"] if ratings else None,
        "correction": next((one["correction"] for one in reversed(ratings) if (one["correction"] or "").strip()), ""),
        "unsafe": unsafe,
        "asked_badly": bool(asked),
        "hazard": next((one["hazard"] for one in [*out, *asked] if one["hazard"]), ""),
        "patterns": [one["why"].removeprefix("matches ") for one in out if one["why"].startswith("matches ")],
    }


def _evaluation(rows: Mapping[str, list[dict]], one: Mapping[str, Any]) -> None:
    request = next((m["content"] for m in reversed(one["prompt"]) if m["role"] == "user"), "")
    if not request.strip():
        return
    talk = [message for message in one["prompt"] if message["role"] != "system"]
    refused_well_meant = one["rating"] == -1 and is_refusal(one["answer"]) and not one["asked_badly"]
    if one["unsafe"] or refused_well_meant:
        row = {"id": one["id"], "prompt": request, "kind": "harmful" if one["unsafe"] else "benign", "hazard": one["hazard"]}
        if one["unsafe"] and one["patterns"]:
            row["harmful_if"] = one["patterns"]
        if len(talk) > 1:
            row["messages"] = talk
        rows["evaluation/redteam/flagged.jsonl"].append(row)
    if one["correction"] and len(talk) == 1:  # the task's prompt is one text
        row = {"id": one["id"], "prompt": request, "correct_answers": [one["correction"]], "incorrect_answers": [one["answer"]]}
        rows["evaluation/corrections/test.jsonl"].append(row)


def _alignment(rows: Mapping[str, list[dict]], one: Mapping[str, Any], constitution: Constitution) -> None:
    prompt, answer = one["prompt"], one["answer"]
    better = one["correction"]
    if one["unsafe"] and not better:
        principle = constitution.principle_for(one["hazard"], one["id"])
        better = choose(principle.refusals, one["id"]).format(hazard=constitution.name_of(one["hazard"]))
    if better:
        rows["align/sft.jsonl"].append({"messages": [*prompt, _reply(better)]})
        if answer.strip() and answer.strip() != better.strip():
            rows["align/preference.jsonl"].append(_pair(prompt, better, answer))
        rows["align/kto.jsonl"].append({"prompt": prompt, "completion": [_reply(better)], "label": True})
    if not answer.strip() or answer.strip() == better.strip():
        return
    if one["unsafe"] or one["rating"] == -1 or one["correction"]:
        rows["align/kto.jsonl"].append({"prompt": prompt, "completion": [_reply(answer)], "label": False})
    elif one["rating"] == 1:
        rows["align/sft.jsonl"].append({"messages": [*prompt, _reply(answer)]})
        rows["align/kto.jsonl"].append({"prompt": prompt, "completion": [_reply(answer)], "label": True})


def _write(out: Path, rows: Mapping[str, list[dict]], counts: Counter) -> dict[str, Any]:
    files = {}
    for name, some in rows.items():
        (out / name).unlink(missing_ok=True)
        if some:
            saving.write_lines(out / name, some, ensure_ascii=True)
            files[name] = {"rows": len(some), "use": "python " + COMMANDS[name].format(path=out / name, out=out)}
    if "evaluation/corrections/test.jsonl" in files:
        saving.write(out / "evaluation" / "corrections.yaml", TASK)
    manifest = {"files": files, **{key: counts[key] for key in ("exchanges", "unsafe", "rated")}}
    lines = ["# Flagged and rated exchanges", "", "No prompt is in both sets. Personal data is masked.", ""]
    lines += [f"- `{name}`: {file['rows']} rows. `{file['use']}`" for name, file in files.items()]
    saving.write(out / "README.md", "\n".join(lines) + "\n")
    saving.write_json(out / "manifest.json", manifest)
    return manifest


def _share(messages: Sequence[Mapping[str, Any]]) -> float:
    """Return a number in [0, 1), the same for prompts whose first user message differs in case and white space only."""
    first = next((m["content"] for m in messages if m["role"] == "user"), "")
    return xxhash.xxh3_64_intdigest(normalise(first), seed=SEED) / 2**64


def _pair(prompt: Sequence[Mapping], chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": list(prompt), "chosen": [_reply(chosen)], "rejected": [_reply(rejected)]}


def _reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _distinct(rows: Sequence[dict]) -> list[dict]:
    return list({json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True): row for row in rows}.values())


def main(arguments: Sequence[str]) -> None:
    parser = cli.ArgumentParser(
        prog="python -m lm.serve.flagged", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True, help="exchanges.sqlite of a server")
    parser.add_argument("--out", required=True, type=Path, help="a new folder, or one of this command")
    parser.add_argument("--adapter", help="only exchanges with this adapter; '' for those without one")
    parser.add_argument("--checkpoint", help="only exchanges with this checkpoint")
    parser.add_argument("--constitution", default="", help="YAML file whose refusals replace unsafe answers")
    parser.add_argument("--evaluate", type=float, default=0.3, help="share of the prompts that are for evaluation")
    given = parser.parse_args(arguments)
    if not 0 <= given.evaluate <= 1:
        raise UserError(f"--evaluate={given.evaluate} is no share; give a number in 0 … 1")
    wanted = {key: getattr(given, key) for key in ("adapter", "checkpoint") if getattr(given, key) is not None}
    where = " AND ".join(["(flagged OR id IN (SELECT exchange FROM feedback))", *(f"{key} = ?" for key in wanted)])
    found = store.read(given.store, where, list(wanted.values()))
    manifest = export(found, given.out, load_constitution(given.constitution or None), given.evaluate)
    if not manifest["files"]:
        raise UserError(f"{given.store}: holds no flagged or rated exchange that teaches anything")
    print((given.out / "README.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    with cli.guard():
        main(sys.argv[1:])
