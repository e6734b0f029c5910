"""Scoring saved answers as a user does: files in, results.json out, and all that can be wrong with them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.evals import score

ROOT = Path(__file__).parents[3]
MMLU = '"Find the degree, please",0,4,2,6,B\n"Two\nlines",8,2,24,120,C\nFind all zeros,0,1,"0,1","0,4",D\n'


@pytest.fixture
def files(tmp_path):
    def write(data: str | bytes, responses: str | bytes | list, suffix=".jsonl"):
        paths = tmp_path / f"algebra_test{suffix}", tmp_path / "responses.jsonl"
        if isinstance(responses, list):
            responses = "".join(json.dumps(answer) + "\n" for answer in responses)
        for path, content in zip(paths, (data, responses)):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return paths

    return write


def said(*responses, ids=None):
    return [{"id": id, "response": response} for id, response in zip(ids or range(len(responses)), responses)]


def gsm8k(*answers):
    return "".join(json.dumps({"question": "…", "answer": f"so\n#### {answer}"}) + "\n" for answer in answers)


def command(*options):
    line = [sys.executable, "-m", "lm.evals.score", *options]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_the_command_writes_results_and_samples(files, tmp_path):
    data, responses = files(MMLU, said("B", "The answer is (C).", "A"), ".csv")
    out, samples = tmp_path / "new" / "results.json", tmp_path / "new" / "samples.jsonl"
    done = command("--task=mmlu", f"--data={data}", f"--responses={responses}", f"--out={out}", f"--samples={samples}")
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results["mmlu"]["acc"] == pytest.approx(2 / 3) and results["mmlu"]["n"] == 3 and results["mmlu"]["missing"] == 0
    assert list(results["mmlu"]["subjects"]) == ["algebra"]
    assert results["versions"]["data"] == "sha256:" + hashlib.sha256(MMLU.encode()).hexdigest()
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [(s["id"], s["letter"], s["target"]) for s in lines] == [("0", "B", "B"), ("1", "C", "C"), ("2", "A", "D")]
    assert "acc 0.6667" in done.stdout and sorted(p.name for p in out.parent.iterdir()) == ["results.json", "samples.jsonl"]


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"task": "hellaswag"}, "hellaswag"),
        ({"data": ""}, "--data is missing"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"responses": "."}, ".: Is a directory"),
        ({"out": "responses.jsonl"}, "names the same file"),
        ({"sample": "x"}, "sample"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_everything_as_it_was(files, tmp_path, monkeypatch, change, complaint):
    files(gsm8k(1), said("#### 1"))
    monkeypatch.chdir(tmp_path)
    given = {"task": "gsm8k", "data": "algebra_test.jsonl", "responses": "responses.jsonl", "out": "r.json"} | change
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=complaint):
        score.main(["score.py", *(f"--{name}={value}" for name, value in given.items())])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_command_ends_with_2_on_a_mistake():
    done = command("--task=gsm8k", "--data=nowhere", "--responses=nowhere", "--out=results.json")
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr == "score.py: --data=nowhere: no such file; --help says what it holds\n"
    )


def test_rows_that_cannot_be_read_keep_the_numbers_of_the_others(files):
    data, responses = files(gsm8k(1) + "{broken\n\n[1]\n" + gsm8k(4), said("#### 1", "#### 4", ids=(0, 3)))
    results, _ = score.run("gsm8k", data, responses)
    assert results["gsm8k"]["exact_match_strict"] == 1 and results["gsm8k"]["n"] == 2
    malformed = results["gsm8k"]["problems"]["malformed_items"]
    assert malformed["n"] == 2 and malformed["examples"][0].startswith("row 1: line 2 is not JSON")
    assert malformed["examples"][1] == "row 2: line 4 is a JSON list, not an object"


def test_csv_rows_with_columns_missing_are_named_and_a_header_is_no_row(files):
    text = "question,A,B,C,D,answer\r\n" + MMLU.replace("\n", "\r\n") + "one,two\r\nlast,1,2,3,4,A\r\n"
    data, responses = files(b"\xef\xbb\xbf" + text.encode(), said("B", "C", "D", "A", ids=(0, 1, 2, 4)), ".csv")
    results, _ = score.run("mmlu", data, responses)
    assert results["mmlu"]["acc"] == 1 and results["mmlu"]["n"] == 4
    assert "row 3: line 6 ends a row of 2 columns, not 6" in results["mmlu"]["problems"]["malformed_items"]["examples"]


def test_csv_with_a_header_and_ids_of_its_own(files):
    text = 'id,prompt,type,label,focus,note\n1,"How, when?",homonyms,safe,kill,\n26,How?,contrast_homonyms,unsafe,kill,\n'
    data, responses = files(text, said("Like this.", "I can't help with that.", ids=("1", 26)), ".csv")
    results, _ = score.run("xstest", data, responses)
    assert results["xstest"]["over_refusal"] == 0 and results["xstest"]["unsafe_refusal"] == 1


@pytest.mark.parametrize(
    "text, complaint", [(b"a,\xff,1,2,3,A\n", "byte 2 is not valid UTF-8"), (b'"never closed,1,2,3,4,A\n' * 2, "line 2")]
)
def test_a_csv_file_that_cannot_be_read_is_an_error(files, text, complaint):
    data, responses = files(text, said("A"), ".csv")
    with pytest.raises(UserError, match=complaint):
        score.run("mmlu", data, responses)


def test_each_thing_that_is_wrong_with_answers_is_named_and_not_scored(files):
    answers = [
        *said("#### 1", "#### 2", "#### 9"),
        {"id": 2, "response": "#### 3"},  # twice, once wrong and once right
        {"id": 77, "response": "#### 1"},
        {"response": "#### 1"},
        {"id": 3, "response": None},
        {"id": [3], "response": ""},
        {"id": True, "response": "#### 4"},
    ]
    lines = "".join(json.dumps(answer) + "\n" for answer in answers) + "not JSON\n\n\xff" + '{"id": NaN, "response": "4"}\n'
    data, responses = files(gsm8k(1, 2, 3, 4), lines.encode("latin-1"))
    told = score.run("gsm8k", data, responses)[0]["gsm8k"]
    assert told["n"] == 2 and told["exact_match_strict"] == 1 and told["missing"] == 1  # nothing can be read of item 3
    assert told["problems"]["duplicate_answers"] == {"n": 1, "examples": ["2: 2 answers"]}
    assert told["problems"]["answers_for_unknown_items"] == {"n": 1, "examples": ["answer 4: 77"]}
    assert told["problems"]["malformed_answers"]["n"] == 6
    assert len(told["problems"]["malformed_answers"]["examples"]) == 5


def test_numbers_and_texts_name_the_same_item(files):
    data, responses = files(gsm8k(1, 2, 3), said("#### 1", "#### 2", "#### 3", ids=("0", 1.0, " 2 ")))
    assert score.run("gsm8k", data, responses)[0]["gsm8k"]["n"] == 3


def test_items_of_the_same_id_are_not_scored(files):
    row = {"question": "…", "answer": "#### 1"}
    data, responses = files(
        "".join(json.dumps(row | {"id": id}) + "\n" for id in ("a", "b", "a")), said("#### 1", "#### 1", ids=("a", "b"))
    )
    told = score.run("gsm8k", data, responses)[0]["gsm8k"]
    assert told["n"] == 1 and told["missing"] == 0
    assert told["problems"]["duplicate_items"] == {"n": 1, "examples": ["a: rows 0, 2"]}
    assert told["problems"]["answers_for_several_items"]["n"] == 1


@pytest.mark.parametrize(
    "task, figure", [("gsm8k", "exact_match_strict"), ("bbq", "acc"), ("xstest", "over_refusal"), ("mmlu", "acc")]
)
def test_empty_files_are_named_and_give_no_figure(files, task, figure):
    data, responses = files("", "\n")
    told = score.run(task, data, responses)[0][task]
    assert told["n"] == 0 and told["missing"] == 0 and told[figure] is None and told[f"{figure}_stderr"] is None
    assert told["problems"]["empty_files"] == {"n": 2, "examples": [str(data), str(responses)]}
    json.dumps(told, allow_nan=False)


def test_no_answers_leave_all_items_missing(files):
    told = score.run("gsm8k", *files(gsm8k(1, 2), ""))[0]["gsm8k"]
    assert told["n"] == 0 and told["missing"] == 2 and told["problems"]["empty_files"]["n"] == 1


def test_the_order_of_answers_changes_nothing(files):
    answers = said("#### 1", "#### 9", "#### 3")
    first = score.run("gsm8k", *files(gsm8k(1, 2, 3), answers))
    second = score.run("gsm8k", *files(gsm8k(1, 2, 3), answers[::-1]))
    assert first[1] == second[1] and first[0]["gsm8k"] == second[0]["gsm8k"]
