"""Which files a task reads and in which forms: splits by name, published layouts, and groups by file."""

import json
import types

import pyarrow
import pyarrow.parquet
import pytest

from lm.errors import UserError
from lm.evals.task import TaskSettings
from lm.evals.tasks import items
from lm.evals.tasks.catalogue import open_task
from lm.evals.tasks.file_task import versions_of
from tests.lm.evals.tasks import task_rows as rows


def lines(path, *some):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")


@pytest.mark.parametrize(
    "path, split, label",
    [
        ("anatomy_test.csv", "test", "anatomy"),
        ("mmlu_us_law_dev.csv", "dev", "us_law"),
        ("val/high_school_physics_val.csv", "validation", "high_school_physics"),
        ("anatomy/test-00000-of-00001.parquet", "test", "anatomy"),
        ("us_law/auxiliary_train.jsonl", "train", "auxiliary"),
        ("train/algebra/1034.json", "train", "algebra"),
        ("ARC-Easy-Test.jsonl", "test", "arc_easy"),
        ("plain.jsonl", "test", "plain"),
        ("test.csv", "test", "mmlu"),
        ("data.jsonl.gz", "test", "data"),
    ],
)
def test_what_a_files_name_says(tmp_path, path, split, label):
    lines(tmp_path / path, {})
    [(found, paths)] = items.find_files(tmp_path).items()
    assert found == split and items.label(paths[0], tmp_path, "mmlu") == label


def test_files_that_are_no_data_are_left_alone(tmp_path):
    for name in ("README.md", "x.jsonl", ".git/y.jsonl", "__MACOSX/z.jsonl", "notes.txt", "d.jsonl/inner.csv"):
        lines(tmp_path / name, {})
    names = [path.relative_to(tmp_path).as_posix() for path in items.find_files(tmp_path)["test"]]
    assert names == ["d.jsonl/inner.csv", "x.jsonl"]


def outcome(tmp_path, name, **settings):
    return open_task(name, TaskSettings(data_dir=tmp_path, **settings)).run(rows.Recorder())


def test_mmlu_as_its_authors_publish_it(tmp_path):
    for split in ("dev", "val", "test"):
        folder = tmp_path / "mmlu" / split
        folder.mkdir(parents=True)
        for subject in ("anatomy", "us_foreign_policy"):
            content = f'"What of {split},\n""{subject}""?",1,"2, 3",4,5,{"C" if split == "dev" else "B"}\n'
            (folder / f"{subject}_{split}.csv").write_text(content)
    found = outcome(tmp_path, "mmlu", num_fewshot=1)
    assert [(s["group"], s["target"]) for s in found.samples] == [("anatomy", 1), ("us_foreign_policy", 1)]
    prompt = found.samples[1]["prompt"]
    assert "about us foreign policy.\n\nWhat of dev,\n" in prompt and "Answer: C\n\nWhat of test" in prompt
    assert "A. 1\nB. 2, 3\nC. 4\nD. 5\nAnswer:" in prompt and set(found.results["subjects"]) == {"anatomy", "us_foreign_policy"}
    assert set(found.results["problems"]) == {"tied_choices"}  # of a model that finds all as likely


def test_mmlu_as_tables_of_the_hub(tmp_path):
    for split, n in (("dev", 5), ("test", 3)):
        path = tmp_path / "mmlu" / "anatomy" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([rows.mmlu(i, split) for i in range(n)]), path)
    found = outcome(tmp_path, "mmlu", num_fewshot=5)
    assert found.results["n"] == 3 and found.samples[0]["prompt"].count("Answer:") == 6


def test_ai2s_own_form_gives_the_prompts_of_the_hubs(tmp_path):
    for name, row, stem in (("arc_easy", rows.arc, "question"), ("openbookqa", rows.openbookqa, "question_stem")):
        hub = [row(i, "test") for i in range(4)]
        nested = [
            {
                "id": one["id"],
                "answerKey": one["answerKey"],
                "question": {
                    "stem": one[stem],
                    "choices": [
                        {"text": text, "label": label} for text, label in zip(one["choices"]["text"], one["choices"]["label"])
                    ],
                },
            }
            for one in hub
        ]
        lines(tmp_path / "hub" / name / "test.jsonl", *hub)
        lines(tmp_path / "ai2" / name / "x-Test.jsonl", *nested)
        ours, theirs = (outcome(tmp_path / form, name).samples for form in ("hub", "ai2"))
        assert ours == theirs and len(ours) == 4 and [s["doc_id"] for s in ours] == [one["id"] for one in hub]


def test_labels_in_a_file_of_their_own(tmp_path):
    made = [rows.piqa(i, "validation") for i in range(4)]
    bare = [{key: value for key, value in row.items() if key != "label"} for row in made]
    lines(tmp_path / "piqa" / "valid.jsonl", *bare)
    labels = tmp_path / "piqa" / "valid-labels.lst"
    labels.write_text("0\n1\n1\n0\n")
    assert [s["target"] for s in outcome(tmp_path, "piqa").samples] == [0, 1, 1, 0]
    labels.write_text("0\n1\n")
    with pytest.raises(UserError, match="valid-labels.lst: 2 labels for the 4 rows of valid.jsonl"):
        outcome(tmp_path, "piqa")


def test_other_forms_of_boolq_truthfulqa_math_and_bbh(tmp_path):
    lines(
        tmp_path / "boolq" / "dev.jsonl", *[{"question": "q", "passage": "p", "title": "t", "answer": a} for a in (True, False)]
    )
    assert [s["target"] for s in outcome(tmp_path, "boolq").samples] == [1, 0]
    authors = [{"question": "q?", "mc1_targets": {"no": 0, "yes": 1}, "mc2_targets": {"no": 0, "yes": 1, "aye": 1}}]
    folder = tmp_path / "truthfulqa"
    folder.mkdir()
    (folder / "mc_task.json").write_text(json.dumps(authors))
    assert [s["target"] for s in outcome(tmp_path, "truthfulqa_mc1").samples] == [1]
    assert [s["target"] for s in outcome(tmp_path, "truthfulqa_mc2").samples] == [[1, 2]]
    (folder / "mc_task.json").unlink()
    head = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"
    (folder / "TruthfulQA.csv").write_text(f"{head}\nA,B,Why?,Yes it is,Yes it is; Aye,No;Never.,http\n")
    mc1, mc2 = (outcome(tmp_path, f"truthfulqa_mc{n}").samples[0] for n in (1, 2))
    assert mc1["choices"] == [" Yes it is", " No", " Never."] and mc1["target"] == 0
    assert mc2["choices"] == [" Yes it is", " Aye", " No", " Never."] and mc2["target"] == [0, 1]
    task = open_task("truthfulqa_gen", TaskSettings(data_dir=tmp_path, judge="openai:http://localhost"))
    assert task.documents.items[0].doc["correct_answers"][0] == "Yes it is."
    (tmp_path / "math" / "test" / "geometry").mkdir(parents=True)
    for n in (7, 12):
        row = rows.math(n, "test") | {"type": "Counting & Probability"}
        (tmp_path / "math" / "test" / "geometry" / f"{n}.json").write_text(json.dumps(row))
    assert [s["group"] for s in outcome(tmp_path, "math").samples] == ["counting_and_probability"] * 2
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh" / "snarks.json").write_text(
        json.dumps({"canary": "…", "examples": [rows.bbh(i, "test") for i in range(3)]})
    )
    found = outcome(tmp_path, "bbh")
    assert found.results["n"] == 3 and found.samples[0]["prompt"].startswith("Determine which of two sentences is sarcastic.")


def test_examples_are_other_items_where_their_split_is_missing_and_that_is_named(tmp_path):
    lines(tmp_path / "gsm8k" / "gsm8k_test.jsonl", *[rows.gsm8k(i, "test") for i in range(7)])
    task = open_task("gsm8k", TaskSettings(data_dir=tmp_path))
    found = task.run(rows.Recorder(answer=lambda prompt: "7"))
    assert found.results["problems"]["examples_from_evaluated_split"]["n"] == 1 and task.versions["fewshot_split"] == "test"
    for sample in found.samples:
        assert sample["prompt"].count("Question:") == 6
        own = sample["prompt"].rpartition("Question:")[2]
        assert sample["prompt"].count(own.removesuffix("\nAnswer:")) == 1


def test_a_malformed_example_makes_the_items_malformed_that_show_it(tmp_path):
    lines(
        tmp_path / "arc_easy" / "train.jsonl",
        *[rows.arc(i, "train") | ({"answerKey": "Z"} if i == 0 else {}) for i in range(6)],
    )
    lines(tmp_path / "arc_easy" / "test.jsonl", *[rows.arc(i, "test") for i in range(8)])
    found = outcome(tmp_path, "arc_easy", num_fewshot=2)
    named = found.results["problems"]["malformed_items"]
    assert 0 < named["n"] < 8 and found.results["n"] == 8 - named["n"] and "its example" in named["examples"][0]


def test_an_evaluation_of_before_is_still_finished():
    """Another digest of the prompts would compute every finished task again."""
    settings = TaskSettings(chat=True, system="Be brief.", seed=3)
    documents = types.SimpleNamespace(num_fewshot=2, versions={"split": "test"})
    found = versions_of({"kind": "generation", "doc_to_text": "{{question}}"}, settings, documents)
    assert found["prompts"] == "sha256:0027684c8c9cf62c61389075bd08643fd983be50d5c84d03d0c5af83e250aa0f"


def test_versions_tell_data_and_prompts_apart(tmp_path):
    lines(tmp_path / "arc_easy" / "test.jsonl", rows.arc(0, "test"))
    first = open_task("arc_easy", TaskSettings(data_dir=tmp_path)).versions
    assert first == open_task("arc_easy", TaskSettings(data_dir=tmp_path)).versions
    chat = open_task("arc_easy", TaskSettings(data_dir=tmp_path, chat=True)).versions
    assert chat["prompts"] != first["prompts"] and chat["data"] == first["data"]
    lines(tmp_path / "arc_easy" / "test.jsonl", rows.arc(1, "test"))
    other = open_task("arc_easy", TaskSettings(data_dir=tmp_path)).versions
    assert other["data"] != first["data"] and other["prompts"] == first["prompts"]
