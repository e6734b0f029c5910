"""Rollouts that are sampled while earlier steps train: by which parameters, what a checkpoint holds, what is refused."""

import contextlib

import jax
import numpy as np
import pytest

from configs.align import grpo
from data.chat.template import encode_chat
from data.text.sentencepiece_tokenizer import train
from lm.align import settings
from lm.align.rl import objective as rl
from lm.align.rl.ahead import meshes
from lm.align.rl.rewards import Rewards
from lm.align.rl.rollouts import sampler_of
from lm.align.rl.stream import RolloutStream
from lm.errors import UserError
from lm.infer.engine import local
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh
from lm.runs.checkpoint import PENDING, Checkpoints
from lm.train.step import make_trainer, model_config_of
from tests.lm.examples import first_state
from tests.slow import all_but

STEPS = 6
ADAPTER = {"rank": 2, "targets": ".*"}


def config_of(lag, **model):
    config = grpo.get_config()
    config.batch_size, config.sequence_length, config.dtype, config.steps = 8, 40, "float32", STEPS
    config.model.update(vocab_size=304, num_layers=1, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    config.model.update(model)
    config.model.score_head = "none"
    config.rollout.max_new_tokens = 6
    config.optimizer.update(learning_rate=3e-2, warmup=0)
    config.rl.update(group_size=4, correction="token", max_lag=lag)
    return config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(["the cat sat on the mat\n"] * 9, path, vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)


@pytest.fixture(scope="module")
def opened(tokenizer):
    """A context of (stream, step, first state) of a config."""
    steps = {}

    @contextlib.contextmanager
    def make(config):
        training, sampling = meshes(config) if config.rl.sampling_devices else [make_mesh({"data": 1}, jax.devices()[:1])] * 2
        mesh = None if sampling == training else sampling
        prompts = [[{"role": "user", "content": f"the cat sat {n}"}] for n in range(5)]
        ids = (encode_chat(tokenizer, prompt, add_generation_prompt=True).ids for prompt in prompts)
        tasks = [{"prompt": prompt, "prompt_ids": found} for prompt, found in zip(prompts, ids)]
        rewards = Rewards(("length",), (lambda prompts, completions, **columns: [float(len(c)) for c in completions],), (1.0,))
        sampler = sampler_of(config, skeleton(model_config_of(config))[0], tokenizer, tasks, mesh=mesh)
        trainer = make_trainer(config, rl.objective(config))
        stream = RolloutStream(config, training, sampler, tasks, rewards)
        stream.start(0)
        with jax.set_mesh(training), contextlib.closing(sampler), contextlib.closing(stream):
            step_fn = steps.setdefault((training, config.model.adapter.rank), jax.jit(trainer.step, donate_argnums=0))
            yield stream, step_fn, first_state(trainer, config, training)

    return make


def trained(stream, step_fn, state, steps):
    """Train these steps. Return (the state after them, by step the parameters before it, its batch and its numbers)."""
    found = {}
    for step in steps:
        before = jax.device_get(state.params)
        batch, metrics = stream.next(step, state.params, lambda: 0.0)
        found[step] = before, jax.device_get(batch), metrics
        state, _ = step_fn(state, batch)
    return state, found


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("lag", "model"), all_but([(3, {})], [(3, {}), (1, {"adapter": ADAPTER})]))
def test_a_batch_is_that_of_the_parameters_so_many_steps_before(opened, lag, model):
    with opened(config_of(lag, **model)) as made:
        _, found = trained(*made, range(1, STEPS + 1))
    with opened(config_of(0, **model)) as (taking_turns, _, state):
        where = jax.tree.map(lambda x: x.sharding, state.params)
        for step, (_, batch, metrics) in found.items():
            version = max(1, step - lag)
            older, now = (
                jax.device_get(taking_turns.next(step, jax.device_put(found[n][0], where), lambda: 0.0)[0])
                for n in (version, step)
            )
            proximal = batch.pop("old_logps")
            assert same(batch, {name: x for name, x in older.items() if name != "old_logps"}), step
            assert metrics["sample/staleness_max"] == step - version
            # The limit of an update is measured from the parameters before it, not from those that sampled.
            assert np.array_equal(proximal, older["old_logps"]) == (version == step)
            assert version == step or not np.array_equal(now["sampler_logps"], batch["sampler_logps"])


@pytest.mark.parametrize("lag", all_but([4], [1, 4]))
def test_a_run_that_resumes_ends_with_the_same_bits(opened, lag, tmp_path):
    with opened(config_of(lag)) as made:
        whole, found = trained(*made, range(1, STEPS + 1))
    for cut in (2,) if lag == 4 else (1, 4):
        with opened(config_of(lag)) as (stream, step_fn, state):
            state, _ = trained(stream, step_fn, state, range(1, cut + 1))
            saved = jax.device_get(state)
            with contextlib.closing(Checkpoints(tmp_path / str(cut))) as checkpoints:
                checkpoints.save(cut, {"params": state.params, PENDING: stream.pending()}, {})
                checkpoints.wait()
                pending = checkpoints.pending(cut)
        assert set(pending) == {str(n) for n in range(cut + 1, min(cut + lag, STEPS) + 1)}
        with opened(config_of(lag)) as (stream, step_fn, _):
            stream.take(pending)
            state, again = trained(stream, step_fn, jax.device_put(saved), range(cut + 1, STEPS + 1))
        for step, (_, batch, metrics) in again.items():
            assert same(batch, found[step][1]), step
            timeless = [{k: v for k, v in m.items() if not k.startswith("seconds/")} for m in (metrics, found[step][2])]
            assert timeless[0] == timeless[1]
        for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(one, other)


def test_devices_that_only_sample_give_the_rollouts_of_those_that_train(opened, monkeypatch):
    """Weights are split over both meshes, in other ways. Nothing that samples is on a device that trains."""
    monkeypatch.setattr(local, "packs", lambda *_: False)  # as on accelerators
    config = config_of(1)
    config.mesh.update(data=1, fsdp=2, tensor=2)
    config.rl.update(sampling_devices=4, sampling_tensor=2)
    with opened(config) as (stream, step_fn, state):
        whole, found = trained(stream, step_fn, state, range(1, STEPS + 1))
        where = stream.sampler.engine._engine._mesh
        assert {x.sharding.mesh.size for x in jax.tree.leaves(whole.params)} == {4}
    assert dict(where.shape) | {"data": 2, "tensor": 2} == dict(where.shape)
    assert not set(where.devices.flat) & set(jax.tree.leaves(whole.params)[0].sharding.device_set)
    with opened(config_of(0)) as (taking_turns, _, state):
        one = jax.tree.map(lambda x: x.sharding, state.params)
        for step, (_, batch, metrics) in found.items():
            older = jax.device_put(found[max(1, step - 1)][0], one)
            alone = jax.device_get(taking_turns.next(step, older, lambda: 0.0)[0])
            assert metrics["sample/staleness_max"] == min(step - 1, 1)
            assert np.array_equal(batch["tokens"], alone["tokens"]), step
            np.testing.assert_allclose(batch["sampler_logps"], alone["sampler_logps"], atol=2e-5)
    with opened(config) as (stream, step_fn, state):
        state, _ = trained(stream, step_fn, state, [1, 2])
        saved, pending = jax.device_get(state), jax.device_get(stream.pending())
        sharded = jax.tree.map(lambda x: x.sharding, state)
    with opened(config) as (stream, step_fn, _):
        stream.take(pending)
        again, _ = trained(stream, step_fn, jax.device_put(saved, sharded), range(3, STEPS + 1))
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_was_sampled_for_a_longer_lag_or_another_batch_is_sampled_anew(opened):
    with opened(config_of(4)) as (stream, step_fn, state):
        state, _ = trained(stream, step_fn, state, range(1, 5))
        saved, pending = jax.device_get(state), stream.pending()
    with opened(config_of(1)) as (stream, step_fn, _):
        stream.take(pending)
        assert not stream.pending()
        _, found = trained(stream, step_fn, jax.device_put(saved), range(5, STEPS + 1))
    assert [metrics["sample/staleness_max"] for _, _, metrics in found.values()] == [0, 1]
    config = config_of(4)
    config.batch_size = 16
    with opened(config) as (stream, _, _):
        stream.take(pending)
        assert not stream.pending()


def test_an_error_while_sampling_ends_the_step_that_needs_it(opened):
    with opened(config_of(1)) as (stream, step_fn, state):
        state, _ = trained(stream, step_fn, state, [1])
        broken = jax.tree.map(lambda x: x * np.nan, state.params)
        stream.next(2, broken, lambda: 0.0)
        with pytest.raises(UserError, match="NaN"):
            stream.next(3, broken, lambda: 0.0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (dict(max_lag=-1), "rl.max_lag=-1"),
        (dict(require_equal=True), "rl.require_equal=True"),
        (dict(correction="none"), "rl.correction=token"),
        (dict(max_lag=0, sampling_devices=1), "rl.sampling_devices=1 .* set rl.max_lag=1"),
    ],
)
def test_settings_that_contradict_each_other_are_named(keys, words):
    config = config_of(1)
    config.rl.update(keys)
    with pytest.raises(UserError, match=words):
        settings.check_method(config)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, r"rl\.max_lag=1 .* where there are 8: set rl\.sampling_devices"),
        (dict(sampling_devices=8), r"rl\.sampling_devices=8 must leave devices to train on of the 8 of a process"),
        (dict(sampling_devices=3, sampling_tensor=2), r"rl\.sampling_devices=3 must .* a multiple of rl\.sampling_tensor=2"),
        (dict(sampling_devices=4, sampling_tensor=4), r"rl\.sampling_tensor=4: .* does not divide model\.num_kv_heads=2"),
    ],
)
def test_devices_that_would_wait_for_one_another_are_refused(keys, words):
    config = config_of(1)
    config.rl.update(keys)
    with pytest.raises(UserError, match=words):
        meshes(config)
