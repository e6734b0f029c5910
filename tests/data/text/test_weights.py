"""What data.weights says, the shares that follow, and what is wrong with it in one line."""

import json

import pytest

from data.text.weights import Rule, Size, parse_weights, resolved, stages_of, warnings_of
from lm.errors import UserError

SIZES = {"code": Size(100, 8000), "docs": Size(300, 1000), "web": Size(50, 1000)}


def shares(text, steps=10):
    return [(begin, pytest.approx(of)) for begin, of in stages_of(parse_weights(text), SIZES, steps)]


def test_no_weights():
    assert parse_weights(None) is None and parse_weights(" ") is None and resolved(None) is None


def test_fixed_shares():
    assert parse_weights("code=2,docs=1") == [Rule(0.0, "shares", {"code": 2.0, "docs": 1.0})]
    assert shares("code=2, docs = 1,web=0") == [(0, {"code": 2 / 3, "docs": 1 / 3})]


@pytest.mark.parametrize(
    "temperature, expected",
    [
        ("1", {"code": 0.8, "docs": 0.1, "web": 0.1}),  # in proportion to the tokens
        ("3", {"code": 0.5, "docs": 0.25, "web": 0.25}),  # 8^(1/3) = 2
        ("inf", {"code": 1 / 3, "docs": 1 / 3, "web": 1 / 3}),
        ("0.001", {"code": 1.0}),
    ],
)
def test_a_temperature_flattens_the_shares_of_the_tokens(temperature, expected):
    assert shares(f"temperature={temperature}") == [(0, expected)]


def test_epochs_give_shares_by_rows():
    assert shares("epochs: code=2,docs=0.5") == [(0, {"code": 200 / 350, "docs": 150 / 350})]


def test_stages_begin_at_a_fraction_of_the_steps():
    assert shares("0: code=1; .25: temperature=inf ; 0.8:epochs:web=1", 1000) == [
        (0, {"code": 1.0}),
        (250, {"code": 1 / 3, "docs": 1 / 3, "web": 1 / 3}),
        (800, {"web": 1.0}),
    ]
    assert [begin for begin, _ in shares("0: code=1; 0.2: web=1; 0.3: docs=1", 2)] == [0, 1]


def test_a_file_of_shares(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"code": 3, "docs": 0.1}))
    assert parse_weights(str(path)) == parse_weights("code=3,docs=0.1")
    assert resolved(str(path)) == "code=3.0,docs=0.1"
    staged = resolved(f"0: epochs: web=1; 0.5: {path}")
    assert staged == "0.0: epochs: web=1.0; 0.5: code=3.0,docs=0.1" and resolved(staged) == staged
    assert parse_weights(staged) == parse_weights(f"0: epochs: web=1; 0.5: {path}")
    assert resolved("code=2,docs=1") == "code=2,docs=1"


@pytest.mark.parametrize(
    "text, message",
    [
        ("code", "data.weights='code' must read like 'code=2,docs=1'"),
        ("code=2,=3", "must read like"),
        ("code=two", "'two' is no number"),
        ("code=1,code=2", "twice"),
        ("code=-1", "data.weights.code=-1.0 must be"),
        ("code=nan", "data.weights.code=nan"),
        ("code=0,docs=0", "every weight is 0"),
        ("temperature=0", "a temperature is above 0"),
        ("temperature=nan", "a temperature is above 0"),
        ("epoch: code=2", "'epoch' is neither 'epochs' nor a fraction"),
        ("epochs:", "must read like"),
        ("0: code=1; docs=1", "'docs=1' does not say where it begins"),
        ("0.1: code=1; 0.5: docs=1", "begins at 0.1, not at 0"),
        ("0: code=1; 0.5: docs=1; 0.5: web=1", "ascending"),
        ("0: code=1; 1: docs=1", "below 1"),
        ("0: code=1; 0..5: docs=1", "is no number"),
        ("none.json", "data.weights=none.json .*No such file"),
    ],
)
def test_weights_that_make_no_sense(text, message):
    with pytest.raises(UserError, match=message):
        parse_weights(text)


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"code": "2"}', '{"code": true}', '{"code": -1}'])
def test_a_file_that_makes_no_sense(tmp_path, content):
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(UserError, match=r"data.weights(=.*w.json|.code=-1)"):
        parse_weights(str(tmp_path / "w.json"))


def test_an_unknown_source_is_named_with_the_nearest():
    with pytest.raises(UserError, match="data.weights.cod: .*nearest is 'code'"):
        stages_of(parse_weights("cod=1"), SIZES, 10)


def test_what_is_read_often_is_told():
    assert warnings_of(None, SIZES, {"code": 4.0, "docs": 0.1}, 9, 4) == []
    rows = SIZES["code"].rows + SIZES["docs"].rows  # web is not read
    (line,) = warnings_of(None, SIZES, {"code": 4.0, "docs": 0.1}, 1, rows + 1)
    assert f"reads {rows + 1} rows, and the data have {rows:,}" in line
    (line,) = warnings_of(None, SIZES, {"code": 4.5, "docs": 0.1}, 9, 4)
    assert "source code is read 4.5 times" in line


def test_epochs_that_the_steps_miss_are_told():
    rules = parse_weights("epochs: code=2,docs=0.5")  # 350 rows
    assert warnings_of(rules, SIZES, {"code": 2.0, "docs": 0.5}, 35, 10) == []
    (line,) = warnings_of(rules, SIZES, {"code": 4.0, "docs": 1.0}, 70, 10)
    assert "2 times as often" in line and "steps=35 " in line
    assert warnings_of(parse_weights("code=2"), SIZES, {"code": 1.0}, 70, 10) == []
    assert warnings_of(rules, SIZES, {"code": 0.0, "docs": 0.0}, 0, 10) == []
