import random

import pytest
import yaml

from lm.align.safety.constitution import SHIPPED, load_constitution
from lm.errors import UserError
from lm.serve.guardrails import MASKED, Guardrails

POLICIES = [
    {"id": "agent", "hazard": "iwp", "action": "block", "patterns": [r"\bsarin\b.{0,30}\brecipe\b", r"\bkill\s{1,5}them\b"]},
    {"id": "name", "action": "mask", "where": "output", "patterns": [r"\bproject [a-z]{1,12}\b"]},
    {"id": "contact", "hazard": "prv", "action": "mask", "where": "output", "pii": ["email", "secret"]},
    {"id": "curse", "action": "flag", "patterns": [r"\bdamn(?:ed)?\b"]},
]


def guardrails(folder, policies=POLICIES):
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | {"policies": policies}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return Guardrails(folder / "constitution.yaml")


def streamed(rails, text, sizes):
    stream, out, at = rails.stream(), [], 0
    while at < len(text):
        size = next(sizes)
        out.append(stream.feed(text[at : at + size]))
        at += size
    return "".join([*out, stream.end()]), stream


TEXTS = [
    "Nothing to see here. " * 20,
    "The plan of project falcon is ready, write to jane.doe@corp.example.org today. " * 4,
    "First some words. Take the sarin and this is the recipe: boil it. More words follow. " * 2,
    "sarin-like words, and a recipe" + " filler" * 30 + " sarin recipe",
    "we will kill   them",
    "proj\u200bect\u00a0ｆalcon and ki\u200bll them \u4f60\u597d",
    "key sk-ant-" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9" * 5 + " end",
    "sarin" + "x" * 400 + "recipe project",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_sends_what_the_whole_text_allows_however_it_is_cut(tmp_path, text):
    rails = guardrails(tmp_path)
    whole = rails.check(text, "output")
    for seed in range(12):
        draw = random.Random(seed)
        sent, stream = streamed(rails, text, iter(lambda draw=draw: draw.choice((1, 2, 3, 7, 40)), None))
        assert sent == whole.text
        assert stream.blocked == whole.blocked
        assert stream.decisions == [one for one in whole.decisions if one.action != "flag"]


def test_nothing_of_a_blocked_span_is_ever_sent(tmp_path):
    text = "Well then: sarin is made by this recipe, and so on."
    sent, stream = streamed(guardrails(tmp_path), text, iter(lambda: 1, None))
    assert sent == "Well then: "
    assert text[stream.blocked.start : stream.blocked.end] == "sarin is made by this recipe"
    assert stream.blocked.rule == "agent" and stream.blocked.hazard == "iwp" and r"\bsarin" in stream.blocked.why


def test_masks_keep_the_rest_of_the_text(tmp_path):
    checked = guardrails(tmp_path).check("Of project falcon, ask a.b@corp.example.org.", "output")
    assert checked.text == f"Of {MASKED}, ask {MASKED}."
    assert [one.rule for one in checked.decisions] == ["name", "contact"]


def test_flags_change_nothing_and_are_reported_for_input_and_output(tmp_path):
    rails = guardrails(tmp_path)
    assert rails.check("Damn it, damned!", "input").text == "Damn it, damned!"
    assert [(one.start, one.end) for one in rails.check("Damn it, damned!", "input").decisions] == [(0, 4), (9, 15)]
    assert rails.check("a.b@corp.example.org", "input").decisions == ()  # that policy is for output


def test_input_is_blocked_with_a_refusal_of_its_hazard(tmp_path):
    rails = guardrails(tmp_path)
    blocked = rails.check("Give me the SARIN recipe", "input").blocked
    refusals = [text for p in load_constitution().principles if "iwp" in p.hazards or not p.hazards for text in p.refusals]
    assert rails.refusal(blocked, "key") in [text.format(hazard="indiscriminate weapons") for text in refusals]


def test_a_stream_holds_back_no_more_than_the_window(tmp_path):
    rails = guardrails(tmp_path, POLICIES[:2])
    stream = rails.stream()
    assert len(stream.feed("a plain text " * 20)) == 260 - stream.reach + 1
    assert guardrails(tmp_path, POLICIES[3:]).stream().feed("at once") == "at once"


def test_a_classifier_blocks_a_stretch(tmp_path):
    from data.filters.classifier.fit import Options
    from data.filters.classifier.linear import Settings, save
    from data.filters.classifier.train import distinct, train

    draw = random.Random(0)
    good = [" ".join(draw.choices("sun tea garden book river cat bread song".split(), k=40)) for _ in range(120)]
    bad = [" ".join(draw.choices("knife blood threat revenge hate gun".split(), k=40)) for _ in range(120)]
    sides = distinct(good, 200, 0), distinct(bad, 200, 0)
    save(tmp_path / "judge", train(*sides, Settings(1, 0, 10), Options(steps=100), fractions=(0.1, 0.1)))
    policy = {"id": "violent", "action": "block", "classifier": str(tmp_path / "judge"), "threshold": 0.8}
    rails = guardrails(tmp_path, [policy])
    text = good[0] + " " + good[1] + " " + " ".join(bad[:3])
    sent, stream = streamed(rails, text, iter(lambda: 9, None))
    assert sent == rails.check(text, "output").text and stream.blocked.rule == "violent"
    assert "revenge" not in sent and sent.startswith(good[0])
    assert rails.check(good[3] + good[4] + good[5], "output").blocked is None


@pytest.mark.parametrize(
    "policy, named",
    [
        ({"id": "x", "action": "block"}, "finds nothing"),
        ({"id": "x", "action": "stop", "patterns": ["a"]}, "action: Input should be 'block', 'mask' or 'flag'"),
        ({"id": "x", "action": "flag", "hazard": "zzz", "patterns": ["a"]}, "x: no hazard 'zzz'"),
        ({"id": "x", "action": "flag", "patterns": ["a.*b"]}, "bound its repeats"),
        ({"id": "x", "action": "flag", "patterns": ["a?"]}, "empty text"),
        ({"id": "x", "action": "flag", "patterns": ["a(?=b)"]}, "looks around"),
        ({"id": "x", "action": "flag", "patterns": ["(a"]}, "no regular expression"),
        ({"id": "x", "action": "flag", "pii": ["shoe"]}, "there are secret"),
        ({"id": "x", "action": "flag", "patterns": ["a"], "threshold": 2}, "threshold: Input should be less"),
        ({"id": "x", "action": "flag", "patterns": ["a"], "actoin": 1}, "actoin: Extra inputs are not permitted"),
        ({"id": "x", "action": "flag", "classifier": "/nowhere"}, "no classifier"),
    ],
)
def test_a_wrong_policy_is_one_clear_line(tmp_path, policy, named):
    with pytest.raises(UserError, match=".*") as raised:
        guardrails(tmp_path, [policy])
    assert named in str(raised.value) and "\n" not in str(raised.value)


def test_old_files_stay_valid_and_check_nothing():
    rails = Guardrails()
    assert load_constitution().policies == []
    assert rails.check("sarin recipe", "input") == ("sarin recipe", ())
