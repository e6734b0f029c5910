"""Choices by likelihood: the metrics on hand-worked and on the harness's figures, and all that can be wrong with items."""

import json
import math
import random

import pytest

from lm.errors import UserError
from lm.evals.task import TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.tasks import task_rows as rows

ALL = "[acc, acc_norm, acc_bytes, acc_per_token, acc_mutual_info, mc1, mc2]"


@pytest.fixture
def run(tmp_path):
    """The outcome of a task over the given rows; keys of its file over those here."""

    def call(items, logp=None, *, keys="", metrics="[acc]", **settings):
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
        (folder / "test.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        path = tmp_path / "own.yaml"
        lines = ["kind: choice", "doc_to_text: question", "doc_to_choice: options", "doc_to_target: answer"]
        own = {line.split(":")[0] for line in keys.splitlines()}
        lines = [line for line in lines if line.split(":")[0] not in own]
        path.write_text("\n".join([*lines, f"metric_list: {metrics}", keys]), encoding="utf-8")
        model = rows.Recorder(logp=logp or (lambda request: -float(len(request.continuation))))
        return open_task(str(path), TaskSettings(data_dir=tmp_path, **settings)).run(model), model

    return call


def item(question, options, answer, **more):
    return {"question": question, "options": options, "answer": answer, **more}


def test_each_metric_on_a_hand_worked_item(run):
    # Likeliest as a whole, by token, and beyond its own likelihood: the first; by character: the second; by byte: the third.
    given = {"no": -2.0, "of course": -4.5, "éééé éé": -4.2}
    alone = {"no": -3.0, "of course": -4.0, "éééé éé": -4.0}

    def logp(request):
        return (given if request.context else alone)[request.continuation.strip()]

    outcome, model = run([item("Q", list(given), n) for n in range(3)], logp, metrics=ALL)
    right = {name: [s["metrics"][name] for s in outcome.samples] for name in outcome.samples[0]["metrics"]}
    assert right["acc"] == right["mc1"] == right["acc_mutual_info"] == [1, 0, 0]
    assert right["acc_norm"] == [0, 1, 0]  # -1, -0.5, -0.6
    assert right["acc_bytes"] == [0, 0, 1]  # -1, -0.5, -0.323
    assert right["acc_per_token"] == [1, 0, 0]  # -2, -2.25, -2.1
    masses = [math.exp(value) for value in given.values()]
    assert right["mc2"] == pytest.approx([mass / sum(masses) for mass in masses])
    assert outcome.results["acc"] == pytest.approx(1 / 3) and outcome.results["n"] == 3
    assert outcome.results["acc_stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))
    assert outcome.results["chance"] == pytest.approx(1 / 3)
    assert model.calls == 1 and len(model.asked) == 18
    sample = outcome.samples[1]
    assert sample["prompt"] == "Q" and sample["choices"] == [" no", " of course", " éééé éé"]
    assert sample["loglikelihoods"] == [-2.0, -4.5, -4.2] and sample["tokens"][1] == [[0], [0, 1]]
    assert sample["loglikelihoods_alone"] == [-3.0, -4.0, -4.0] and "flags" not in sample
    assert sample["target"] == 1 and sample["reference"] == "of course" and sample["failed"]
    assert not outcome.samples[0]["failed"]


def test_likelihoods_after_nothing_are_asked_for_only_where_they_are_needed(run):
    _, model = run([item("Q", ["a", "bb"], 0)], metrics="[acc, acc_norm]")
    assert [request.context for request in model.asked] == ["Q", "Q"]
    _, model = run([item("Q", ["a", "bb"], 0)], metrics="[acc_mutual_info]")
    assert [tuple(request) for request in model.asked] == [("Q", " a"), ("Q", " bb"), ("", " a"), ("", " bb")]


def test_several_right_choices(run):
    outcome, _ = run([item("Q", ["aaa", "b", "cc"], [0, 2])], metrics="[acc, acc_norm, mc2]")
    p = [math.exp(-4), math.exp(-2), math.exp(-3)]
    assert outcome.samples[0]["metrics"] == {"acc": 0, "acc_norm": 1, "mc2": pytest.approx((p[0] + p[2]) / sum(p))}
    assert outcome.samples[0]["target"] == [0, 2] and outcome.results["chance"] == pytest.approx(2 / 3)


def test_a_target_may_be_the_text_of_a_choice_or_a_truth_value(run):
    outcome, _ = run([item("Q", ["no", "yes!"], "no"), item("Q", ["no", "yes!"], False), item("Q", ["no", "yes!"], "1")])
    assert [s["target"] for s in outcome.samples] == [0, 0]
    assert outcome.results["problems"]["targets_out_of_range"]["examples"] == ["2: target '1' of 2 choices"]


def test_contexts_may_be_the_choices(run):
    """As in WinoGrande: what follows is the same after either."""
    keys = "doc_to_text: answer\ndoc_to_choice: options\ndoc_to_target: rest"
    items = [item("", ["The cup", "The box"], n, rest="is big.") for n in (0, 1, 7)]
    outcome, model = run(items, lambda request: -1.0 if request.context == "The box" else -2.0, keys=keys)
    assert [tuple(request) for request in model.asked] == [("The cup", " is big."), ("The box", " is big.")] * 2
    assert [s["metrics"]["acc"] for s in outcome.samples] == [0, 1]
    assert outcome.samples[0]["prompt"] == ["The cup", "The box"]
    assert outcome.results["problems"]["targets_out_of_range"]["n"] == 1


def test_a_continuation_without_choices(run):
    keys = "doc_to_choice:\ndoc_to_target: \" {{answer}}\"\ntarget_delimiter: ''"
    logps = iter([-0.25, -2.0])
    items = [item("The sky is", None, "blue"), item("The sea is", None, "green")]
    outcome, model = run(items, lambda request: next(logps), keys=keys, metrics="[acc, perplexity]")
    assert [tuple(request) for request in model.asked] == [("The sky is", " blue"), ("The sea is", " green")]
    assert outcome.results["acc"] == 0.5 and outcome.results["perplexity"] == pytest.approx(math.exp(2.25 / 2))
    assert outcome.results["perplexity_stderr"] == pytest.approx(math.exp(2.25 / 2) * 1.75 / 2)
    assert [s["failed"] for s in outcome.samples] == [False, True] and "acc_stderr" in outcome.results


def test_the_first_of_equally_likely_choices_counts_and_ties_are_named(run):
    outcome, _ = run([item("Q", ["a", "b"], 0), item("Q", ["a", "b"], 1), item("Q", ["a", "bb", "cc"], 0)])
    assert [s["metrics"]["acc"] for s in outcome.samples] == [1, 0, 1]
    assert outcome.results["problems"]["tied_choices"]["n"] == 2
    assert [sample.get("flags") for sample in outcome.samples] == [["tied_choices"], ["tied_choices"], None]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_likelihood_that_is_no_number_is_named_and_not_scored(run, value):
    items = [item("Q", ["a", "bb"], 0), item("R", ["a", "bb"], 1), item("S", ["a", "bb"], 0)]
    outcome, _ = run(items, lambda request: value if request == ("R", " a") else -float(len(request.continuation)))
    assert outcome.results["n"] == 2 and outcome.results["acc"] == 1
    assert outcome.results["problems"]["loglikelihoods_not_finite"]["n"] == 1
    assert outcome.samples[1]["metrics"] == {"acc": None} and not outcome.samples[1]["failed"]


def test_malformed_items_are_named_and_the_others_keep_their_numbers(run):
    good = item("Q", ["a", "bb"], 0)
    broken = ["{nonsense", "[1]", good | {"question": None}, good | {"options": ["a", ""]}, good | {"options": "ab"}]
    out = [good | {"answer": 2}, good | {"answer": -1}, good | {"answer": 0.5}, good | {"answer": "c"}]
    outcome, model = run([good, *broken, *out, good, {"question": "Q"}])
    assert [s["doc_id"] for s in outcome.samples] == [0, 10] and outcome.results["acc"] == 1
    problems = outcome.results["problems"]
    assert problems["malformed_items"]["n"] == 6 and problems["targets_out_of_range"]["n"] == 4
    assert any(example.startswith("row 1: line 2 is not JSON") for example in problems["malformed_items"]["examples"])
    assert len(model.asked) == 4


def test_items_that_share_an_id_are_not_scored(run):
    items = [item("Q", ["a", "bb"], 0, id=id) for id in ("x", "y", "x", None, 7)]
    outcome, _ = run(items)
    assert [s["doc_id"] for s in outcome.samples] == ["y", 3, "7"]
    assert outcome.results["problems"]["duplicate_items"] == {"n": 1, "examples": ["x: 2 rows"]}


def test_an_empty_file_has_no_figures(run):
    outcome, model = run([])
    assert outcome.results["acc"] is None and outcome.results["n"] == 0 and model.asked == []
    assert outcome.results["problems"]["empty_files"] == {"n": 1, "examples": ["test.jsonl"]}


def test_groups_and_their_means(run):
    items = [item("Q", ["a", "bb"], n, subject=s) for s, n in [("art", 0), ("art", 0), ("law", 1), ("art", 1), ("law", 0)]]
    keys = "group_by: subject\nareas: {whole: [art, law], none: [maths]}"
    outcome, _ = run([*items, item("Q", ["a", "bb"], 0)], keys=keys)
    results = outcome.results
    assert results["acc"] == 3 / 5 and results["acc_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    errors = [math.sqrt(2 / 9 / 2), math.sqrt(1 / 4 / 1)]
    assert results["subjects"]["law"] == {"acc": 0.5, "acc_stderr": pytest.approx(errors[1]), "n": 2}
    assert results["acc_macro_stderr"] == pytest.approx(math.hypot(*errors) / 2)
    assert results["areas"] == {"whole": {"acc": 3 / 5, "acc_stderr": results["acc_stderr"], "n": 5}}
    assert results["problems"]["malformed_items"]["examples"] == ["row 5: no 'subject'"]


def test_a_limit_holds_for_each_group(run):
    items = [item("Q", ["a", "bb"], 0, subject=s) for s in "aaabbbbb"]
    for limit, ids in ((2, [0, 1, 3, 4]), (0.4, [0, 1, 3, 4]), (None, list(range(8))), (99, list(range(8)))):
        outcome, _ = run(items, keys="group_by: subject", limit=limit)
        assert [s["doc_id"] for s in outcome.samples] == ids


def test_a_run_leaves_nothing_for_the_next(run, tmp_path):
    rows.put(tmp_path / "mmlu", rows.mmlu, {"test": 4})
    task = open_task("mmlu", TaskSettings(data_dir=tmp_path))
    first, second = (task.run(rows.Recorder(logp=lambda request: math.nan)) for _ in range(2))
    assert json.dumps(first) == json.dumps(second) and first.results["problems"]["loglikelihoods_not_finite"]["n"] == 4


@pytest.mark.parametrize(
    "keys, told",
    [
        ("doc_to_txt: x", "doc_to_txt: no such key; did you mean doc_to_text?"),
        ("doc_to_text: '{{question'", "doc_to_text: unexpected end"),
        ("num_fewshot: many", "num_fewshot: 'many' is no int"),
        ("fewshot_config: {sampler: balanced}", "fewshot_config.sampler: 'balanced' is none of default, first_n"),
        ("process: lm.evals.tasks.formats:nothing", "process: 'lm.evals.tasks.formats:nothing' is no module:function"),
        ("test_split: train\nnum_fewshot: 9", "num_fewshot: only 2 examples are available"),
        ("data: hub/name", "data: 'hub/name' is neither builtin:NAME nor a file beside the task's"),
        ("doc_to_target:", "doc_to_target is missing"),
    ],
)
def test_mistakes_in_a_task_file(run, keys, told):
    with pytest.raises(UserError) as error:
        run([item("Q", ["a", "bb"], 0)] * 2, keys=keys)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_unknown_metrics_and_missing_data(run, tmp_path):
    with pytest.raises(UserError, match="metric_list: 'accuracy' is none of acc"):
        run([item("Q", ["a", "bb"], 0)], metrics="[accuracy]")
    with pytest.raises(UserError, match="metric_list: acc: aggregation: no such key"):
        run([item("Q", ["a", "bb"], 0)], metrics="[{metric: acc, aggregation: mean}]")
    with pytest.raises(UserError, match="--config.data_dir is missing"):
        open_task("piqa", TaskSettings())
    with pytest.raises(UserError, match="no file .*put the benchmark's files there"):
        open_task("piqa", TaskSettings(data_dir=tmp_path))
    (tmp_path / "piqa").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "piqa" / f"{split}.jsonl").write_text("{}\n")
    assert open_task("piqa", TaskSettings(data_dir=tmp_path)).versions["split"] == "dev"  # stands in for validation
    (tmp_path / "piqa" / "dev.jsonl").rename(tmp_path / "piqa" / "more_train.csv")
    (tmp_path / "piqa" / "x_unlabelled.jsonl").mkdir()
    assert open_task("piqa", TaskSettings(data_dir=tmp_path)).versions["split"] == "train"


def test_figures_are_those_of_the_harness(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask

    class Made(ConfigurableTask):
        def download(self, dataset_kwargs=None, **kwargs):
            import datasets

            self.dataset = {"test": datasets.Dataset.from_list([rows.arc(i, "test") for i in range(40)])}

    metrics = ["acc", "acc_norm", "acc_bytes", "acc_mutual_info"]
    theirs = Made(
        config={
            "task": "made",
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "{{choices.text}}",
            "doc_to_target": "{{choices.label.index(answerKey)}}",
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        }
    )
    rows.put(tmp_path / "made", rows.arc, {"test": 40})
    path = tmp_path / "made.yaml"
    path.write_text(
        "kind: choice\ndoc_to_text: question\ndoc_to_choice: '{{choices.text}}'\n"
        f"doc_to_target: '{{{{choices.label.index(answerKey)}}}}'\nmetric_list: [{', '.join(metrics)}]\n"
    )
    draw, told = random.Random(3), {}
    model = rows.Recorder(logp=lambda request: told.setdefault(request, -draw.expovariate(0.1)))
    outcome = open_task(str(path), TaskSettings(data_dir=tmp_path)).run(model)
    assert outcome.results["n"] == 40
    for sample, doc in zip(outcome.samples, theirs.test_docs()):
        alone = [told[("", choice)] for choice in sample["choices"]]
        answers = [(logp, False) for logp in sample["loglikelihoods"] + alone]
        assert theirs.process_results(doc, answers) == sample["metrics"]
