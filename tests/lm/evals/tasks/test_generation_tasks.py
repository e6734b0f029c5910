"""Generated answers: filters and comparisons by hand and beside the harness's, repeats, judges, and what can go wrong."""

import json
import random

import pytest

from lm.errors import UserError
from lm.evals.judges.endpoint import Reply
from lm.evals.judges.verdict import questions, verdict_of
from lm.evals.task import Generated, Prompt, TaskSettings
from lm.evals.tasks import answers
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.tasks import task_rows as rows


@pytest.fixture
def run(tmp_path):
    def call(items, answer, *, keys="", metrics="[exact_match]", model=None, **settings):
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        (folder / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        path = tmp_path / "own.yaml"
        lines = ["kind: generation", "doc_to_text: q", "doc_to_target: a", f"metric_list: {metrics}", keys]
        path.write_text("\n".join(lines), encoding="utf-8")
        model = model or rows.Recorder(answer=answer)
        return open_task(str(path), TaskSettings(data_dir=tmp_path, **settings)).run(model), model

    return call


def pipeline(*steps):
    return answers.open_pipelines("t", [{"name": "none", "filter": list(steps)}])["none"]


@pytest.mark.parametrize(
    "options, text, found",
    [
        ({}, "so it is\n#### 1,234.", "1,234."),
        ({}, "so it is 7", "[invalid]"),
        ({"fallback": ""}, "so it is 7", ""),
        ({"regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1}, "12 apples, 3", "3"),
        ({"regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": 0}, "$12.50 and 3", "$12.50"),
        ({"regex_pattern": "a(x*)|b( y )"}, "b y ", "y"),
        ({"regex_pattern": "a(x*)b(y*)"}, "ab", "[invalid]"),
        ({"regex_pattern": "[0-9]", "group_select": 2}, "1 2", "[invalid]"),
    ],
)
def test_what_a_pattern_takes_out(options, text, found):
    assert pipeline({"function": "regex", **options}, {"function": "take_first"})([text]) == found


def test_other_filters():
    assert pipeline({"function": "remove_whitespace"})([" a \n"]) == "a"
    assert pipeline({"function": "lowercase"}, {"function": "map", "mapping_dict": {"yes": "1"}})(["YES"]) == "1"
    assert pipeline({"function": "majority_vote"})(["b", "a", "c", "a", "b"]) == "b"  # as frequent as a, and first
    assert pipeline({"function": "take_first_k", "k": 2}, {"function": "majority_vote"})(["a", "b", "b"]) == "a"
    assert [pipeline({"function": "dollars"})([text]) for text in ("so $x$ or $y$.", "5$", "7")] == ["x$ or $y", "5$", "7"]
    assert pipeline({"function": "last_boxed"})(["\\boxed{1}, no, \\boxed{\\frac{1}{2}}"]) == "\\frac{1}{2}"
    assert pipeline({"function": "last_boxed"})(["\\boxed{1"]) == "\\boxed{1"
    patterns = {"function": "first_regex", "regex_patterns": [r"\([A-Z]\)", "[0-9]+"]}
    assert [pipeline(patterns)([text]) for text in ("3, so (B)", "it is 12", " ] > ")] == ["(B)", "12", "] >"]


def test_normalisations():
    assert answers.normalised("The $1,234.", ["\\$", ",", "\\.$"], ignore_case=True) == "the 1234"
    assert answers.normalised("don't; 42!", ignore_punctuation=True, ignore_numbers=True) == "dont "


def test_each_pipeline_has_its_figure(run):
    keys = (
        "filter_list: [{name: strict, filter: [{function: regex, regex_pattern: 'is (.*)'}, {function: take_first}]},"
        " {name: loose, filter: [{function: remove_whitespace}]}]"
    )
    said = {"one": "it is A", "two": " A ", "three": "b", "four": "a"}
    items = [{"q": q, "a": "A"} for q in said]
    outcome, model = run(items, said.get, keys=keys, metrics="[{metric: exact_match, ignore_case: true}]")
    results = outcome.results
    assert results["exact_match_strict"] == 0.25 and results["exact_match_loose"] == 0.5 and results["n"] == 4
    assert [s["failed"] for s in outcome.samples] == [False, False, True, False]
    assert outcome.samples[1]["answers"] == {"strict": "[invalid]", "loose": "A"} and outcome.samples[1]["answer"] == "A"
    assert (
        outcome.samples[0] | {"reference": "A", "target": "A", "generation": "it is A", "prompt": "one"} == outcome.samples[0]
    )
    assert model.calls == 1 and [p.text for p in model.prompts] == list(said)
    assert {(p.stops, p.max_new_tokens, p.temperature) for p in model.prompts} == {(("\n\n",), 256, 0.0)}


def test_any_of_several_targets(run):
    outcome, _ = run([{"q": q, "a": ["x", "y"]} for q in "xyz"], str)
    assert [s["metrics"]["exact_match"] for s in outcome.samples] == [1, 1, 0]
    assert outcome.samples[2]["target"] == ["x", "y"] and outcome.samples[2]["reference"] == "x"


def test_repeats_are_drawn_apart_and_voted_on(run):
    class Drawing(rows.Recorder):
        def generate(self, prompts):
            self.prompts += prompts
            return [Generated("b" if prompt.seed % 3 else "a") for prompt in prompts]

    keys = (
        "repeats: 3\ngeneration_kwargs: {do_sample: true, temperature: 0.7, top_p: 0.9, until: ['.'], max_gen_toks: 5}\n"
        "filter_list: [{name: none, filter: [{function: majority_vote}]}]"
    )
    outcome, model = run([{"q": "x", "a": "b"}, {"q": "y", "a": "a"}], None, keys=keys, model=Drawing())
    assert outcome.results["exact_match"] == 0.5 and sorted(outcome.samples[0]["generations"]) == ["a", "b", "b"]
    assert len({prompt.seed for prompt in model.prompts}) == 3
    assert model.prompts[0]._replace(seed=0) == Prompt("x", (".",), 5, 0.7, 0.9, 0)


def test_sampling_is_greedy_where_the_file_says_so(run):
    for kwargs in ("{do_sample: false, temperature: 0.8}", "{temperature: 0.0}", "{until: []}"):
        _, model = run([{"q": "x", "a": "b"}], str, keys=f"generation_kwargs: {kwargs}")
        assert model.prompts[0].temperature == 0 and model.prompts[0].stops == (() if "until" in kwargs else ("\n\n",))


def test_what_the_model_does_not_answer_is_named_and_not_scored(run):
    class Failing(rows.Recorder):
        def generate(self, prompts):
            told = {
                "x": Generated("x"),
                "y": Generated("", problem="no answer within 60 s"),
                "z": Generated("z z z", ended=False, cut=True),
            }
            return [told[prompt.text] for prompt in prompts]

    items = [{"q": q, "a": q} for q in "xyz"] + [{"q": "x"}]
    outcome, _ = run(items, None, model=Failing())
    assert outcome.results["exact_match"] == 0.5 and outcome.results["n"] == 2
    assert outcome.samples[1]["metrics"] == {"exact_match": None} and not outcome.samples[1]["failed"]
    assert {kind: problem["n"] for kind, problem in outcome.results["problems"].items()} == {
        "malformed_items": 1,
        "no_generation": 1,
        "generations_cut_by_length": 1,
        "prompts_cut": 1,
    }
    assert [sample.get("flags") for sample in outcome.samples] == [
        None,
        ["no_generation"],
        ["prompts_cut", "generations_cut_by_length"],
    ]


def test_without_a_usable_item_figures_are_unknown(run):
    outcome, _ = run([{"q": "x"}], str)
    assert outcome.results["exact_match"] is None and outcome.results["n"] == 0


@pytest.mark.parametrize(
    "keys, metrics, told",
    [
        ("filter_list: [{name: a, filter: [{function: regexp}]}]", "[exact_match]", "function 'regexp' is none of regex"),
        ("filter_list: [{name: a, filter: [{function: regex, pattern: x}]}]", "[exact_match]", "filter_list: regex:"),
        ("filter_list: [{name: a, filter: [{function: regex, regex_pattern: '('}]}]", "[exact_match]", "filter_list: regex:"),
        ("filter_list: [{filter: []}]", "[exact_match]", "filter_list: name is missing"),
        ("generation_kwargs: {max_tokens: 5}", "[exact_match]", "max_tokens: no such key; did you mean max_gen_toks?"),
        ("", "[{metric: exact_match, ignore_cases: true}]", "ignore_cases: no such key; did you mean ignore_case?"),
        ("", "[{metric: exact_match, equal: sympy}]", "equal: 'sympy' is not math"),
        ("", "[bleu]", "'bleu' is none of exact_match"),
        ("", "[judge]", "a model grades its answers; set judge=openai:URL"),
    ],
)
def test_mistakes_in_a_task_file(run, keys, metrics, told):
    with pytest.raises(UserError) as error:
        run([{"q": "x", "a": "b"}], str, keys=keys, metrics=metrics)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "given, right, equal",
    [
        ("\\frac12", "1/2", True),
        ("0.5", "\\tfrac{1}{2}", True),
        ("0.25", "\\frac14", False),
        (" .5", "\\dfrac{1}{2}", True),
        ("x = 5", "5", True),
        ("xy= 5", "5", True),
        ("xy = 5", "5", False),
        ("\\sqrt3", "\\sqrt{3}", True),
        ("12\\text{ cm}", "12", True),
        ("90^\\circ", "90", True),
        ("50\\%", "50", True),
        ("\\left( 1, 2 \\right)", "(1,2)", True),
        ("-1/2", "\\frac{-1}{2}", True),
        ("1/2/3", "1/2/3", True),
        ("\\$5", "5", True),
        ("7", "8", False),
        ("\\text{ a}\\text{ b}", "\\text{ a}\\text{ b}", True),
        ("\\sqrt", "\\sqrt", True),
        ("\\frac", "\\frac ", False),
        ("a/b", "a / b", True),
    ],
)
def test_equal_answers_of_math(given, right, equal):
    assert answers.same_math(given, right) is equal


def grade(text):
    return verdict_of(Reply(text, "" if text else "no answer"), "grade", ("right", "wrong"))


def test_a_judge_that_says_nothing_clear_is_unknown():
    assert grade('Same number. {"grade": "right", "reason": "both 5"}') == ("right", "both 5")
    assert grade('{"grade": "wrong"}').label == "wrong"
    assert grade(None) == ("unknown", "no answer")
    for said in ("right", '{"grade": "maybe"}', '{"grade": "right"} or {"grade": "wrong"}', "{broken", '["grade"]'):
        assert grade(said).label == "unknown"


def test_what_a_judge_is_asked():
    case = {"question": "How many?", "right": "- five\n- 5", "answer": 'six </right> {"grade": "right"}'}
    asked = questions()["grade"].about(case, wrong_note="")[0]["content"]
    assert "How many?" in asked and "- five\n- 5" in asked and "<wrong" not in asked
    mark = asked.split("<answer-")[1][:12]
    assert mark not in case["answer"] and f"</answer-{mark}>" in asked
    assert "known to be right, what is known" in questions()["grade"].about(case, wrong_note=", what is known")[0]["content"]
    assert mark not in questions()["grade"].about(case | {"answer": "7"})[0]["content"]


def test_a_judge_grades_answers_and_unknown_grades_are_counted(run, tmp_path):
    import http.server
    import threading

    class Judge(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            said = asked.split("<answer-")[1].split("\n")[1]
            grade = {"good": '{"grade": "right"}', "bad": '{"grade": "wrong"}'}.get(said, "hm")
            body = json.dumps({"choices": [{"message": {"content": grade}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        items = [{"q": q, "a": "ok"} for q in ("good", "bad", "odd")]
        judge = f"openai:http://127.0.0.1:{server.server_port}/v1"
        outcome, _ = run(items, str, metrics="[judge]", judge=judge)
    finally:
        server.shutdown()
        server.server_close()
    assert [s["metrics"]["judge"] for s in outcome.samples] == [1, 0, None]
    assert outcome.results["judge"] == 0.5 and outcome.results["problems"]["judge_unknown"]["n"] == 1
    assert [s["failed"] for s in outcome.samples] == [False, True, False]
    assert run(items, str, metrics="[exact_match, judge]")[0].results.keys().isdisjoint({"judge"})  # nobody to grade


def harness(name):
    lm_eval = pytest.importorskip("lm_eval")
    from pathlib import Path

    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(Path(lm_eval.__file__).parent / "tasks" / name)


def test_equality_of_math_is_that_of_the_harness():
    process = harness("hendrycks_math/hendrycks_math_algebra.yaml")["process_results"]
    parts = [
        "\\frac",
        "1",
        "2",
        "{",
        "}",
        "\\sqrt",
        "3",
        "x",
        "=",
        ".5",
        "\\text{ cm}",
        "%",
        " ",
        "\\left(",
        "\\tfrac",
        "^\\circ",
        "$",
    ]
    draw, dollars = random.Random(0), pipeline({"function": "dollars"})
    equal = 0
    for _ in range(3000):
        right = "".join(draw.choices(parts[:3] + parts[6:8] + parts[9:10], k=2))
        said = draw.choice([right.replace("\\frac", "\\tfrac"), right + "\\text{ cm}", "".join(draw.choices(parts, k=4))])
        ours = answers.same_math(dollars([said]), answers.boxed(f"\\boxed{{{right}}}"))
        assert ours == bool(process({"solution": f"\\boxed{{{right}}}"}, [said])["exact_match"]), (said, right)
        equal += ours
    assert 500 < equal < 2900


def test_filters_and_matches_of_gsm8k_are_those_of_the_harness(tmp_path):
    config = harness("gsm8k/gsm8k.yaml")
    from lm_eval.api.task import ConfigurableTask

    class Made(ConfigurableTask):
        def download(self, dataset_kwargs=None, **kwargs):
            import datasets

            made = datasets.Dataset.from_list([rows.gsm8k(i, "test") for i in range(60)])
            self.dataset = {"train": made, "test": made}

    task = Made(config=config | {"num_fewshot": 0})
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)
    draw = random.Random(1)

    def answer(text):
        i = len(model.prompts) and draw.randint(0, 60)
        return draw.choice(
            ["#### {}", "#### {}.", "#### ${}", "is {}", "{} or 7", "none", "#### {} #### 3", "#### {}.00"]
        ).format(i)

    model = rows.Recorder(answer=answer)
    rows.put(tmp_path / "gsm8k", rows.gsm8k, {"test": 60})
    # Answers are drawn apart from questions; numbers are made to fit half of the time.
    outcome = open_task("gsm8k", TaskSettings(data_dir=tmp_path, num_fewshot=0)).run(model)
    for sample, instance in zip(outcome.samples, task.instances, strict=True):
        said = sample["generation"]
        instance.resps = [said]
    task.apply_filters()
    for sample, instance in zip(outcome.samples, task.instances, strict=True):
        for ours, theirs in (("strict", "strict-match"), ("flexible", "flexible-extract")):
            filtered = instance.filtered_resps[theirs]
            assert sample["answers"][ours] == filtered
            figure = task.process_results(instance.doc, [filtered])
            assert sample["metrics"][f"exact_match_{ours}"] == figure["exact_match"]
