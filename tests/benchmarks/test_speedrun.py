"""The speedrun: an entry runs and resumes, a recipe that cheats is refused, and the check refuses changed results."""

import json
import shutil

import numpy as np
import pytest

from benchmarks import recipe, speedrun, speedrun_text
from configs.train import demo
from lm.errors import UserError

WORDS = "the model reads a page and writes the next word of every line in the manual".split()
RUN = {"bits_per_byte": 2.0, "seconds": 3.0, "gflops": 100.0, "steps": 10}


def small_config(train):
    config = demo.get_config()
    config.data.update(input=train, max_bytes=None, valid_fraction=0.0)
    config.model.update(vocab_size=300, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
    config.update(batch_size=4, sequence_length=16, accumulate=1)
    return config


@pytest.fixture(scope="module", autouse=True)
def rules(tmp_path_factory):
    """A text, sizes, a seed and a target that take seconds. Returns the folder OUT."""
    out, draw = tmp_path_factory.mktemp("speedrun"), np.random.default_rng(0)
    speedrun_text.write({f"docs/{n}.txt": " ".join(draw.choice(WORDS, 60)) for n in range(100)}, out / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speedrun_text, "FINGERPRINT", speedrun_text.fingerprint(out / "text"))
        for name, value in {"base_config": small_config, "SEEDS": (0,), "TARGET": 100.0, "REPEATS": 3, "BAND": 1e6}.items():
            patch.setattr(speedrun, name, value)
        yield out


def written(folder, body, name="mine"):
    """Return FILE.py:NAME of a recipe with these lines."""
    file = folder / f"{name}.py"
    file.write_text("\n    ".join([f"def {name}(config):", "config.steps = 10", *body, "return config\n"]))
    return f"{file}:{name}"


@pytest.fixture(scope="module")
def finished(rules, tmp_path_factory):
    """The result of an entry that also changes the batch while it trains."""
    body = ["config.batch_warmup = '4: 2'", "config.optimizer.name = 'adamw'"]
    speedrun.entered(written(tmp_path_factory.mktemp("recipes"), body), None, rules)
    return rules / "mine.json"


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished result and its recipe, to be damaged."""
    for file in (finished, finished.with_suffix(".py")):
        shutil.copy(file, tmp_path)
    return tmp_path / finished.name


def edited(result, change):
    record = json.loads(result.read_text())
    change(record)
    result.write_text(json.dumps(record))


def test_a_true_result_is_accepted(finished, rules, capsys):
    record = json.loads(finished.read_text())
    assert record["reached"] and record["score"] == record["seconds"] * record["seeds"]["0"]["gflops"] > 0
    assert speedrun.checked(finished, None, rules)
    assert "NO" not in capsys.readouterr().out
    assert "reached" in speedrun.table(record)


@pytest.mark.parametrize("what", ["bits_per_byte", "score", "mean"])
def test_a_changed_score_is_not(copied, rules, capsys, monkeypatch, what):
    true = json.loads(copied.read_text())["seeds"]["0"]
    monkeypatch.setattr(speedrun, "trained", lambda *_: true)
    monkeypatch.setattr(speedrun, "BAND", 1.3)
    assert speedrun.checked(copied, 0, rules)

    def change(record):
        run = record["seeds"]["0"]
        if what == "mean":
            record["bits_per_byte"] -= 0.001
            return
        run.update(
            {"bits_per_byte": run["bits_per_byte"] - 0.1} if what == "bits_per_byte" else {"seconds": run["seconds"] / 2}
        )
        record |= speedrun.summary(record["seeds"])

    edited(copied, change)
    assert not speedrun.checked(copied, 0, rules)
    assert capsys.readouterr().out.count(" NO ") == 1


def test_results_that_cannot_be_compared_are_refused(copied, rules):
    edited(copied, lambda record: record.update(judge_sha256="0" * 64))
    with pytest.raises(UserError, match="judge_sha256 0000"):
        speedrun.checked(copied, None, rules)
    edited(copied, lambda record: record.update(judge_sha256=speedrun.judge(), text_sha256="1" * 64))
    with pytest.raises(UserError, match="text_sha256 1111"):
        speedrun.checked(copied, None, rules)
    edited(copied, lambda record: record.update(text_sha256=speedrun_text.FINGERPRINT, config_sha256="2" * 64))
    with pytest.raises(UserError, match="another config"):
        speedrun.checked(copied, None, rules)
    copied.with_suffix(".py").write_text("def mine(config): return config\n")
    with pytest.raises(UserError, match="not the recipe that was scored"):
        speedrun.checked(copied, None, rules)
    copied.write_text('{"seeds": {"0": {}}}')
    with pytest.raises(UserError, match="no result"):
        speedrun.checked(copied, None, rules)


def test_an_entry_resumes_by_seed(rules, tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun, "SEEDS", (0, 1, 2))
    seeds = []

    def trained(own, seed, text):
        if len(seeds) == 1 and seed == 1:
            seeds.append("killed")
            raise KeyboardInterrupt
        seeds.append(seed)
        return RUN

    monkeypatch.setattr(speedrun, "trained", trained)
    entry = written(tmp_path, [])
    with pytest.raises(KeyboardInterrupt):
        speedrun.entered(entry, "resumed", rules)
    assert not json.loads((rules / "resumed.json").read_text())["reached"]
    assert speedrun.entered(entry, "resumed", rules)["reached"] and seeds == [0, "killed", 1, 2]
    speedrun.entered(entry, "resumed", rules)
    assert len(seeds) == 4
    with pytest.raises(UserError, match="another recipe_sha256 and another config_sha256"):
        speedrun.entered(written(tmp_path, ["config.batch_size = 8"]), "resumed", rules)
    assert "batch_size" not in (rules / "resumed.py").read_text()  # the recipe of the old result


@pytest.mark.parametrize(
    "body, error",
    [
        ("config.seed = 7", "changes seed"),
        ("config.tokenizer = 'other'", "changes tokenizer"),
        ("config.model.vocab_size = 512", "changes model.vocab_size"),
        ("config.data.input = 'other.txt'", "changes data"),
        ("config.init_from = 'trained'", "changes init_from"),
        ("config.optimizer.name = 'other.py:optimizer'", "names other.py"),
        ("config.steps = 3", "set at least"),
        ("return None", "fails"),
    ],
)
def test_a_recipe_that_cheats_is_refused_in_one_line(rules, tmp_path, body, error):
    with pytest.raises(UserError, match=error) as refused:
        speedrun.entered(written(tmp_path, [body]), "cheat", rules)
    assert "\n" not in str(refused.value) and not list(rules.glob("cheat.*"))


def test_a_recipe_may_name_itself(rules, tmp_path):
    entry = written(tmp_path, ["config.optimizer.name = f'{__file__}:mine'"])
    here = speedrun.identity(entry, rules / "text")
    (tmp_path / "elsewhere").mkdir()
    there = shutil.copy(tmp_path / "mine.py", tmp_path / "elsewhere")
    assert speedrun.identity(f"{there}:mine", rules / "text")["config_sha256"] == here["config_sha256"]


def test_a_model_that_sees_later_tokens_is_refused():
    class Learner:
        def __init__(self, sees):
            self._sees = sees

        def nats(self, rows):
            x = rows["tokens"]
            return float((rows["weights"] * (np.roll(x, -1, axis=1) if self._sees else x)).sum())

    rows = {"tokens": np.arange(16).reshape(2, 8), "weights": np.ones((2, 8), np.float32)}
    speedrun.check_causal(Learner(False), rows, "mine")
    with pytest.raises(UserError, match="sees the tokens"):
        speedrun.check_causal(Learner(True), rows, "mine")


def test_another_text_is_refused(tmp_path):
    speedrun_text.write({"docs/0.txt": "another text"}, tmp_path)
    with pytest.raises(UserError, match="holds another text"):
        speedrun_text.text(tmp_path)


def test_the_entries_that_come_with_it():
    for name, steps in (("adamw", 2400), ("default", 550), ("speedrun", 400)):
        config = recipe.with_recipe(f"{speedrun.ENTRIES}:{name}", recipe.sized("3M", "text"), speedrun.FROZEN)
        assert config.steps == steps and config.optimizer.learning_rate > 0
