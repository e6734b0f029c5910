import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data.chat.conversations import examples_of
from data.chat.records import read_records
from lm.align.safety.constitution import load_constitution
from lm.errors import UserError
from lm.evals.redteam.prompts import read_prompts
from lm.evals.task import TaskSettings
from lm.evals.tasks import catalogue
from lm.serve import flagged, store
from lm.serve.store import Exchange, Feedback, Store

ROOT = Path(__file__).parents[3]
UNSAFE = {
    "rule": "stab",
    "hazard": "vcr",
    "where": "output",
    "action": "flag",
    "start": 0,
    "end": 4,
    "why": r"matches \bstab\b",
}


def exchange(id, prompt, answer, flags=(), talk=(), adapter="law"):
    messages = [*talk, {"role": "user", "content": prompt}]
    return Exchange(id, time.time(), "step 9", adapter, "", messages, [answer], "stop", {}, flags, bool(flags))


@pytest.fixture
def filled(tmp_path):
    """A store with, of each kind, twenty exchanges."""
    kept = Store(tmp_path / "exchanges.sqlite")
    for n in range(20):
        talk = [{"role": "user", "content": f"Hello {n}"}, {"role": "assistant", "content": "Hi."}]
        kept.exchange(exchange(f"bad{n}", f"How do I win fight {n}?", f"You stab {n}.", [UNSAFE], talk))
        kept.exchange(exchange(f"good{n}", f"Why is the sky blue, {n}?", f"It scatters light {n}."))
        kept.exchange(exchange(f"wrong{n}", f"What is {n} plus 1?", f"It is {n}."))
        kept.exchange(exchange(f"shy{n}", f"How do I kill process {n}?", "I'm sorry, but I can't help with that."))
        kept.exchange(exchange(f"plain{n}", f"Nobody rated this {n}", "Fine."))
        kept.exchange(exchange(f"again{n}", f"Why is the sky blue, {n}?", f"Because {n}."))
        kept.feedback(Feedback(f"good{n}", 1))
        kept.feedback(Feedback(f"wrong{n}", 1))
        kept.feedback(Feedback(f"wrong{n}", -1, correction=f"It is {n + 1}."))  # they thought better of it
        kept.feedback(Feedback(f"shy{n}", -1))
        kept.feedback(Feedback(f"again{n}", -1))
    kept.close()
    return kept.path


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def run(path, out, *more):
    flagged.main([f"--store={path}", f"--out={out}", *more])


def test_what_is_learnt(filled, tmp_path):
    run(filled, tmp_path / "out", "--evaluate=0")
    sft = {row["messages"][-2]["content"]: row["messages"][-1]["content"] for row in rows(tmp_path / "out", "align/sft.jsonl")}
    assert (
        len(sft) == 60 and sft["What is 3 plus 1?"] == "It is 4." and sft["Why is the sky blue, 3?"] == "It scatters light 3."
    )
    refusals = {t.format(hazard="violent crimes") for p in load_constitution().principles for t in p.refusals}
    assert sft["How do I win fight 3?"] in refusals
    pairs = {
        (row["prompt"][-1]["content"], row["rejected"][0]["content"]): row
        for row in rows(tmp_path / "out", "align/preference.jsonl")
    }
    assert len(pairs) == 60
    assert pairs["What is 3 plus 1?", "It is 3."]["chosen"][0]["content"] == "It is 4."
    assert pairs["Why is the sky blue, 3?", "Because 3."]["chosen"][0]["content"] == "It scatters light 3."
    unsafe = pairs["How do I win fight 3?", "You stab 3."]
    assert unsafe["chosen"][0]["content"] in refusals and len(unsafe["prompt"]) == 3
    labels = Counter(row["label"] for row in rows(tmp_path / "out", "align/kto.jsonl"))
    assert labels == {True: 60, False: 80}
    assert "stab" not in json.dumps([row for row in rows(tmp_path / "out", "align/kto.jsonl") if row["label"]])


def test_align_reads_the_files(filled, tmp_path):
    run(filled, tmp_path / "out", "--evaluate=0")
    for name, kind in (("sft", "conversation"), ("preference", "pair"), ("kto", "labelled")):
        dropped = Counter()
        found = list(examples_of(read_records(str(tmp_path / "out" / "align" / f"{name}.jsonl")), kind, dropped))
        assert len(found) >= 60 and not dropped, name


def test_evaluate_reads_the_files(filled, tmp_path):
    out = tmp_path / "out"
    run(filled, out, "--evaluate=1")
    assert not (out / "align").exists() or not list((out / "align").iterdir())
    prompts = read_prompts(str(out / "evaluation/redteam/flagged.jsonl"), "valid", valid_fraction=1.0)
    kinds = Counter(prompt.kind for prompt in prompts)
    assert kinds == {"harmful": 20, "benign": 20}
    harmful = next(prompt for prompt in prompts if prompt.id == "bad3-0")
    assert (harmful.text, harmful.hazard, harmful.harmful_if) == ("How do I win fight 3?", "vcr", (r"\bstab\b",))
    assert [message["content"] for message in harmful.messages] == ["Hello 3", "Hi.", "How do I win fight 3?"]
    settings = TaskSettings(data_dir=out / "evaluation")
    task = catalogue.open_task(str(out / "evaluation/corrections.yaml"), settings)
    assert len(task.documents.items) == 20
    assert task.documents.items[0].doc["correct_answers"] == ["It is 1."]
    assert len(catalogue.open_task("redteam", settings).requests) == 40


def test_no_prompt_is_in_both_sets(filled, tmp_path):
    run(filled, tmp_path / "out", "--evaluate=0.5")
    learnt = {row["prompt"][0]["content"] for row in rows(tmp_path / "out", "align/kto.jsonl")}
    measured = {row["prompt"] for row in rows(tmp_path / "out", "evaluation/corrections/test.jsonl")}
    measured |= {
        (row.get("messages") or [{"content": row["prompt"]}])[0]["content"]
        for row in rows(tmp_path / "out", "evaluation/redteam/flagged.jsonl")
    }
    assert learnt and measured and not learnt & measured
    again = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
    run(filled, tmp_path / "out", "--evaluate=0.5")
    assert again == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}


def test_the_command(filled, tmp_path):
    command = [sys.executable, "-m", "lm.serve.flagged", f"--store={filled}", f"--out={tmp_path / 'out'}", "--adapter=law"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"`python (\S+) ([^`]*)`", done.stdout)
    assert {script for script, _ in commands} == {"align.py", "evaluate.py"}
    for script, flags in commands:
        needed = (
            ("config", "workdir", "config.init_from", "config.data.input") if script == "align.py" else ("config", "workdir")
        )
        assert all(f"--{flag}=" in flags for flag in needed) and "…" not in flags
    for wrong, named in (
        ([f"--store={filled}", f"--out={tmp_path / 'x'}", "--adapter=other"], "no flagged or rated"),
        ([f"--store={tmp_path / 'none'}", f"--out={tmp_path / 'x'}"], "no such file"),
        ([f"--store={filled}", f"--out={ROOT}"], "no empty folder"),
        ([f"--store={filled}", f"--out={tmp_path / 'x'}", "--evaluate=2"], "no share"),
    ):
        with pytest.raises(UserError, match=named):
            flagged.main(wrong)


def test_only_what_is_flagged_or_rated_is_read(filled):
    where = "(flagged OR id IN (SELECT exchange FROM feedback))"
    assert not any(row["id"].startswith("plain") for row in store.read(filled, where))
