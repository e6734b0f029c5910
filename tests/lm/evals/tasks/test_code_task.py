"""Programs that a model writes are run against the tests, and pass@k is estimated without bias."""

import itertools
import json
import math

import pytest

from lm.errors import UserError
from lm.evals.stats.measures import pass_at_k
from lm.evals.task import Generated, TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.tasks import task_rows as rows

ANSWERS = {
    "right": "    return a + b + {i}\n",
    "wrong": "    return a - b\n",
    "raises": "    raise KeyError(object())\n",
    "leaves": "    import sys\n    sys.exit(0)\n",
    "hangs": "    while True:\n        pass\n",
    "forbidden": "    return open('/etc/passwd').read()\n",
    "syntax": "    return (\n",
}


def answering(*kinds):
    """Answers each problem by the kind in turn."""
    turns = itertools.cycle(kinds)

    def answer(prompt):
        i = prompt.partition("def add_")[2].partition("(")[0]
        return ANSWERS[next(turns)].format(i=i)

    return rows.Recorder(answer=answer)


def test_what_passes_and_what_does_not(tmp_path):
    rows.put(tmp_path / "humaneval", rows.humaneval, {"test": 7})
    model = answering("right", "wrong", "raises", "leaves", "hangs", "forbidden", "syntax")
    task = open_task("humaneval", TaskSettings(data_dir=tmp_path, options={"code": {"timeout": 0.5}}))
    outcome = task.run(model)
    assert outcome.results["pass@1"] == pytest.approx(1 / 7) and outcome.results["n"] == 7
    assert [s["doc_id"] for s in outcome.samples] == [f"Made/{i}" for i in range(7)]
    assert [s["outcomes"][0] for s in outcome.samples][:5] == ["passed", "error", "error", "left early", "timeout"]
    assert [s["failed"] for s in outcome.samples] == [False] + [True] * 6
    assert outcome.samples[1]["complaint"] == "AssertionError" and outcome.samples[2]["complaint"] == "KeyError"
    assert outcome.samples[1]["reference"] == "    return a + b + 1\n"
    assert model.calls == 1 and model.prompts[0].stops[:2] == ("\nclass", "\ndef") and model.prompts[0].temperature == 0
    again = task.run(answering("right", "wrong", "raises", "leaves", "syntax"))
    assert json.dumps(outcome.samples[:4]) == json.dumps(again.samples[:4])


def test_pass_at_k_is_the_share_of_draws_with_a_pass():
    for n, c, k in [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (4, 3, 2), (10, 1, 10)]:
        draws = list(itertools.combinations(range(n), k))
        share = sum(any(i < c for i in draw) for draw in draws) / len(draws)
        assert pass_at_k(n, c, k) == pytest.approx(share)
    assert pass_at_k(200, 1, 1) == pytest.approx(1 / 200) and math.isfinite(pass_at_k(1000, 5, 100))


def test_several_completions_of_each_problem(tmp_path):
    rows.put(tmp_path / "own", rows.humaneval, {"test": 2})
    path = tmp_path / "own.yaml"
    path.write_text(
        "kind: code\nid: task_id\ndoc_to_text: prompt\nrepeats: 4\npass_at: [1, 2]\n"
        "generation_kwargs: {do_sample: true, temperature: 0.2, until: []}\n"
    )
    model = answering("right", "wrong", "wrong", "wrong")
    outcome = open_task(str(path), TaskSettings(data_dir=tmp_path)).run(model)
    assert outcome.results["pass@1"] == pytest.approx(0.25) and outcome.results["pass@2"] == pytest.approx(0.5)
    assert outcome.samples[0]["outcomes"] == ["passed", "error", "error", "error"] and not outcome.samples[0]["failed"]
    assert len({prompt.seed for prompt in model.prompts[:4]}) == 4 and len(outcome.samples[0]["generations"]) == 4


def test_chat_models_begin_within_a_block_of_code(tmp_path):
    rows.put(tmp_path / "humaneval", rows.humaneval, {"test": 2})
    model = rows.Recorder(answer=lambda prompt: ANSWERS["right"].format(i=prompt.split("add_")[1][0]) + "```\nThat is all.")
    outcome = open_task("humaneval_instruct", TaskSettings(data_dir=tmp_path, chat=True)).run(model)
    assert outcome.results["pass@1"] == 1
    prompt = rows.humaneval(0, "test")["prompt"]
    assert model.prompts[0].text.endswith(f"<assistant>Here is the completed function:\n```python\n{prompt}\n")
    assert outcome.samples[0]["messages"][0]["role"] == "user" and "```" not in outcome.samples[0]["completion"]


def test_malformed_problems_and_lost_completions(tmp_path):
    folder = tmp_path / "humaneval"
    folder.mkdir()
    whole = [rows.humaneval(i, "test") for i in range(4)]
    del whole[1]["test"]
    whole[2]["entry_point"] = 7
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*whole, whole[3] | {"task_id": "Made/9"}]))

    class Losing(rows.Recorder):
        def generate(self, prompts):
            return [Generated("", problem="lost") if "add_0" in prompt.text else Generated("    pass\n") for prompt in prompts]

    outcome = open_task("humaneval", TaskSettings(data_dir=tmp_path)).run(Losing())
    counts = {kind: problem["n"] for kind, problem in outcome.results["problems"].items()}
    assert counts == {"malformed_items": 2, "no_generation": 1} and outcome.results["n"] == 2
    assert outcome.samples[0]["metrics"] == {"pass@1": None} and outcome.results["pass@1"] == 0


def test_more_passes_than_completions_cannot_be_asked_for(tmp_path):
    rows.put(tmp_path / "own", rows.humaneval, {"test": 1})
    (tmp_path / "own.yaml").write_text("kind: code\ndoc_to_text: prompt\nrepeats: 2\npass_at: [1, 3]\n")
    with pytest.raises(UserError, match="pass_at: .1, 3. must be numbers from 1 to repeats=2"):
        open_task(str(tmp_path / "own.yaml"), TaskSettings(data_dir=tmp_path))
