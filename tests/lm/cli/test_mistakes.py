"""The hints name keys and flags that there are."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.align import safety
from configs.curate import default as curate
from configs.evaluate import default as evaluate
from configs.serve import default as serve
from configs.train import default as train
from lm.cli import mistakes


def keys(config: dict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else (prefix + key,)


def known() -> set[str]:
    configs = [module.get_config().to_dict() for module in (train, safety, curate, evaluate, serve)]
    flags = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', "".join(path.read_text() for path in Path("lm").rglob("*.py")))
    return {"workdir", *flags, *(key for config in configs for key in keys(config))}


def test_every_name_of_ours_is_a_key_or_a_flag():
    ours = {name.partition("=")[0] for name in mistakes.other_names()["names"]}
    assert ours - known() <= {"epochs"}


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("lr", "optimizer.learning_rate"),
        ("num_train_epochs", "steps"),
        ("model.n_layer", "model.num_layers"),
        ("gradient-accumulation-steps", "accumulate"),
        ("LoRA_r", "model.adapter.rank"),
        ("fp16", "dtype=bfloat16"),
        ("nonsense", None),
    ],
)
def test_names_of_other_programs(theirs, ours):
    assert mistakes.ours(theirs, known() - {"epochs"}) == ours


def test_the_first_that_a_verb_has_is_meant():
    assert mistakes.ours("model", {"checkpoint", "tasks"}) == "checkpoint"
    assert mistakes.ours("num_train_epochs", {"epochs", "steps"}) == "epochs"
    assert mistakes.ours("batch_size", {"batch_tokens"}) == "batch_tokens"
