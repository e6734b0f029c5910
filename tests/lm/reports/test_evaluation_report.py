"""The page of an evaluation: of whole runs, of little, of what is broken and hostile; and of runs held against one another."""

import json
import re

import pytest

from lm.evals.compare import compare
from lm.evals.outcomes import means
from lm.reports import evaluate as evaluation_report
from lm.reports.evaluation_items import gather, margin
from tests.lm.reports.evaluation_runs import HOSTILE, a_run, choices, read
from tests.lm.reports.test_align_report import assert_stands_alone, charts
from tests.lm.reports.test_report import Page

ABOUT = {
    "title": "of a <run>",
    "machine": {"cpu": "Some CPU", "cores": 2},
    "throughput": {"tokens_per_second": 12345.6},
    "stages": {"mmlu": 3.0, "gsm8k": 70.0},
    "config": {"tasks": "mmlu,gsm8k"},
    "finished": True,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: a_run(folder / name, skill, seed) for name, skill, seed in (("weak", 0.35, 1), ("good", 0.6, 2))}


@pytest.fixture(scope="module")
def page(runs):
    evaluation_report.write(runs["good"], *read(runs["good"]), [("weak", *read(runs["weak"]))], about=ABOUT)
    return (runs["good"] / "report.html").read_text(encoding="utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without tags, and without cells that draw intervals."""
    part = text[text.index(f"<h2>{heading}</h2>") :]
    part = part[: part.index("</table>")]
    cells = r"""<t[dh](?! class="intervals")[^>]*>(.*?)</t[dh]>"""
    found = [re.findall(cells, row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in found]


def test_a_whole_run(page):
    assert assert_stands_alone(page).headings == [
        "What was run",
        "Tasks",
        "Against weak",
        "Calibration",
        "mmlu, in parts",
        "bbq, in parts",
        "redteam, in parts",
        "Worst items",
        "Problems",
        "Wall time",
        "Machine",
        "Config",
    ]
    assert charts(page) == ["closed_book: calibration"]
    for said in ("12.35k", "versions.jax", "0.10.2", "seeds.fewshot", "1 min 10 s", "Some CPU", "of a &lt;run&gt;"):
        assert said in page, said
    assert page.count("<svg") == len(charts(page))


def test_the_table_has_every_task_with_its_error(page, runs):
    results, _ = read(runs["good"])
    rows = table(page, "Tasks")
    heads = ["task", "metric", "value", "against chance", "95 % interval", "± stderr", "n", "failed", "problems"]
    assert rows[0] == heads
    assert [row[:2] for row in rows[1:]] == [
        ["mmlu", "acc"],
        ["arc_easy", "acc_norm"],
        ["gsm8k", "exact_match"],
        ["closed_book", "exact_match"],
        ["bbq", "acc"],
        ["redteam", "attack_success ↓"],
        ["wikitext", "bits_per_byte ↓"],
    ]
    mmlu = rows[1]
    assert float(mmlu[2]) == pytest.approx(results["mmlu"]["acc"], abs=1e-3)
    assert float(mmlu[5]) == pytest.approx(results["mmlu"]["acc_stderr"], abs=1e-3)
    low, high = map(float, mmlu[4].split(" to "))
    assert (low + high) / 2 == pytest.approx(results["mmlu"]["acc"], abs=1e-3)
    assert mmlu[3] == "above chance (25 %)" and rows[3][3] == ""  # chance of choices alone
    assert mmlu[6] == "60" and mmlu[8] == "1"
    assert table(page, "Problems")[1][:3] == ["mmlu", "malformed items", "1"]


def test_nothing_of_a_run_can_break_the_page(page):
    page_of = Page(page)
    assert "script" not in page_of.tags and "img" not in page_of.tags
    assert "onerror" not in {name for name, _ in page_of.attributes}
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    escaped = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = escaped.replace("\u202e", "\\u202e").replace("\x07", "\\x07")  # characters that hide or turn others
    assert f"An example\nAnswer: A\n\nQuestion 0: {escaped}\nAnswer:".split("Question 0")[1] in re.sub(
        r"Question \d+", "Question 0", page
    )


def test_runs_are_compared(page, runs):
    assert "Against weak: better at mmlu, arc_easy, gsm8k, closed_book, bbq, redteam, wikitext." in page
    rows = table(page, "Against weak")
    assert [row[0] for row in rows[1:]] == ["mmlu", "arc_easy", "gsm8k", "closed_book", "bbq", "redteam", "wikitext"]
    assert all("better" in row[4] for row in rows[1:]) and rows[1][6] == "&lt; 0.001"
    told = json.loads((runs["good"] / "report.json").read_text())
    assert told["comparison"]["weak"]["tasks"]["mmlu"]["n"] == 60 and told["machine"] == ABOUT["machine"]


def test_a_worse_run_says_so_and_names_what_does_not_join(tmp_path, runs):
    weak = a_run(tmp_path / "again", 0.35, 1)
    lines = (weak / "samples.jsonl").read_text().replace("Question 0:", "Question zero:")
    (weak / "samples.jsonl").write_text(lines)
    others = [("good", *read(runs["good"])), ("good", *read(runs["good"]))]
    evaluation_report.write(weak, *read(weak), others)
    text = (weak / "report.html").read_text(encoding="utf-8")
    assert "Against good: worse at mmlu" in text and "<h2>Against good 2</h2>" in text
    assert "mmlu: 1 items are asked differently, not comparable and left out: 0" in text
    assert any("worse" in row[4] for row in table(text, "Against good")[1:])
    assert_stands_alone(text)


def test_a_run_against_itself_differs_beyond_chance_in_nothing(runs):
    results, _ = read(runs["good"])
    comparison = {"itself": compare(runs["good"], runs["good"])}
    judged = evaluation_report.against_chance(results, {})
    found = evaluation_report.verdict({"run-2": results, "itself": results}, judged, comparison)
    assert (
        found[0] == "run-2 was evaluated on 480 items of 7 tasks." and found[-1] == "Against itself: no significant difference."
    )


def test_a_run_of_the_same_name_is_not_lost(tmp_path, runs):
    told = evaluation_report.write(tmp_path, *read(runs["good"]), [("run-2", *read(runs["weak"]))])
    assert list(told["comparison"]) == ["run-2 2"] and "Against run-2 2: better" in (tmp_path / "report.html").read_text()


def alone(tmp_path, samples, results):
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    evaluation_report.write(tmp_path, results, tmp_path / "samples.jsonl")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_stands_alone(text)
    return text


def test_of_what_is_unknown_nothing_is_drawn(tmp_path):
    nothing = means([], ("acc",))
    text = alone(tmp_path, [], {"mmlu": nothing, "gsm8k": {"n": 0, "problems": {}}})
    assert charts(text) == [] and "Nothing was wrong" in text
    assert table(text, "Tasks")[1] == ["mmlu", "acc", "–", "", "", "–", "0", "–", "0"]
    assert "on 0 items of 0 tasks" in alone(tmp_path, [], {"versions": {}})


def test_a_task_name_with_a_formula_is_no_formula(tmp_path):
    text = alone(tmp_path, [], {"$\\frac{1}{$ \x00 <b>": {"acc": 0.5, "acc_stderr": 0.1, "n": 4, "problems": {}}})
    assert charts(text) == [] and "&lt;b&gt;" in text and "<b>" not in table(text, "Tasks")[1][0]


def test_lines_lie_on_the_scale_of_their_metric():
    runs = {
        "own": {
            "bbq": {"s_amb": -0.5, "s_amb_stderr": 0.1, "n": 9},
            "share": {"acc": 0.02, "acc_low": -0.09, "acc_high": 0.13, "n": 9},
        },
        "other": {"bbq": {"s_amb": 0.5, "s_amb_stderr": 0.1, "n": 9}},
    }
    lines = evaluation_report.intervals("bbq", runs, None)["lines"]
    assert lines == [pytest.approx([15.2, 25, 34.8], abs=0.01), pytest.approx([65.2, 75, 84.8], abs=0.01)]
    assert evaluation_report.intervals("share", runs, 0.25) == {"mark": 25.0, "lines": [pytest.approx([0, 2, 13]), None]}
    assert evaluation_report.intervals("loss", {"own": {"loss": {"bits_per_byte": 1.5, "n": 9}}}, None) is None


def test_of_many_subjects_the_worst_come_first(tmp_path):
    subjects = {f"subject_{i:02}": {"acc": (i * 9 % 70) / 80, "acc_stderr": 0.05, "n": 100} for i in range(70)}
    text = alone(tmp_path, [], {"mmlu": {"acc": 0.4, "acc_stderr": 0.01, "n": 7000, "subjects": subjects, "problems": {}}})
    assert "subjects: 70 rows, the worst first" in text
    rows = table(text, "mmlu, in parts")[1:]
    assert [float(row[2]) for row in rows] == sorted(float(row[2]) for row in rows) and len(rows) == 70
    assert 'style="width:0.0%"' in text and 'style="width:86.2%"' in text


def test_each_measure_of_confidence_has_its_charts(tmp_path):
    bins = [{"low": 0, "high": 0.5, "confidence": 0.3, "accuracy": 0.2, "n": 4}]
    curve, nothing = {"bins": {"equal_width": bins}}, {"bins": {"equal_width": []}}
    figures = {"accuracy": 0.5, "accuracy_stderr": 0.1, "n": 4, "problems": {}}
    text = alone(
        tmp_path,
        [],
        {
            "triviaqa": figures | {"calibration": curve | {"p_true": curve}},
            "nq": figures | {"calibration": {"p_true": nothing}},
        },
    )
    assert charts(text) == ["triviaqa: calibration", "triviaqa, p_true: calibration"]


def test_several_budgets_of_thoughts_have_a_curve(tmp_path):
    results = {
        f"sums@{n}": {"exact_match": n / 100, "exact_match_stderr": 0.03, "n": 50, "thought_tokens": 3.0} for n in (8, 64, 0)
    }
    alone = {"gsm8k@8": {"exact_match": 0.5, "n": 50}, "a@b": {"exact_match": 0.5, "n": 50}}
    (tmp_path / "samples.jsonl").write_text("")
    evaluation_report.write(tmp_path, results | alone, tmp_path / "samples.jsonl")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert charts(page) == ["sums: exact_match"] and "Thinking" in assert_stands_alone(page).headings


def test_contamination_is_told(tmp_path):
    scores = {"all": 0.5, "clean": 0.375, "clean_stderr": 0.125, "dirty": 1.0}
    found = {"mmlu": {"items": 10, "dirty": 2, "untold": 1, "metrics": {"acc": scores}}}
    text = alone(tmp_path, [], {"mmlu": {"acc": 0.5, "acc_stderr": 0.1, "n": 10, "problems": {}}, "contamination": found})
    assert table(text, "Contamination")[1] == ["mmlu", "10", "2", "1", "acc", "0.5", "0.375", "0.125", "1"]


def test_the_worst_items_are_those_it_was_surest_of():
    samples = [
        {
            "task": "t",
            "doc_id": i,
            "prompt": f"p{i}",
            "choices": [" a", " b", " c"],
            "target": 0,
            "failed": m > 0,
            "loglikelihoods": [-5.0, -5.0 + m, -9.0],
            "metrics": {},
        }
        for i, m in enumerate([1.0, 3.0, -2.0, 0.5, 2.0, float("nan")])
    ]
    found = gather(samples)["t"]
    assert [(item["item"], item["margin"]) for item in found["worst"]] == [("1", 3.0), ("4", 2.0), ("0", 1.0)]
    assert found["worst"][0]["wrong"] == "b" and found["worst"][0]["gold"] == "a"
    assert found["failed"] == 4 and found["n"] == 6 and found["chance"] == pytest.approx(1 / 3)
    assert margin(samples[2]) == -2.0 and margin(samples[5]) is None
    assert margin({"loglikelihoods": [-1.0, -2.0, -4.0], "target": [1, 2]}) == 1.0
    sure = [{"task": "q", "doc_id": i, "prompt": "?", "confidence": c, "failed": True} for i, c in enumerate([0.2, 0.9, None])]
    assert [item["item"] for item in gather(sure)["q"]["worst"]] == ["1", "0", "2"]
    several = {"task": "w", "doc_id": 0, "prompt": ["It was A", "It was B"], "target": 1, "failed": True}
    assert [text for _, text in gather([several])["w"]["worst"][0]["prompt"]] == ["It was A", "It was B"]


def test_a_long_run_makes_a_small_page(tmp_path):
    samples = choices("mmlu", 2000, 0.5, 0)
    for sample in samples:
        sample["prompt"] = "word " * 20_000
    text = alone(tmp_path, samples[:50], {"mmlu": means(samples, ("acc",))})
    assert "characters are left out here; samples.jsonl has them" in text and len(text) < 300_000


GUESSED = {"n": 100, "chance": 0.25, "problems": {}, "num_fewshot": 0}


def test_the_first_tile_is_an_accuracy(tmp_path):
    results = {"wikitext": {"n": 9, "bits_per_byte": 1.5}, "quiz": {"n": 9, "acc": 1 / 3}}
    (tmp_path / "samples.jsonl").touch()
    evaluation_report.write(tmp_path, results, tmp_path / "samples.jsonl")
    tiles = re.findall(r"<b>([^<]*)</b><span>([^<]*)</span></div>", (tmp_path / "report.html").read_text())
    assert tiles[:2] == [("33.3 %", "quiz, acc"), ("1.5", "wikitext, bits_per_byte")]


def test_a_result_that_is_no_better_than_chance_is_marked(tmp_path):
    figures = {"acc": 0.3, "acc_stderr": 0.046, "acc_norm": 0.6, "acc_norm_stderr": 0.049} | GUESSED
    results = {"mmlu": figures, "gsm8k": {"exact_match": 0.1, "exact_match_stderr": 0.03, "n": 100, "problems": {}}}
    text = alone(tmp_path, [], results)
    assert table(text, "Tasks")[1][3] == "no better than chance (25 %)" and table(text, "Tasks")[2][3] == ""
    assert '<u style="left:25.0%">' in text and text.count('class="interval"') == 2
    told = json.loads((tmp_path / "report.json").read_text())["tasks"]
    assert told["mmlu"]["metrics"]["acc"]["chance"] == 0.25 and told["mmlu"]["metrics"]["acc"]["above_chance"] is False
    assert told["mmlu"]["metrics"]["acc_norm"]["above_chance"] is True
    unknown = told["gsm8k"]["metrics"]["exact_match"]
    assert unknown["chance"] is None and unknown["above_chance"] is None
    assert unknown["value"] == 0.1 and unknown["interval"] == pytest.approx([0.0412, 0.1588], abs=1e-4)
    better = alone(tmp_path, [], {"mmlu": figures | {"acc": 0.9}})
    assert "above chance (25 %)" in better and "no better than chance (25 %)" not in better


def a_result(n, acc, **more):
    figures = {"acc": acc, "acc_stderr": (acc * (1 - acc) / n) ** 0.5} | GUESSED | {"n": n}
    return {
        "mmlu": figures,
        "arc_easy": figures | {"acc": acc + 0.3},
        "gsm8k": {"exact_match": 0.1, "exact_match_stderr": 0.03, "n": n, "num_fewshot": 5},
        "model": {"name": "own", "fingerprint": "ab", "dtype": "bfloat16"},
        "chat_template": {"applied": False, "kind": "none"},
        "limit": n,
    } | more


def verdict(results, others=None, comparison=None):
    judged = evaluation_report.against_chance(results, {})
    return evaluation_report.verdict({"own": results} | (others or {}), judged, comparison or {})


def test_the_verdict_compares_with_chance():
    assert verdict(a_result(100, 0.3)) == [
        "own was evaluated on 300 items of 3 tasks (mmlu, arc_easy, gsm8k).",
        "1 of the 2 tasks with a chance level is above it. "
        "Relative to chance, arc_easy is best: acc 60 %, above chance (25 %); "
        "mmlu is worst: acc 30 %, no better than chance (25 %).",
        "Without a chance level: gsm8k: exact_match 10 %.",
    ]
    centred = {"core": {"core": 0.02, "core_stderr": 0.02, "n": 22, "centred": {}}}
    assert "core: core 2 %, no better than chance (0 %)." in verdict(a_result(100, 0.3) | centred)


def test_the_verdict_names_the_settings_in_which_runs_differ():
    other = a_result(100, 0.3, limit=50) | {"model": {"name": "b", "dtype": "float32"}}
    del other["gsm8k"]  # whose number of examples is then no difference
    nothing = {"tasks": {}, "only_before": [], "only_after": []}
    assert verdict(a_result(100, 0.3), {"b": other}, {"b": nothing})[3:5] == [
        "Against b: no significant difference.",
        "Its settings differ from those of b: dtype of matrix products (float32 there, bfloat16 here); "
        "limit (50 items of each task or group there, 100 items of each task or group here).",
    ]


def test_what_results_depend_on_stands_near_the_top(tmp_path):
    results = {"mmlu": {"acc": 0.3, "acc_stderr": 0.1} | GUESSED, "gsm8k": {"exact_match": 0.1, "n": 9, "num_fewshot": 5}}
    results |= {"model": {"name": "own", "fingerprint": "ab", "dtype": "bfloat16"}, "limit": 0.1, "seed": 3}
    results |= {"chat_template": {"applied": True, "kind": "chatml.jinja"}}
    text = alone(tmp_path, [], results)
    part = text[text.index("<h2>What was run</h2>") : text.index("<h2>Tasks</h2>")]
    for key, fact in (
        ("dtype of matrix products", "bfloat16"),
        ("chat template", "chatml.jinja"),
        ("examples in the prompt (num_fewshot)", "0: mmlu; 5: gsm8k"),
        ("limit", "10 % of each task or group"),
    ):
        assert f"<tr><td>{key}</td><td>{fact}</td></tr>" in part
    old = alone(tmp_path, [], {"mmlu": {"acc": 0.3, "acc_stderr": 0.1, "n": 9}, "model": "old"})
    assert "dtype of matrix products" not in old  # what was not recorded is not told
