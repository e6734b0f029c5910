"""Keys of a sweep, as they are written on the command line."""

import pytest

from configs.train import tiny
from lm.errors import UserError
from lm.sweep import __main__ as command
from lm.sweep.space import ends, grid, parse_key, set_value


def key(text, grid=False):
    return parse_key(text, tiny.get_config(), grid)


def test_ranges_and_choices():
    rate = key("optimizer.learning_rate=1e-4..1e-2:log")
    assert (rate.low, rate.high, rate.log, rate.whole) == (1e-4, 1e-2, True, False) and ends(rate) == [1e-4, 1e-2]
    assert ends(key("batch_size=8..32")) == [8, 32] and key("batch_size=8..32").whole
    assert key("optimizer.name=adamw, muon,adamw").choices == ("adamw", "muon")
    config = tiny.get_config()
    for name, text, value in (("data.log_ids", "true", True), ("batch_size", "8", 8), ("optimizer.clip_norm", "2", 2.0)):
        set_value(config, name, text)
        part = config
        for inner in name.split("."):
            part = part[inner]
        assert part == value and type(part) is type(value)


def test_a_grid_is_all_combinations():
    keys = [key("optimizer.learning_rate=1e-4..1e-2:log:3", True), key("batch_size=8..16:2", True), key("ema=0.0,0.9", True)]
    found = grid(keys)
    assert len(found) == 12 and found[0] == {"optimizer.learning_rate": 1e-4, "batch_size": 8, "ema": "0.0"}
    assert sorted({params["optimizer.learning_rate"] for params in found}) == [1e-4, 1e-3, 1e-2]


@pytest.mark.parametrize(
    "text, message",
    [
        ("optimizer.learning_rate", "no values"),
        ("optimizer.learning_rate=1e-2..1e-4", "1e-2 must be below 1e-4"),
        ("optimizer.learning_rate=0..1:log", "must begin above 0"),
        ("optimizer.learning_rate=1e-4..x", "'x' must be of type float"),
        ("optimizer.learning_rate=1e-4..1e-2:lg", "'lg' is neither log nor a number"),
        ("optimizer.learning_rate=1e-4..1e-2:5", "is for --grid"),
        ("batch_size=8..16.5", "'16.5' must be of type int"),
        ("optimizer.name=adamw..muon", "not a number: name its values"),
        ("data.log_ids=yes,no", "neither true nor false"),
        ("samples=a,b", "only numbers, texts"),
    ],
)
def test_mistakes_are_told(text, message):
    with pytest.raises(UserError, match=message):
        key(text)


def test_a_grid_needs_the_number_of_values():
    with pytest.raises(UserError, match="a grid needs the number of values"):
        key("optimizer.learning_rate=1e-4..1e-2:log", True)


def test_the_keys_follow_the_method():
    line = ["--config=a.py", "--tpe", "x=1..2", "y=a,b", "--trials=3", "--config.z", "4"]
    assert command.split(line) == ("tpe", ["x=1..2", "y=a,b"], ["--config=a.py", "--trials=3", "--config.z", "4"])
    path = "--config.data.input=my files/x.txt"
    assert command.split(["-grid", "x=1,2", path]) == ("grid", ["x=1,2"], [path])
    for line in (["--grid=x=1,2", "--grid=y=3,4"], ["--grid=x=1,2", "y=3,4"]):
        assert command.split(line) == ("grid", ["x=1,2", "y=3,4"], [])
    for line, message in (
        (["--trials=3"], "which keys"),
        (["--tpe"], "--tpe names no key"),
        (["--tpe", "a=1,2", "--grid", "b=1,2"], "--tpe and --grid: give one of them"),
    ):
        with pytest.raises(UserError, match=message):
            command.split(line)
