"""train.py --config.init_from: a run that starts from another one's weights, whole, or beside adapters on integers."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lm.convert.source import on_first_device, open_source
from lm.convert.to_published import to_published
from lm.convert.to_workdir import write_workdir
from lm.errors import UserError
from lm.files import checksums
from lm.runs.checkpoint import named, plain
from tests.verbs import runs

START = dict(steps=6, checkpoint_every=0, valid_every=0, data__log_ids=False, model__vocab_size=None, model__embed_dim=None)


def params(workdir, step):
    return {name: x for name, x in runs.arrays(workdir, step).items() if name.startswith("['params']")}


def test_it_goes_on_from_the_weights_and_the_config(finished, text, tmp_path):
    runs.train(tmp_path / "on", init_from=finished, data__input=text, optimizer__learning_rate=0.0, **START)
    before, after = params(finished, runs.STEPS), params(tmp_path / "on", START["steps"])
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(x, after[name], err_msg=name)
    assert json.loads((tmp_path / "on" / "config.json").read_text())["model"]["embed_dim"] == 32
    assert (tmp_path / "on" / "tokenizer.model").read_bytes() == (finished / "tokenizer.model").read_bytes()
    assert runs.training(tmp_path / "on")[0]["loss"] < 0.9 * runs.training(finished)[0]["loss"]


def test_a_longer_context_with_a_raised_base_resumes(finished, text, tmp_path):
    settings = START | dict(init_from=finished, data__input=text, sequence_length=128, extend__theta=1e6, steps=1)
    runs.train(tmp_path / "long", **settings)
    runs.train(tmp_path / "long", **settings | dict(steps=2))
    model = json.loads((tmp_path / "long" / "config.json").read_text())["model"]
    assert model["rope"]["theta"] == 1e6 and model["max_positions"] >= 128
    assert len(runs.training(tmp_path / "long")) == 2
    done = runs.run(runs.line(tmp_path / "long", **settings | dict(extend__theta=2e6, steps=3)))
    assert done.returncode == 2 and "extend.theta" in done.stderr
    # A run that starts from the longer model has its positions, and may raise them again.
    runs.train(tmp_path / "on", **settings | dict(init_from=tmp_path / "long", extend__theta=2e6))
    assert json.loads((tmp_path / "on" / "config.json").read_text())["model"]["rope"]["theta"] == 2e6


@pytest.fixture(scope="module")
def adapted(finished, text, tmp_path_factory):
    """(workdir, settings) of a run of adapters beside 8-bit weights."""
    workdir, settings = tmp_path_factory.mktemp("adapted") / "run", adapted_settings(finished, text)
    runs.train(workdir, **settings)
    return workdir, settings


def adapted_settings(base, text):
    return dict(
        init_from=base,
        data__input=text,
        model__adapter__rank=2,
        model__quantization__bits=8,
        optimizer__learning_rate=0.01,
        optimizer__warmup=1,
        **START,
    )


def read(workdir, step=None):
    """All parameters of a run as a reader sees them, wherever they are kept."""
    return {name: np.asarray(x) for name, x in named(plain(on_first_device(open_source(workdir, step)))).items()}


@pytest.mark.slow
def test_only_adapters_learn_and_the_run_resumes(adapted, finished):
    workdir, settings = adapted
    first = read(workdir, 6)
    runs.train(workdir, **settings | dict(steps=12))
    second = read(workdir, 12)
    changed = {name for name in first if not np.array_equal(first[name], second[name])}
    assert changed and changed == {name for name in first if "lora" in name}
    assert any(x.dtype == np.int8 for x in first.values())
    np.testing.assert_array_equal(first["embedding"], params(finished, runs.STEPS)["['params']['embedding']"])


@pytest.mark.slow
def test_a_checkpoint_holds_what_learns(adapted, finished):
    """Adapters, their moments and counters; the base stays where it is."""
    held, learnt = runs.arrays(adapted[0], 6), params(adapted[0], 6)
    assert learnt and all("lora" in name for name in learnt)
    assert sum(x.nbytes for x in held.values()) < 0.1 * sum(x.nbytes for x in runs.arrays(finished).values())


@pytest.fixture
def moved(adapted, finished, tmp_path):
    """(the adapter's workdir, its base), both copied: under their new paths nothing is where it was."""
    shutil.copytree(finished, tmp_path / "models" / "base")
    shutil.copytree(adapted[0], tmp_path / "runs" / "adapter")
    workdir, base = tmp_path / "runs" / "adapter", tmp_path / "models" / "base"
    step = max(runs.steps_saved(workdir))
    meta = workdir / "checkpoints" / str(step) / "meta"
    known = json.loads((meta / "metadata").read_text())
    known["base"] |= {"path": str(tmp_path / "gone"), "relative": "../../gone"}
    (meta / "metadata").write_text(json.dumps(known))
    checksums.write(meta)
    point_to(workdir, tmp_path / "gone")
    return workdir, base


def point_to(workdir, base):
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"init_from": str(base), "tokenizer": str(base)}))


def test_a_base_that_moved_is_found_by_the_config(moved, adapted):
    workdir, base = moved
    with pytest.raises(UserError, match=r"does not exist.*init_from in .*config\.json"):
        open_source(workdir)
    point_to(workdir, base)
    expected = read(adapted[0])
    for name, x in read(workdir).items():
        np.testing.assert_array_equal(x, expected[name], err_msg=name)


def test_a_base_that_changed_is_refused(moved, text, tmp_path):
    """Another model in its place, or another step of it; the place is a link to it."""
    workdir, base = moved
    link = tmp_path / "gone"
    link.symlink_to(base)
    assert open_source(workdir).config.adapter.rank == 2
    shutil.rmtree(base / "checkpoints" / str(runs.STEPS))
    with pytest.raises(UserError, match=rf"step {runs.STEPS}, which does not exist"):
        open_source(workdir)
    shutil.copytree(base / "checkpoints" / str(runs.STEPS - 20), base / "checkpoints" / str(runs.STEPS))
    settings = adapted_settings(link, text)
    done = runs.run(runs.line(workdir, **settings | dict(steps=20)))
    assert done.returncode == 2 and len(runs.complaint(done.stderr)) == 1, done.stderr
    assert "have changed since" in done.stderr and "init_from" in done.stderr


@pytest.mark.slow
def test_an_adapter_that_goes_on_in_another_run_keeps_its_base(adapted, finished, text, tmp_path):
    """The second run names the first one's base, and reads without the first."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(adapted[0], first)
    runs.train(second, init_from=first, data__input=text, optimizer__learning_rate=0.0, **START)
    expected = read(first)
    shutil.rmtree(first)
    for name, x in read(second).items():
        np.testing.assert_array_equal(x, expected[name], err_msg=name)
    done = runs.run([sys.executable, "-m", "lm.generate", f"--checkpoint={second}", "--prompt=a", "--max_new_tokens=2"])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_merged_adapter_keeps_the_dtype_of_its_base(finished, text, tmp_path):
    """A bfloat16 base: as-is the sum rounded to it, float32 if that is asked for."""
    base, workdir = tmp_path / "base", tmp_path / "run"
    source = open_source(finished)
    whole = jax.tree.map(lambda x: x.astype(jnp.bfloat16), on_first_device(source))
    base.mkdir()
    write_workdir(base, source.config, whole)
    shutil.copy(finished / "tokenizer.model", base)
    runs.train(
        workdir,
        init_from=base,
        data__input=text,
        model__adapter__rank=2,
        optimizer__learning_rate=0.1,
        optimizer__warmup=1,
        **START,
    )
    to_published(workdir, tmp_path / "as-is", merge=True)
    to_published(workdir, tmp_path / "float32", merge=True, dtype="float32")
    stored = {name: safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("as-is", "float32")}
    assert json.loads((tmp_path / "as-is" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, x in stored["as-is"].items():
        assert x.dtype == jnp.bfloat16, name
        np.testing.assert_array_equal(x, stored["float32"][name].astype(jnp.bfloat16), err_msg=name)
    query = "model.layers.0.self_attn.q_proj.weight"
    assert np.any(stored["float32"][query] != stored["as-is"][query].astype(np.float32))


def test_a_model_that_has_an_adapter_takes_no_second_one(adapted, text, tmp_path):
    settings = dict(data__input=text, model__adapter__rank=4, **START)
    done = runs.run(runs.line(tmp_path / "more", init_from=adapted[0], **settings))
    assert done.returncode == 2 and len(runs.complaint(done.stderr)) == 1
    assert "model.adapter.rank=4" in done.stderr and not (tmp_path / "more").exists()


def test_describe_sees_the_start(finished):
    command = [*runs.line("unused", init_from=finished, **START), "--describe=json"]
    done = runs.run(command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["parts"]["embedding"]["total"] == 384 * 32
