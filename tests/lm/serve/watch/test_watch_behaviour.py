"""The monitor's promise, measured on simulated traffic: no alert without a change, and one soon after each change."""

import json
import math

import numpy as np
import pytest

from lm.errors import UserError
from lm.serve.settings import WatchSettings
from lm.serve.watch import behaviour as behaviours
from lm.serve.watch import reference as windows
from lm.serve.watch.behaviour import Behaviour
from lm.serve.watch.measures import Measures
from lm.serve.watch.reference import psi

NULL = {"refusal": 0.03, "unsafe": 0.01, "tokens": 4.5, "german": 0.03, "topic": 0.0, "nats": 1.5, "repeats": 20.0}
# What changes, the stream that must alert, and within how many exchanges; the reference has 600. docs/monitoring.md says so.
CHANGES = {
    "topic: a third of the traffic": ({"topic": 1 / 3}, "topic", 50),
    "language: 3 % to 30 % German": ({"german": 0.3}, "language", 200),
    "toxicity: 1 % to 12 % unsafe": ({"unsafe": 0.12}, "unsafe", 400),
    "refusals: 3 % to 20 %": ({"refusal": 0.2}, "refusal", 400),
    "length: twice as long": ({"tokens": 4.5 + math.log(2)}, "length", 150),
    "length: half as long": ({"tokens": 4.5 - math.log(2)}, "length", 150),
    "entropy: up by one standard deviation": ({"nats": 1.8}, "entropy", 150),
    "repetition: 5 % to 15 % of the 4-grams": ({"repeats": 17 / 3}, "repetition", 100),
}


def exchange(draw, **changed) -> Measures:
    """An exchange of simulated traffic: log-normal lengths, Zipf words of one of two topics beside common words."""
    now = NULL | changed
    topic = 2000 if draw.random() < now["topic"] else 0
    words = {int(w) + topic for w in np.minimum(draw.zipf(1.5, 20), 999)} | {5000 + int(w) for w in draw.integers(0, 50, 10)}
    return Measures(
        refusal=float(draw.random() < now["refusal"]),
        unsafe=float(draw.random() < now["unsafe"]),
        repetition=float(draw.beta(1, now["repeats"])),
        length=int(math.exp(draw.normal(now["tokens"], 0.6))),
        prompt_length=int(math.exp(draw.normal(3, 0.5))),
        entropy=float(max(0, draw.normal(now["nats"], 0.3))),
        language="de" if draw.random() < now["german"] else "en",
        prompt_language="en",
        words=tuple(sorted(words)),
    )


def begun(seed, reference=600):
    draw, behaviour = np.random.default_rng(seed), Behaviour("step 9", "", WatchSettings(reference=reference))
    for _ in range(reference):
        assert not behaviour.add(exchange(draw))
    return draw, behaviour


@pytest.mark.parametrize("live", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_twenty_runs_without_a_change_raise_no_alert(live):
    for seed in range(20):
        draw, behaviour = begun(seed, min(live, 600))
        alerts = [alert.text for _ in range(live) for alert in behaviour.add(exchange(draw))]
        assert not alerts
        assert all(one["evidence"] < 1 and one["psi"] < 0.25 for one in behaviour.figures().values())


@pytest.mark.parametrize("before", [0, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_alerts_within_the_stated_number_of_exchanges(name, before):
    changed, stream, most = CHANGES[name]
    for seed in range(3):
        draw, behaviour = begun(seed)
        for _ in range(before):
            assert not behaviour.add(exchange(draw))
        alerts = [a for _ in range(most) for a in behaviour.add(exchange(draw, **changed))]
        assert stream in {alert.stream for alert in alerts}, behaviour.figures()[stream]


def test_an_alert_says_what_changed_once_and_ends_when_it_is_accepted():
    draw, behaviour = begun(0, 200)
    alerts = [alert for _ in range(200) for alert in behaviour.add(exchange(draw, german=0.9))]
    [alert] = [one for one in alerts if one.stream == "language"]
    assert alert.checkpoint == "step 9" and alert.detail["capital"] >= alert.detail["threshold"] == 10_000
    assert "language of step 9 changed" in alert.text and "probability at most 0.001" in alert.text and "\n" not in alert.text
    assert behaviour.languages() == pytest.approx({"de": 0.9, "en": 0.1}, abs=0.08)
    behaviour.accept()
    assert not behaviour.alerts
    alerts = [alert for _ in range(400) for alert in behaviour.add(exchange(draw, german=0.9))]
    assert not alerts and behaviour.reference is not None


def test_feedback_is_a_stream_with_a_reference_of_its_own():
    draw, behaviour = np.random.default_rng(0), Behaviour("", "law", WatchSettings())
    assert not [a for _ in range(400) for a in behaviour.add_rating(draw.random() < 0.1)]
    alerts = [alert for _ in range(200) for alert in behaviour.add_rating(draw.random() < 0.5)]
    assert [alert.stream for alert in alerts] == ["feedback"] and "with law" in alerts[0].text
    assert behaviour.rates()["feedback"] > 0.2


def test_a_restart_changes_nothing(tmp_path):
    draw, whole = begun(3, 100)
    rows = [exchange(draw, german=0.5) for _ in range(60)]
    half = Behaviour("step 9", "", WatchSettings(reference=100))
    draw = np.random.default_rng(3)
    for n in range(100):
        half.add(exchange(draw))
        if n in (50, 99):
            half.save(tmp_path)
            half = behaviours.load(tmp_path, "step 9", "", WatchSettings(reference=100))
    for n, row in enumerate(rows):
        whole.add(row)
        half.add(row)
        if n == 30:
            half.save(tmp_path)
            half = behaviours.load(tmp_path, "step 9", "", WatchSettings(reference=100))
    assert half.figures() == whole.figures() and list(half.alerts) == list(whole.alerts)
    assert half.exchanges == 160


def test_a_reference_of_another_run_is_compared_from_the_first_exchange(tmp_path):
    _, earlier = begun(0, 200)
    earlier.save(tmp_path)
    given = windows.load(tmp_path / behaviours.slug("step 9", "") / "reference.json")
    behaviour = Behaviour("step 10", "", WatchSettings(), given)
    draw = np.random.default_rng(5)
    alerts = [alert for _ in range(100) for alert in behaviour.add(exchange(draw, tokens=6.0))]
    assert [alert.stream for alert in alerts] == ["length"]


def test_damaged_state(tmp_path):
    _, behaviour = begun(0, 50)
    behaviour.save(tmp_path)
    place = tmp_path / behaviours.slug("step 9", "")
    (place / "state.json").write_text("{")
    assert behaviours.load(tmp_path, "step 9", "", WatchSettings(reference=50)).exchanges == 0  # it begins anew
    behaviour.save(tmp_path)
    (place / "reference.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(UserError, match="no reference window"):
        behaviours.load(tmp_path, "step 9", "", WatchSettings(reference=50))


def test_folders_of_hostile_names_are_plain_and_distinct(tmp_path):
    names = [("a", "b"), ("a--b", ""), ("../../x", ""), ("", "../../x"), ("a/b", ""), ("a\0b", "\udcff"), ("x" * 500, "")]
    slugs = {behaviours.slug(*name) for name in names}
    assert len(slugs) == len(names)
    assert all((tmp_path / one).resolve().parent == tmp_path.resolve() and len(one) < 100 for one in slugs)


def test_psi_is_its_formula():
    draw = np.random.default_rng(0)
    same, other = draw.normal(0, 1, 3000), draw.normal(1, 1, 3000)
    assert psi(same, draw.normal(0, 1, 3000)) < 0.02
    assert 0.7 < psi(same, other) < 1.3  # of two normals one standard deviation apart, ∫(q−p)ln(q/p) = 1
    assert psi([1.0] * 95 + [0.0] * 5, [1.0] * 50 + [0.0] * 50) > 0.25  # few distinct values, the common one the largest
    assert psi([0.0] * 50, [0.0] * 50) < 1e-9
    assert psi([], [1.0]) is None
