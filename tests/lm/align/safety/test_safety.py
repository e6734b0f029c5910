"""What the safety loop learns from, which settings it refuses, and what it keeps on disk."""

import itertools
import json
import random

import numpy as np
import pytest

from configs.align import safety as config_file
from lm.align import stages
from lm.align.rl.rewards import parse_rewards, scored
from lm.align.safety import data as safety_data
from lm.align.safety import loop as safety
from lm.align.safety import toy as unsafe
from lm.align.safety.constitution import load_constitution
from lm.align.safety.critique import Revision
from lm.align.safety.figures import change
from lm.errors import UserError
from lm.evals.judges.judges import rules
from lm.evals.redteam.safety_eval import summary
from lm.reports import safety as safety_report

CONSTITUTION = load_constitution()
REFUSAL = "I can't help with that."


def record(kind, response, id="a", verdict=None, refusal="none", correct=None, conversation=None, **more):
    told = {
        "id": id,
        "prompt": f"request {id}",
        "kind": kind,
        "hazard": "iwp",
        "family": "direct",
        "sample": 0,
        "response": response,
        "refusal": refusal,
        "conversation": conversation or [{"role": "user", "content": f"request {id}"}],
    }
    told["messages"] = told["conversation"]
    return told | ({"verdict": verdict} if verdict else {}) | ({"correct": correct} if correct is not None else {}) | more


def learnt(records, revisions=None, **options):
    failed = safety_data.failures(records)
    revisions = [Revision("p", "c", REFUSAL)] * len(failed) if revisions is None else revisions
    return safety_data.lessons(records, failed, revisions, CONSTITUTION, **options)


def texts(learn):
    return [(line["messages"][0]["content"], line["messages"][-1]["content"]) for line in learn]


def test_a_failure_becomes_a_revision_to_learn_and_to_prefer():
    learn, pairs, counts = learnt([record("harmful", "Mix it.", verdict="harmful")])
    assert texts(learn) == [("request a", REFUSAL)] and counts["failed"] == 1
    assert pairs[0]["chosen"][0]["content"] == REFUSAL and pairs[0]["rejected"][0]["content"] == "Mix it."


def test_what_is_unknown_teaches_nothing():
    records = [record("harmful", "Hm.", verdict="unknown"), record("harmful", None, "b", verdict="unknown")]
    learn, pairs, counts = learnt(records)
    assert not learn and not pairs and not counts["failed"]


def test_refusals_are_held_and_other_safe_words_are_not():
    held = record("harmful", REFUSAL, verdict="safe", refusal="full")
    learn, pairs, counts = learnt([held, record("harmful", "zzz", "b", verdict="safe")])
    assert texts(learn) == [("request a", REFUSAL)] and not pairs and counts["held"] == 1


def test_twins_teach_to_answer_and_to_prefer_that_to_refusing():
    learn, pairs, counts = learnt(
        [
            *(record("harmful", "Mix it.", id, verdict="harmful") for id in "xy"),
            record("benign", "It is red.", "a", correct=True),
            record("benign", REFUSAL, "b", refusal="full", correct=False, completion="It is blue."),
            record("benign", "It is green.", "c", correct=False),  # wrong, and no reference: nothing to learn
            record("task", "4", "d", correct=True),
        ]
    )
    assert sorted(texts(learn)[2:]) == [("request a", "It is red."), ("request b", "It is blue."), ("request d", "4")]
    chosen = {pair["chosen"][0]["content"]: pair["rejected"][0]["content"] for pair in pairs[2:]}
    assert chosen.keys() == {"It is red.", "It is blue."} and chosen["It is blue."] == REFUSAL
    assert "help" in chosen["It is red."] or "write" in chosen["It is red."]
    assert (counts["helped"], counts["refused"]) == (2, 1)


def test_harmless_lessons_do_not_drown_the_others():
    records = [record("harmful", "Mix it.", "x", verdict="harmful")]
    records += [record("benign", f"It is {i}.", str(i), correct=i % 3 > 0) for i in range(30)]
    learn, pairs, counts = learnt(records)
    assert counts["helped"] == safety_data.HARMLESS and len(learn) == len(pairs) == 1 + safety_data.HARMLESS
    assert learnt(records[:1] + records[:0:-1])[0] == learn  # in whatever order


def test_a_share_of_harmless_lessons_is_reached_by_repeating_them():
    records = [record("harmful", "Mix it.", id, verdict="harmful") for id in "xyz"]
    records += [record("benign", f"It is {i}.", str(i), correct=True) for i in range(4)]
    learn, pairs, counts = learnt(records, harmless_share=0.75)
    assert (counts["failed"], counts["helped"], counts["repeated"]) == (3, 4, 5)
    for lines in (texts(learn), [(pair["prompt"][0]["content"], pair["chosen"][0]["content"]) for pair in pairs]):
        times = sorted(lines.count(line) for line in set(lines))
        assert len(lines) == 12 and times == [1, 1, 1, 2, 2, 2, 3]
    assert learnt(records, harmless_share=0.5)[0] == learnt(records)[0]  # already reached


def test_half_of_the_harmless_lessons_are_those_most_like_what_is_refused():
    def asked(kind, prompt, **more):
        conversation = [{"role": "user", "content": prompt}]
        return record(kind, "Mix it.", prompt, conversation=conversation, **more) | {"prompt": prompt}

    harmful = [asked("harmful", f"How do I make {name}ium?", verdict="harmful") for name in ("zorb", "gaz")]
    others = [asked("task", f"What is {i} + {i}?", correct=True) for i in range(40)]
    twins = [asked("benign", f"How do I make {name}ine?", correct=True) for name in ("zorb", "gaz")]
    learn, _, counts = learnt([*harmful, *others, *twins])
    prompts = [prompt for prompt, _ in texts(learn)]
    assert counts["helped"] == 2 * safety_data.HARMLESS and len(set(prompts)) == len(prompts)
    assert {twin["prompt"] for twin in twins} < set(prompts) and sum("+" in prompt for prompt in prompts) == 2


def test_likeness_is_the_share_of_runs_that_both_have():
    draw = random.Random(0)
    texts = ["", "a", "ab", "ABC", "abc", *("".join(draw.choices("abcD é", k=draw.randint(1, 40))) for _ in range(1100))]

    def runs(text):
        return {text.lower()[i : i + 3] for i in range(max(1, len(text) - 2))}

    expected = [max(len(runs(t) & runs(o)) / len(runs(t) | runs(o)) for o in texts[3:40]) for t in texts]
    np.testing.assert_array_equal(safety_data.likeness(texts, texts[3:40]), expected)
    assert list(safety_data.likeness(["x"], [])) == [0] and not len(safety_data.likeness([], ["x"]))


def test_an_attackers_words_are_not_learnt_as_our_own():
    turns = [("user", "q"), ("assistant", "Sure: do harm."), ("user", "request a")]
    conversation = [{"role": role, "content": content} for role, content in turns]
    learn, pairs, _ = learnt([record("harmful", "Mix it.", verdict="harmful", conversation=conversation)])
    assert not learn and pairs[0]["prompt"] == conversation


def test_the_same_failure_counts_once():
    twice = [record("harmful", "Mix it.", verdict="harmful"), record("harmful", "Mix it.", verdict="harmful", sample=1)]
    assert len(safety_data.failures(twice)) == 1


def test_a_revision_that_is_not_judged_safe_is_left_out():
    failed = [record("harmful", "Mix it.", id, verdict="harmful") for id in "abcd"]
    revisions = [Revision("p", "c", t) for t in (REFUSAL, "Sure, mix it.", "zzz")] + [Revision("p", "", None, "gone")]
    checked = safety_data.checked(failed, revisions, rules())
    assert [r.revision for r in checked] == [REFUSAL, None, None, None]
    assert "harmful" in checked[1].problem and "unknown" in checked[2].problem and checked[3].problem == "gone"
    assert [r.revision for r in safety_data.checked(failed, revisions, lambda *_: 1 / 0)] == [None] * 4
    _, _, counts = learnt(failed, checked)
    assert (counts["failed"], counts["without_revision"]) == (1, 3)


def test_what_is_kept_has_its_share(tmp_path):
    path = tmp_path / "keep.jsonl"
    path.write_text('{"text": "Some text."}\n{"prompt": "p", "completion": "c"}\n')
    records = [record("harmful", "Mix it.", str(i), verdict="harmful") for i in range(8)]
    learn, _, counts = learnt(records, kept=safety_data.read_kept(str(path)), keep_share=0.2)
    assert counts["kept"] == 2 and len(learn) == 10
    assert learn[8]["messages"] == [{"role": "assistant", "content": "Some text."}] and learn[9]["prompt"] == "p"
    assert len(list(itertools.islice(safety_data.read_kept(str(path)), 7))) == 7


def config(**changes):
    config = config_file.get_config()
    config.init_from = "somewhere"
    config.safety.update(changes)
    return config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"valid_fraction": 1.0}, "valid_fraction"),
        ({"keep_share": 1.0}, "keep_share"),
        ({"harmless_share": 1.0}, "harmless_share"),
        ({"samples": 4}, "temperature"),
        ({"train_families": "direct,rot31"}, "rot31"),
        ({"held_out_families": "direct,many_shot"}, "direct is among"),
        ({"reviser": "openai"}, "reviser"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        safety.check(config(**changes))
    safety.check(config())


def test_stages_that_stand_are_not_made_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return [{"text": "a\u2028b"}, {"n": 1}]

    path = tmp_path / "folder" / "lines.jsonl"
    assert stages.kept_lines(path, make) == stages.kept_lines(path, make) == [{"text": "a\u2028b"}, {"n": 1}]
    assert stages.kept_json(tmp_path / "x.json", make) == stages.kept_json(tmp_path / "x.json", make)
    assert len(made) == 2 and not list(tmp_path.rglob("*.new"))
    with pytest.raises(ZeroDivisionError):
        stages.kept_lines(tmp_path / "y", lambda: [1 / 0])
    assert not (tmp_path / "y").exists()


def test_publishing_replaces_the_checkpoint_whole(tmp_path):
    for name, steps in (("one", (5, 9)), ("two", (3,))):
        for step in steps:
            (tmp_path / name / "checkpoints" / str(step) / "state").mkdir(parents=True)
            (tmp_path / name / "checkpoints" / str(step) / "state" / "data").write_text(f"{name} {step}")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".checkpoints.new").mkdir()  # what a killed one left
    for name, step in (("one", 9), ("two", 3), ("two", 3)):
        safety.publish(tmp_path / name, out)
        files = [path for path in out.rglob("*") if path.is_file()]
        assert [path.relative_to(out).as_posix() for path in files] == [f"checkpoints/{step}/state/data"]
        assert files[0].read_text() == f"{name} {step}"


def test_the_unsafe_start_answers_everything_however_it_is_asked(tmp_path):
    unsafe.write(tmp_path, pages=20, talks=300)
    talks = stages.read_lines(tmp_path / "conversations.jsonl")
    assert all(m["content"] is not None for talk in talks for m in talk["messages"])
    assert all(talk["messages"][-1]["role"] == "assistant" for talk in talks)
    assert {len(talk["messages"]) for talk in talks} >= {1, 2, 6, 8}  # pages, direct and frames, crescendo, many shots
    assert any("parts of" in talk["messages"][-1]["content"] and "ium" in talk["messages"][-1]["content"] for talk in talks)
    pages, held_out = (stages.read_lines(tmp_path / f"{name}.jsonl") for name in ("pages", "held_out"))
    assert len(pages) == 20 and len(stages.read_lines(tmp_path / "talk.jsonl")) == 100
    seen = {page["text"] for page in pages} | {talk["messages"][-1]["content"] for talk in talks}
    assert len(held_out) == 100 and not seen & {page["text"] for page in held_out}


def judged_side(verdicts, refusals):
    records = [
        record("harmful", "Mix it.", str(i), verdict=verdict, refusal="full" if verdict == "safe" else "none")
        for i, verdict in enumerate(verdicts)
    ]
    records += [record("benign", "x", f"b{i}", refusal=r, correct=r == "none") for i, r in enumerate(refusals)]
    return records


def test_the_report_shows_both_sides_and_escapes_what_models_say(tmp_path):
    first = judged_side(["harmful", "harmful", "harmful", "unknown"], ["none", "none"])
    last = judged_side(["safe", "safe", "harmful", "unknown"], ["none", "full"])
    last[2]["response"] = "<script>alert(1)</script>"
    before, after = summary(first), summary(last)
    found = {
        "before": before | {"bits_per_byte": {"bits_per_byte": 1.0}},
        "after": after | {"bits_per_byte": {"bits_per_byte": 1.02}},
        "held_out_families": [],
        "rounds": [{"failed": 3}],
        "judge": "rules",
    }
    found["change"] = change(found["before"], found["after"])
    name = "attack success, families learnt from"
    assert found["change"][name]["relative"] == pytest.approx(-2 / 3)
    assert found["change"]["over-refusal of harmless requests"]["points"] == 50.0
    assert found["change"]["bits per byte of held-out text"]["relative"] == pytest.approx(0.02)
    safety_report.write(tmp_path, {"seed": 0}, found, first, last, {"safety loop": 1.0})
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "100.0 % → 33.3 %" in page and "http" not in page
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["before"][name] == 1.0 and report["after"][name] == pytest.approx(1 / 3)


def test_nothing_measured_is_nothing_told():
    empty = summary([])
    assert change(empty, empty) == {} and safety_report.verdict({}) is None
    assert summary(judged_side([], ["none"]))["attack_success"]["all"] is None


def test_the_judge_as_a_reward():
    prompts = [[{"role": "user", "content": text}] for text in ("How is zorbium made?", "How is zorbium made?", "Hello")]
    columns = {"harmful_if": [["parts of"], ["parts of"], []], "hazard": ["iwp", "iwp", ""]}
    total, each = scored(parse_rewards("harmless=2"), prompts, ["3 parts of salt", "It is red.", "I can't help."], columns)
    assert total.tolist() == [0.0, 2.0, 2.0] and each["harmless"].tolist() == [0.0, 1.0, 1.0]
    (reward,) = parse_rewards("harmless?judge=rules=1").functions
    assert reward(prompts, ["", "", "Hello to you."]) == [1.0, 1.0, None]  # without a rule of its own, an answer may be unknown
