"""python -m lm.merge: models of any kind become one, and what cannot be merged is one line."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lm
from lm.adapt.rebuild import arrays_of
from lm.convert.source import on_first_device, open_source
from lm.convert.to_workdir import write_workdir
from tests.lm.adapt.models import TINY
from tests.lm.examples import parameters
from tests.verbs import runs
from tests.verbs.test_bad_input import contents, refused
from tests.verbs.test_convert import convert
from tests.verbs.test_init_from import START


def line(**flags) -> list[str]:
    return [sys.executable, "-m", "lm.merge", *(f"--{name}={value}" for name, value in flags.items())]


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(x, np.float32) for name, x in arrays_of(on_first_device(open_source(path))).items()}


@pytest.fixture(scope="module")
def adapted(finished, text, tmp_path_factory) -> Path:
    """The workdir of a run of LoRA beside the finished model."""
    workdir = tmp_path_factory.mktemp("merge") / "adapted"
    more = dict(model__adapter__rank=2, optimizer__learning_rate=0.03, optimizer__warmup=1)
    runs.train(workdir, init_from=finished, data__input=text, **START, **more)
    return workdir


def test_a_run_a_folder_and_an_adapter_are_merged(finished, adapted, tmp_path):
    published, alone, merged = tmp_path / "published", tmp_path / "alone", tmp_path / "merged"
    convert("export", workdir=finished, to=published)
    convert("export", workdir=adapted, to=alone, merge=True)
    flags = dict(method="task_arithmetic", base=finished, models=f"{published},{adapted}", weights="3,0.5", workdir=merged)
    done = runs.run(line(**flags))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"2 models were merged into {merged}"
    base, other, got = map(weights_of, (finished, alone, merged))
    for name, x in base.items():
        np.testing.assert_allclose(got[name], (x + other[name]) / 2, rtol=1e-5, atol=1e-6, err_msg=name)
    assert any(np.abs(other[name] - x).max() > 1e-3 for name, x in base.items())

    model, tokenizer = lm.load(merged)
    assert lm.generate(model, tokenizer, ["ab cd"], max_new_tokens=3, temperature=0)
    recorded = json.loads((merged / "config.json").read_text())["merge"]
    assert recorded["method"] == "task_arithmetic" and recorded["weights"] == [3, 0.5]
    before = contents(merged)
    refused(line(**flags), "not empty")
    assert contents(merged) == before


def test_what_cannot_be_merged_is_one_line(finished, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_workdir(other, TINY, jax.tree.map(lambda x: x, parameters(TINY, 0)))
    two = f"{finished},{finished}"
    for flags, words in (
        (dict(method="linear", models=f"{finished},{other}"), ["no models of one shape: model.head_dim is 16 and 8"]),
        (dict(method="linear", models=f"{finished},{tmp_path / 'none'}"), [str(tmp_path / "none")]),
        (dict(method="linear", models=two, weights="1,a"), ["--weights=1,a: each must be a number"]),
        (dict(method="linear", models=two, weights="1"), ["1 weights for 2 models"]),
        (dict(method="linear", models=two, density="0.5"), ["--density means nothing to linear"]),
        (dict(method="ties", models=two), ["ties needs the base"]),
        (dict(method="ties", models=two, base=finished, density="1.5"), ["density"]),
        (dict(method="mean", models=two), ["--method=mean", "task_arithmetic"]),
        (dict(models=two), ["--method is missing"]),
    ):
        refused(line(**flags, workdir=tmp_path / "merged"), *words)
        assert not (tmp_path / "merged").exists()


def test_help_teaches():
    done = runs.run([*line(), "--help"])
    assert done.returncode == 0 and "--method=slerp" in done.stdout and "--density" in done.stdout
