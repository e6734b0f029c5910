"""A trace can be read and trained on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from benchmarks.planted import SECRET
from data.chat.conversations import examples_of
from data.chat.records import read_records
from lm.agent import records as traces
from lm.agent.builtin import open_tools
from lm.agent.consent import Consent, Grant
from lm.agent.loop import Budget, Rules, run
from lm.agent.models import Said
from lm.errors import UserError
from tests.lm.agent.test_agent_loop import call, script, ticking, tool
from tests.verbs import runs
from tests.verbs.runs import REPOSITORY, environment


def worked(finish="answer"):
    """A run with a plan, a wrong call, an untrusted answer, and calls that were granted, consented, denied and refused."""
    reads, _ = tool("reads", "reads", f"password: {SECRET}")
    writes, written = tool("writes", "writes")
    answers = iter([True, False])
    consent = Consent(frozenset({"reads"}), (Grant("writes", {"text": "3*"}),), lambda question: next(answers))
    turns = (
        Said("Look.", tokens=2),
        Said("", [call("reads", text="a"), call("other")], ["no JSON"], tokens=5),
        Said("", [call("writes", text="1"), call("writes", text="2"), call("writes", text="3.")], tokens=5),
        Said("", [call("writes", text=f"3 {SECRET}"), call("calculator", expression="1 + 1")], tokens=5),
        Said("Two.", tokens=5) if finish == "answer" else Said("", [call("reads", text="b")], tokens=5),
    )
    budget = Budget(steps=5 if finish == "steps" else 9)
    rules = Rules(budget, consent, plan=True, system="Be short.")
    done = run(script(*turns)[0], [reads, writes, *open_tools(["calculator"])], "Work.", rules, name="a", clock=ticking(0.25))
    assert done.finish == finish
    assert [one["outcome"] for one in done.calls][:7] == [
        *("allowed", "invalid", "consented", "denied", "granted", "refused", "allowed")
    ]
    return done, written


@pytest.mark.parametrize("finish", ["answer", "steps"])
def test_a_trace_survives_its_file(finish, tmp_path):
    done, written = worked(finish)
    traces.append(tmp_path / "a.jsonl", done)
    (read,) = traces.read(tmp_path / "a.jsonl")
    assert json.loads(json.dumps(dataclasses.asdict(read))) == json.loads(json.dumps(dataclasses.asdict(done)))
    assert read.plan == "Look." and written == ["1", "3."]


def test_files_of_traces(tmp_path):
    file = tmp_path / "sub" / "a.jsonl"
    done, _ = worked()
    traces.append(file, done)
    with file.open("a") as opened:
        opened.write('{"task": "cut')
    traces.append(file, done)
    assert [one.answer for one in traces.read(file)] == ["Two.", "Two."], "a cut line costs only itself"
    for text, words in (('{"messages": []}\n', "line 1 is no trace"), ("[1]\n", "line 1 is no trace")):
        (tmp_path / "b.jsonl").write_text(text)
        with pytest.raises(UserError, match=words):
            traces.read(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="no such file"):
        traces.read(tmp_path / "none.jsonl")


def test_conversations_are_what_sft_reads(tmp_path):
    good = run(
        script(Said("", [call("calculator", expression="6 * 7")], tokens=3), Said("42"))[0],
        open_tools(["calculator"]),
        "6 * 7?",
    )
    bad, _ = worked()
    for one in (good, bad):
        traces.append(tmp_path / "a.jsonl", one)
    ran = records("export", tmp_path / "a.jsonl", f"--out={tmp_path / 'b.jsonl'}")
    assert "1 of 2 runs" in ran.stdout
    (example,) = examples_of(read_records(str(tmp_path / "b.jsonl")), "conversation", {})
    assert [message["role"] for message in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert example.messages[1]["tool_calls"][0]["function"] == call("calculator", expression="6 * 7")
    assert example.messages[2]["content"] == "42" and example.tools[0]["function"]["name"] == "calculator"
    assert len(list(traces.conversations([good, bad], ended=False))) == 2
    shown = traces.told(good) + traces.told(bad)
    assert "task: 6 * 7?" in shown and 'calculator({"expression": "6 * 7"}): allowed -> 42' in shown and "denied" in shown
    wrong = records("export", tmp_path / "none.jsonl", code=2)
    assert wrong.stderr.startswith("records.py: ") and wrong.stderr.count("\n") == 1


def records(*arguments, code=0):
    command = [sys.executable, "-m", "lm.agent.records", *map(str, arguments)]
    done = runs.run(command)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def test_a_reader_that_leaves_ends_the_output_in_one_line(tmp_path):
    traces.append(tmp_path / "a.jsonl", worked()[0])
    reads, writes = os.pipe()
    os.close(reads)  # as `head` does once it has its lines
    command = [sys.executable, "-m", "lm.agent.records", "show", str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("the reader of the output has left\n")
