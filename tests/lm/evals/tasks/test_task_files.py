"""Every task file of questions works on made data: all right is 100 %, guessing is chance, and what is malformed is named."""

import json
import math

import pytest

from lm.evals.task import TaskSettings
from lm.evals.tasks.answers import boxed
from lm.evals.tasks.catalogue import FOLDER, open_task, read_spec
from tests.lm.evals.tasks import task_rows as rows

# Task: its rows, the splits, how many items, and what answers them rightly.
CHOICES = {
    "mmlu": (rows.mmlu, ["dev", "test"]),
    "hellaswag": (rows.hellaswag, ["train", "validation"]),
    "arc_easy": (rows.arc, ["train", "test"]),
    "arc_challenge": (rows.arc, ["train", "test"]),
    "piqa": (rows.piqa, ["train", "validation"]),
    "winogrande": (rows.winogrande, ["train", "validation"]),
    "openbookqa": (rows.openbookqa, ["train", "test"]),
    "boolq": (rows.boolq, ["train", "validation"]),
    "truthfulqa_mc1": (rows.truthfulqa, ["validation"]),
    "truthfulqa_mc2": (rows.truthfulqa, ["validation"]),
}
CONTINUATIONS = {"lambada": (rows.lambada, ["test"])}
GENERATED = {
    "mmlu_pro": (rows.mmlu_pro, ["validation", "test"], lambda row: f"the answer is ({row['answer']})."),
    "gsm8k": (rows.gsm8k, ["train", "test"], lambda row: " " + row["answer"]),
    "math": (rows.math, ["train", "test"], lambda row: f"It is ${boxed(row['solution'])}$."),
    "bbh": (rows.bbh, ["dev", "test"], lambda row: " " + row["target"] + "."),
    "bbh_cot": (rows.bbh, ["dev", "test"], lambda row: f"So the answer is {row['target']}."),
}
CORE_FORMS = {"query|trim": rows.choices, "context|trim": rows.continuation, "gold": rows.schema}
ITEMS, SEEDS = 40, 25


def core_rows(name):
    said = read_spec(FOLDER / f"core_{name}.yaml", name)["doc_to_text"]
    return next(row for mark, row in CORE_FORMS.items() if mark in said)


CORE = sorted(path.stem.removeprefix("core_") for path in FOLDER.glob("core_*.yaml"))
CHOICES |= {f"core_{name}": (core_rows(name), ["test"]) for name in CORE if core_rows(name) is not rows.continuation}
CONTINUATIONS |= {f"core_{name}": (rows.continuation, ["test"]) for name in CORE if core_rows(name) is rows.continuation}


def put(folder, name, row, splits):
    """The rows where the task looks for them; 12 of a split for examples. Returns those that are evaluated."""
    spec = read_spec(FOLDER / f"{name}.yaml", name)
    where = folder / spec.get("folder", name)
    rows.put(where, row, {split: ITEMS if split == splits[-1] else 12 for split in splits})
    if pattern := spec.get("files"):
        (where / "eval_data").mkdir()
        (where / f"{splits[-1]}.jsonl").rename(where / "eval_data" / pattern.rpartition("/")[2])
    return [row(i, splits[-1]) for i in range(ITEMS)]


def knowing(outcome):
    """The model that finds the right continuations of these samples likelier than others."""
    right = set()
    for sample in outcome.samples:
        targets = sample["target"] if isinstance(sample["target"], list) else [sample["target"]]
        for target in targets if isinstance(targets[0], int) else [0]:
            context = sample["prompt"] if isinstance(sample["prompt"], str) else sample["prompt"][target]
            right.add((context, sample["choices"][target]))
    return rows.Recorder(logp=lambda request: -0.1 if tuple(request) in right else -99.0)


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name, tmp_path):
    row, splits = CHOICES[name]
    put(tmp_path, name, row, splits)
    task = open_task(name, TaskSettings(data_dir=tmp_path))
    first = task.run(rows.guessing(0))
    right = task.run(knowing(first))
    metrics = list(first.samples[0]["metrics"])
    assert right.results["n"] == ITEMS and set(right.results["problems"]) <= {"tied_choices"}  # choices of the same words
    assert [right.results[metric] for metric in metrics] == pytest.approx([1] * len(metrics)), right.results
    assert not any(sample["failed"] for sample in right.samples)
    # Of all items under many models.
    guesses = [task.run(rows.guessing(seed)).results for seed in range(SEEDS)]
    chance = first.results["chance"]
    for metric in metrics:
        mean = sum(result[metric] for result in guesses) / SEEDS
        assert abs(mean - chance) < 3 * math.sqrt(chance * (1 - chance) / (ITEMS * SEEDS)), metric


@pytest.mark.parametrize("name", CONTINUATIONS)
def test_continuations(name, tmp_path):
    row, splits = CONTINUATIONS[name]
    put(tmp_path, name, row, splits)
    task = open_task(name, TaskSettings(data_dir=tmp_path))
    right = task.run(rows.Recorder(logp=lambda request: -0.1))
    assert right.results["acc"] == 1 and right.results["n"] == ITEMS and right.results["problems"] == {}
    assert right.results["perplexity"] == pytest.approx(math.exp(0.1))
    assert all(sample["choices"][0].startswith(" ") for sample in right.samples)
    assert task.run(rows.Recorder(logp=lambda request: -9.0)).results["acc"] == 0


@pytest.mark.parametrize("name", GENERATED)
def test_generations(name, tmp_path):
    row, splits, answer = GENERATED[name]
    items = put(tmp_path, name, row, splits)
    task = open_task(name, TaskSettings(data_dir=tmp_path))
    turns = iter(items)
    right = task.run(rows.Recorder(answer=lambda prompt: answer(next(turns))))
    assert right.results["n"] == ITEMS and right.results["problems"] == {}
    matches = [metric for metric in right.samples[0]["metrics"] if metric.startswith("exact_match")]
    assert matches and all(right.results[metric] == 1 for metric in matches)
    assert not any(sample["failed"] for sample in right.samples)
    wrong = task.run(rows.Recorder(answer=lambda prompt: "I cannot say")).results
    assert all(wrong[metric] == 0 for metric in matches) and wrong["n"] == ITEMS


def test_programs_and_instructions(tmp_path):
    problems = put(tmp_path, "humaneval", rows.humaneval, ["test"])
    solutions = {row["prompt"]: row["canonical_solution"] for row in problems}
    task = open_task("humaneval", TaskSettings(data_dir=tmp_path, limit=6))
    assert task.run(rows.Recorder(answer=solutions.get)).results["pass@1"] == 1
    assert task.run(rows.Recorder(answer=lambda prompt: "    return None\n")).results["pass@1"] == 0
    put(tmp_path, "ifeval", rows.ifeval, ["train"])
    task = open_task("ifeval", TaskSettings(data_dir=tmp_path))
    outcome = task.run(rows.Recorder(answer=lambda prompt: "Three good words without"))
    assert outcome.results["prompt_strict"] == outcome.results["instruction_loose"] == 1 and outcome.results["n"] == ITEMS
    assert outcome.results["problems"] == {} and outcome.samples[3]["doc_id"] == "1003" and not outcome.samples[3]["failed"]
    outcome = task.run(rows.Recorder(answer=lambda prompt: "Two, words"))
    assert outcome.results["prompt_strict"] == 0 and outcome.results["instruction_strict"] == 0 and outcome.samples[0]["failed"]


def test_instructions_that_nobody_can_verify_are_not_asked(tmp_path):
    folder = tmp_path / "ifeval"
    folder.mkdir()
    good = rows.ifeval(0, "train")
    broken = [
        good | {"key": 5, "prompt": "p", "kwargs": []},
        good | {"key": 6, "prompt": "q", "instruction_id_list": ["x:y", "x:z"]},
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [good, *broken]))
    model = rows.Recorder(answer=lambda prompt: "Three good words")
    results = open_task("ifeval", TaskSettings(data_dir=tmp_path)).run(model).results
    assert results["n"] == 1 and len(model.prompts) == 1
    assert [example.split(":")[0] for example in results["problems"]["malformed_items"]["examples"]] == ["5", "6"]


@pytest.mark.parametrize(
    "name", [*CHOICES, *CONTINUATIONS, *GENERATED, "humaneval", "humaneval_instruct", "ifeval", "perplexity"]
)
def test_malformed_items_of_each_task_are_named(name, tmp_path):
    spec = read_spec(FOLDER / f"{name}.yaml", name)
    where = tmp_path / spec.get("folder", name) / "a"
    where.mkdir(parents=True)
    file = (spec.get("files") or "x.jsonl").rpartition("/")[2]
    broken = [
        {},
        {"question": None, "answer": 3},
        {"text": 5},
        {"prompt": "p", "kwargs": 3},
        {"query": "q", "choices": [], "gold": 0},
    ]
    (where / file).write_text("not JSON\n[]\n" + "".join(json.dumps(row) + "\n" for row in broken[:4]), encoding="utf-8")
    model = rows.Recorder(answer=lambda prompt: "x")
    results = open_task(name, TaskSettings(data_dir=tmp_path, num_fewshot=0)).run(model).results
    named = sum(problem["n"] for kind, problem in results["problems"].items())
    scored = 1 if name == "perplexity" else 0  # a text of one digit
    assert results["n"] == scored and named == 6 - scored, results
    assert len(model.asked) + len(model.prompts) == 0


@pytest.mark.parametrize("name", ["mmlu", "hellaswag", "gsm8k", "winogrande"])
def test_two_runs_give_the_same_bytes(name, tmp_path):
    row, splits = (CHOICES | GENERATED)[name][:2]
    put(tmp_path, name, row, splits)
    settings = TaskSettings(data_dir=tmp_path, num_fewshot=3)
    told = [json.dumps(open_task(name, settings).run(rows.Recorder(answer=lambda prompt: prompt[-9:]))) for _ in range(2)]
    assert told[0] == told[1]


def test_every_task_file_tells_where_it_is_from():
    for path in FOLDER.glob("*.yaml"):
        spec = read_spec(path, path.stem)
        if spec["kind"] in ("choice", "generation", "rolling", "ifeval", "code"):
            own = path.stem == "perplexity" or spec.get("data", "").startswith("builtin:")
            assert "arXiv" in spec["about"] or own, path
