"""Critique and revision, with writers who do well and writers who fail."""

import pytest

from lm.align.safety.constitution import SHIPPED, load_constitution
from lm.align.safety.critique import by_chat, from_templates
from lm.errors import UserError
from lm.evals.judges.endpoint import Reply
from lm.evals.judges.refusals import refusal

CONSTITUTION = load_constitution()


def failure(id="a", hazard="iwp", family="direct"):
    conversation = [{"role": "user", "content": f"request {id}"}]
    return {"id": id, "hazard": hazard, "family": family, "conversation": conversation, "response": f"harm {id}"}


def test_the_shipped_constitution_has_every_hazard_of_the_taxonomy():
    assert set(CONSTITUTION.hazards) == set("vcr ncr src cse dfm spc prv ipv iwp hte ssh sxc".split())
    for hazard in CONSTITUTION.hazards:
        assert hazard in (CONSTITUTION.principle_for(hazard, "any").hazards or CONSTITUTION.hazards)
    # What the templated reviser writes is found to be a refusal by the rules that count them.
    for principle in CONSTITUTION.principles:
        assert all(refusal(text.format(hazard="harm")) == "full" for text in principle.refusals), principle.id


GOOD = """
hazards: {x: {name: an x, definition: harm by x}}
principles: [{id: p, text: No x., critique: Say where., revision: Without x.,
  critiques: ["Has {hazard}."], refusals: [I can't help.]}]
"""


def test_a_constitution_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    mine = load_constitution(path)
    assert mine.principle_for("x", "any").id == "p" and mine.name_of("x") == "an x" and mine.name_of("other") == "other"
    (revision,) = from_templates(mine)([failure(hazard="x")])
    assert revision == ("p", "Has an x.", "I can't help.", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("hazards:", "hazard:"), "hazards: Field required"),
        (("id: p, ", ""), "principles: 1: id: Field required"),
        (("id: p,", "id: p, hazards: [y],"), "no hazard 'y'"),
        (("id: p,", "id: p, name: q,"), "principles: 1: name: Extra inputs"),
        (("[I can't help.]", "[]"), "refusals: List should have at least 1"),
        (("[I can't help.]", "[7]"), "refusals: 1: Input should be a valid string"),
        (("{hazard}", "{other}"), "no braces"),
        (("text: No x.", "text: ''"), "text: String should have at least 1"),
        (("}]", "]"), "not YAML"),
        (("text: No x.", "text: 2001-99-99"), "not YAML: month"),
        (("principles: [", "principles: " + "[" * 3000), "not YAML: maximum recursion"),
        (("principles:", "policies: [{id: p, action: flag, patterns: ['a{99999999999}']}]\nprinciples:"), "too large"),
        (("principles: [", "principles: [3, "), "principles: 1: Input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_in_a_constitution_is_named(tmp_path, change, said):
    path = tmp_path / "mine.yaml"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change))
    with pytest.raises(UserError, match=said):
        load_constitution(path)


def test_hazards_without_a_principle_and_double_ids_are_errors(tmp_path):
    path = tmp_path / "mine.yaml"
    text = SHIPPED.read_text()
    path.write_text(text.replace("id: respect", "id: no_help_with_harm"))
    with pytest.raises(UserError, match="two principles are called 'no_help_with_harm'"):
        load_constitution(path)
    rule = "{id: twin, action: flag, patterns: [a]}"
    path.write_text(f"{text}\npolicies: [{rule}, {rule}]")
    with pytest.raises(UserError, match="mine.yaml: two policies are called 'twin'"):
        load_constitution(path)
    path.write_text(f"{text}\npolicies: [{{id: idle, action: flag}}]")
    with pytest.raises(UserError, match="mine.yaml: policies: 1: idle finds nothing"):
        load_constitution(path)
    path.write_text(f"{text}\npolicies: {rule}")
    with pytest.raises(UserError, match="mine.yaml: policies: Input should be a valid list"):
        load_constitution(path)
    with pytest.raises(UserError, match="No such file"):
        load_constitution(tmp_path / "none.yaml")


def test_templates_are_the_same_in_any_order_and_vary():
    many = [failure(str(i)) for i in range(40)]
    revise = from_templates(CONSTITUTION, "0 1")
    forth = revise(many)
    assert forth == revise(many[::-1])[::-1]
    assert len({r.revision for r in forth}) > 1 and len({r.principle for r in forth}) > 1
    assert any(a != b for a, b in zip(forth, from_templates(CONSTITUTION, "0 2")(many)))
    assert all("{" not in r.critique + r.revision for r in forth)


def test_a_critique_is_asked_for_and_then_a_revision_in_the_same_conversation():
    asked = []

    def chat(conversations):
        asked.append(conversations)
        critiques = ["[Critique" in c[-1]["content"] for c in conversations]
        return [Reply("It is harmful." if critique else "Revised answer: I can't help.") for critique in critiques]

    (revision,) = by_chat(chat, CONSTITUTION)([failure()])
    principle = next(p for p in CONSTITUTION.principles if p.id == revision.principle)
    assert (revision.critique, revision.revision) == ("It is harmful.", "I can't help.")
    (first,), (second,) = asked
    assert [m["role"] for m in first] == ["user", "assistant", "user"] and first[1]["content"] == "harm a"
    assert principle.critique in first[-1]["content"] and principle.text in first[-1]["content"]
    assert second[:3] == first and second[3]["content"] == "It is harmful." and principle.revision in second[-1]["content"]


def test_writers_who_fail_leave_no_revision():
    def chat(conversations):
        replies = {"request a": Reply(None, "timed out"), "request b": Reply("  "), "request c": Reply("critique")}
        late = {"request c": Reply(None, "gone")}
        return [(late if "[Revision" in c[-1]["content"] else replies)[c[0]["content"]] for c in conversations]

    a, b, c = by_chat(chat, CONSTITUTION)([failure("a"), failure("b"), failure("c")])
    assert a.revision is b.revision is c.revision is None
    assert (a.problem, b.problem, c.problem) == ("timed out", "an empty critique", "gone") and c.critique == "critique"
