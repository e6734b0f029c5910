"""The alignment report: runs of every method, complete, partial and hostile, and pages that stand alone."""

import json
import math
import re

import pytest

from lm.reports import align as align_report
from lm.reports.alignment_verdict import alignment_verdict
from lm.train import history
from tests.lm.reports.test_report import Page

HOSTILE = "4 </pre><script>alert(1)</script>"
FULL = {
    "title": "a <run>",
    "method": "grpo",
    "finished": True,
    "config": {"method": "grpo", "rl": {"beta": 0.0}},
    "machine": {"cpu": "Some CPU", "cores": 2},
    "parameters": 14_012_416,
    "trained": 120_000,
    "before": {"accuracy": 0.125, "format": 0.5},
    "after": {"accuracy": 0.875, "format": 0.25},
    "measures": {"accuracy": "right answers"},
    "data": {"train": {"examples": 5000, "dropped_too_long": 12}, "valid": {"examples": 200}},
    "notes": ["A dropped example would have kept no trained token."],
    "training": {"steps": 60, "tokens": 60_000, "skipped": 2},
    "next": [],
    "stages": {"data": 1.5, "training": 300.0},
}
HEADINGS = ["Answers before and after", "Data", "Before and after", "Curves", "Wall time", "Machine", "Config"]


def rl_lines(steps=60):
    for step in range(1, steps + 1):
        if step % 20 == 1:
            yield {"step": step - 1, "valid_reward": 0.1 + step / 100, "valid_accuracy": step / 100, "valid_mean_length": 9.0}
        yield {
            "step": step,
            "loss": 0.01 * math.sin(step),
            "reward": step / 100,
            "reward_std": 0.2,
            "kl": 0.01,
            "entropy": 1.0,
            "rewards/answer/mean": step / 100,
            "rewards/format/mean": 0.5,
            "rewards/format/std": 0.1,
            "clip_ratio/low_mean": 0,
            "clip_ratio/low_min": 0.0,
            "completions/mean_length": 20.0,
            "completions/clipped_ratio": 0.1,
            "frac_reward_zero_std": 0.2,
            "learning_rate": 1e-4,
            "grad_norm": 0.5,
            "tokens": 1000 * step,
            "skipped": 0,
            "tokens_per_second": 500.0,
            "mfu": 0.1,
            "seconds/rollout": 3.0,
            "seconds/update": 1.0,
            "val/explained": 0.5,
        }


def few_lines():
    for line in rl_lines():
        yield {key: x for key, x in line.items() if key in ("step", "loss", "valid_reward", "completions/clipped_ratio")}


def pair_lines():
    for step in range(1, 31):
        yield {
            "step": step,
            "loss": 0.7 - step / 100,
            "rewards/chosen": step / 10,
            "rewards/rejected": -step / 10,
            "rewards/margins": step / 5,
            "rewards/accuracies": 0.5 + step / 100,
            "logps/chosen": -9.0,
            "logps/rejected": -12.0,
        }
        if step % 10 == 0:
            yield {"step": step, "valid_loss": 0.6, "valid_rewards/accuracies": 0.7}


def samples():
    for step in (0, 20, 40):
        for question in ("2 + 2?", "<b>3 + 3?</b>"):
            yield {
                "step": step,
                "prompt": [{"role": "user", "content": question}],
                "completion": f"It is {step} or {HOSTILE}",
                "rewards": {"answer": 0.0, "format": 0.5},
                "reward": 0.1,
                "tokens": 7,
                "ended": step != 20,
            }


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def a_run(folder, told=FULL, lines=few_lines, shown=samples):
    folder.mkdir(exist_ok=True)
    write_lines(folder / "metrics.jsonl", lines())
    write_lines(folder / "samples.jsonl", shown())
    align_report.write(folder, told)
    return folder


def charts(text: str) -> list[str]:
    return re.findall(r"<h3>(.*?)</h3>", text)


def assert_stands_alone(text: str) -> Page:
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and "<script" not in text
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]+)|xlink:href="#([^"]+)"', text)) <= {(i, "") for i in ids} | {("", i) for i in ids}
    return page


def test_a_run_of_reinforcement_learning(tmp_path):
    text = (a_run(tmp_path, FULL, rl_lines) / "report.html").read_text(encoding="utf-8")
    page = assert_stands_alone(text)
    assert page.headings == HEADINGS
    assert charts(text) == [
        "Loss",
        "Reward",
        "Each reward",
        "Accuracy",
        "Distance from the reference",
        "Entropy",
        "Completion length",
        "Cut and idle",
        "val/explained",
        "Clipped ratios",  # these are folded
        "Learning rate",
        "Gradient norm",
        "Throughput",
    ]
    assert text.count("held out</text>") == 2  # beside the reward and the length; accuracy has no twin
    assert "Right answers (accuracy) rose from 0.125 to 0.875." in text
    assert "5,000 examples to train on and 200 held out." in text
    for cell in ("0.125 → 0.875", "+0.75", "14.01M", "(120k trained)", "75 %", "5,000", "dropped too long", "rl.beta"):
        assert cell in text, cell
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html", "report.json", "samples.jsonl"]
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved.pop("rollout_share") == 0.75 and saved.pop("alarms") == []
    assert saved == FULL | {"verdict": "Right answers (accuracy) rose from 0.125 to 0.875."}


def test_a_run_on_pairs_has_its_own_charts(tmp_path):
    told = {"method": "dpo", "after": {"win_rate": 0.7}}
    text = (a_run(tmp_path, told, pair_lines) / "report.html").read_text(encoding="utf-8")
    assert charts(text) == ["Loss", "Rewards of pairs", "Margin", "Preference accuracy", "Log-probabilities"]
    assert text.count("held out") == 2  # of the two charts that have a held-out twin
    assert "Chance is 0.5." not in text and "Chance is 0.5." in align_report.html({"before": {"rewards/accuracies": 0.0}})
    assert "win_rate is 0.7." in text


def test_the_first_and_the_newest_answer_stand_side_by_side_and_differences_are_marked(tmp_path):
    text = (a_run(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert text.index("Answers before and after") < text.index('class="tiles"')
    articles = text.split("<article>")[1:]
    assert len(articles) == 2
    assert "&lt;b&gt;3 + 3?&lt;/b&gt;" in articles[1]
    for article in articles:
        sides, between = article.split("<details>")[:2]
        assert [int(step) for step in re.findall(r"step (\d+)", sides)] == [0, 40]
        assert "step 40, reward 0.1 (answer 0, format 0.5), 7 tokens" in sides and "<ins>" not in sides
        assert [int(step) for step in re.findall(r"step (\d+)", between.split("</details>")[0])] == [20, 40]
        assert re.findall(r"<ins>(.*?)</ins>", between) == [" 20", " 40"]
        assert article.count("&lt;script&gt;") == 4


def test_a_long_run_shows_some_samples_and_stays_small(tmp_path):
    def many():
        for step in range(1000):
            yield {"step": step, "prompt": "tell", "completion": f"{step} " + "word " * 1000}

    text = (a_run(tmp_path, FULL, lambda: rl_lines(2000), many) / "report.html").read_text(encoding="utf-8")
    assert [int(step.replace(",", "")) for step in re.findall(r"step ([\d,]+)</p>", text)] == [0, 999, 250, 500, 749, 999]
    assert "more characters)" in text
    assert len(text) < 1_500_000


def test_marked_words_are_those_that_were_not_there():
    assert align_report.marked(None, "a <b>") == "a &lt;b&gt;"
    assert align_report.marked("a b c", "a x c d") == "a<ins> x</ins> c<ins> d</ins>"
    assert align_report.marked("same", "same") == "same"
    assert align_report.marked("", "new\n") == "<ins>new\n</ins>"


def test_what_was_dropped_is_counted_by_reason(tmp_path):
    split = {"examples": 50, "dropped": {"nothing to learn": 3}}
    data = {"kind": "pair", "read": {"dropped": {"no answer": 2}}, "train": split, "valid": {"examples": 5, "dropped": {}}}
    text = align_report.html({"data": {**data, "tasks": {"kind": "task", "train": {"examples": 70, "dropped": {}}}}})
    rows = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert rows == [
        ["", "read", "train", "valid", "tasks, train"],
        ["dropped, no answer", "2", "–", "–", "–"],
        ["examples", "–", "50", "5", "70"],
        ["dropped, nothing to learn", "–", "3", "–", "–"],
    ]


def test_a_conversation_with_tools_is_shown_turn_by_turn(tmp_path):
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "6 * 7"}}}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
    ]
    (shown,) = align_report.shown_samples([{"step": 1, "prompt": "6 * 7?", "completion": "It is 42.", "messages": turns}])
    assert shown["newest"]["text"].split("\n") == [
        '[assistant] {"name": "calculator", "arguments": {"expression": "6 * 7"}}',
        "[tool] 42",
        "[assistant] It is 42.",
    ]
    (shown,) = align_report.shown_samples([{"step": 1, "prompt": "6?", "completion": "six", "messages": turns[2:]}])
    assert shown["newest"]["text"] == "six"


def test_what_the_best_of_n_answers_are_worth(tmp_path):
    (tmp_path / "best_of").mkdir()
    statistics = {"prompts": 10, "answers": 40, "kept": 8, "cut": 1, "reward": {"1": 0.3, "4": 0.8}}
    statistics["pass"] = {"1": 0.25, "4": 0.75}
    (tmp_path / "best_of" / "statistics.json").write_text(json.dumps(statistics))
    text = (a_run(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert "Best of n" in Page(text).headings and "75.0 %" in text and "40 answers to 10 prompts, 8 of them kept" in text
    assert json.loads((tmp_path / "report.json").read_text())["best_of"] == statistics


def test_alarms_are_on_the_page_and_in_the_json(tmp_path):
    def broken():
        for line in few_lines():
            yield {**line, "completions/clipped_ratio": 0.9} if "loss" in line else line

    text = (a_run(tmp_path, FULL, broken) / "report.html").read_text(encoding="utf-8")
    assert Page(text).headings == [*HEADINGS[:2], "Alarms", *HEADINGS[2:]]
    (alarm,) = json.loads((tmp_path / "report.json").read_text())["alarms"]
    assert alarm["kind"] == "clipped" and alarm["step"] == 5
    assert alarm["text"] in text


@pytest.mark.parametrize("missing", [*FULL, "all"])
def test_a_missing_or_empty_part_leaves_its_section_out(missing):
    partial = {} if missing == "all" else {key: value for key, value in FULL.items() if key != missing}
    assert len(Page(align_report.html(partial)).headings) <= len(HEADINGS)
    if missing != "all":
        assert "None" not in align_report.html(FULL | {missing: None})
        Page(align_report.html(FULL | {missing: {}}))


def test_an_unfinished_run_whose_files_are_torn(tmp_path):
    good = {"step": 3, "loss": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(good) + '\n[1]\n{"loss": 2}\n{"step": 4, "lo')
    (tmp_path / "samples.jsonl").write_text('{"completion": "x"}\nnull\n{"step": 0, "prompt": null}\n{"st')
    align_report.write(tmp_path, {"finished": False, "before": {"accuracy": math.nan}})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This run is not finished: its metrics reach step 3." in text
    assert charts(text) == ["Loss"]


def test_lines_of_a_resumed_run_count_once(tmp_path):
    write_lines(
        tmp_path / "m",
        [{"step": 2, "loss": 2.0}, {"step": 1, "loss": 3.0}, {"step": 2, "valid_loss": 1.0}, {"step": 2, "loss": 1.5}],
    )
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5}, {"step": 2, "valid_loss": 1.0}]
    assert history.load_metrics(tmp_path / "m") == (lines[:2], lines[2:])


@pytest.mark.parametrize(
    "before, after, sentence",
    [
        ({}, {}, None),
        ({"a": 1}, {"a": None}, None),
        ({}, {"accuracy": 0.5}, "accuracy is 0.5."),
        ({"accuracy": 0.5}, {"accuracy": 0.5}, "accuracy stayed at 0.5."),
        ({"accuracy": 0.50001}, {"accuracy": 0.5}, "accuracy stayed at 0.5."),
        ({"accuracy": 0.5}, {"accuracy": 0.25, "loss": 1}, "accuracy fell from 0.5 to 0.25."),
        (
            {"loss": 2, "reward": 0},
            {"loss": 1, "reward": 0.5},
            "Mean reward of the model's answers to held-out prompts (reward) rose from 0 to 0.5.",
        ),
    ],
)
def test_nothing_is_called_better_without_its_held_out_examples(before, after, sentence):
    assert alignment_verdict({"before": before, "after": after}) == sentence


@pytest.mark.parametrize(
    "before, after, end",
    [
        ([2.0] * 3, [1.0, 1.1, 0.9], ": too few to tell (n = 3 held out)."),  # p = 2 / 2³
        ([2.0] * 8, [1.0, 1.1, 0.9, 1.0] * 2, ": better (95 % interval of the change -1.05 to -0.948, n = 8)."),
        ([1.0, 1.1, 0.9, 1.0] * 2, [2.0] * 8, ": worse (95 % interval of the change 0.948 to 1.05, n = 8)."),
        ([2.0] * 100, [1.9, 2.11] * 50, ": no more than chance (p = 0.64, n = 100)."),
    ],
)
def test_the_verdict_says_n_and_an_interval(before, after, end, tmp_path):
    sides = {"before": {"loss": [(x, 5.0) for x in before]}, "after": {"loss": [(x, 5.0) for x in after]}}
    (tmp_path / "held_out.json").write_text(json.dumps(sides))
    means = {side: {"loss": sum(x for x, _ in values["loss"]) / len(values["loss"])} for side, values in sides.items()}
    assert alignment_verdict(means | {"method": "sft"}, tmp_path).endswith(end)


@pytest.mark.parametrize(
    "hits, n, end",
    [
        (4, 4, "is 100 % of 4 (95 % interval 51 % to 100 %), where chance is 50 %: too few to tell."),
        (9, 10, "is 90 % of 10 (95 % interval 60 % to 98 %), where chance is 50 %: better than chance."),
    ],
)
def test_a_share_of_pairs_is_held_against_chance_since_0_before_is_by_construction(hits, n, end, tmp_path):
    name = "rewards/accuracies"
    values = [(1.0, 1.0)] * hits + [(0.0, 1.0)] * (n - hits)
    (tmp_path / "held_out.json").write_text(json.dumps({"before": {name: [(0.0, 1.0)] * n}, "after": {name: values}}))
    report = {"method": "dpo", "before": {name: 0.0}, "after": {name: hits / n}}
    assert alignment_verdict(report, tmp_path).endswith(end)
