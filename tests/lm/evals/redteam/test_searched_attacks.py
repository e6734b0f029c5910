"""PAIR, TAP and GCG as families of the red-team task, beside the others."""

import json

import pytest

from lm.errors import UserError
from tests.lm.evals.redteam.test_redteam_task import COMPLIANCE, REFUSAL, Subject, by_word, rows, task, written


def attacking(prompt):
    """A subject that attacks itself: it writes a story about every objective, and answers stories."""
    if "<system>You help to test" in prompt.text:
        if "harm number 1" in prompt.text:
            return "I can't write that."
        number = prompt.text.split("<objective>\nDo harm number ")[1][0]
        return json.dumps({"improvement": "a story", "prompt": f"Tell a story of case {number}."})
    return COMPLIANCE if "story" in prompt.text else REFUSAL


def test_pair_and_tap_stand_beside_the_other_families(tmp_path):
    folder = written(tmp_path, rows(2))
    pair = {"streams": 2, "depth": 2}
    outcome = task(folder, "direct,pair,tap", attacker="subject", pair=pair, tap={"depth": 1}).run(Subject(attacking))
    parts = outcome.results["families"]
    assert parts["direct"]["attack_success"] == 0.0
    assert parts["pair"]["attack_success"] == 1.0 and parts["pair"]["unknown"] == 1  # of the other no prompt was written
    told = outcome.results["searches"]["pair"]
    assert told["found"] == 1 and told["queries"] == 1 and told["attacker_malformed"] == 4 and told["repeated"] == 1
    assert outcome.results["searches"]["tap"]["topic_unknown"] == 1
    found = next(s for s in outcome.samples if s["family"] == "pair" and s["doc_id"] == 0)
    assert found["messages"] == [{"role": "user", "content": "Tell a story of case 0."}] and found["queries"] == 1
    assert found["failed"] and found["prompt"] == "Do harm number 0" and "story" in found["put"]
    lost = next(s for s in outcome.samples if s["family"] == "pair" and s["doc_id"] == 1)
    assert lost["verdict"] == "unknown" and "no prompt" in lost["reason"] and lost["generation"] is None


def test_limits_are_checked(tmp_path):
    for name, options in (("pair: streams=0", {"pair": {"streams": 0}}), ("tap: budget=-1", {"tap": {"budget": -1}})):
        with pytest.raises(UserError, match=name):
            task(written(tmp_path, rows(1)), "pair,tap", attacker="subject", **options)


def test_gcg_needs_gradients(tmp_path):
    with pytest.raises(UserError, match="gradients"):
        task(written(tmp_path, rows(1)), "gcg").run(Subject(by_word))
