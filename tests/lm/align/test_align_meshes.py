"""One update of every objective that learns from examples: on eight devices, in slices, as on one device at once."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from configs.align import default
from lm.align import preference, reward, settings, sft
from lm.errors import UserError
from lm.model.linear import trainable
from lm.parallel.mesh import make_mesh
from lm.train.feed import Feed
from lm.train.step import make_trainer, model_config_of
from tests.lm.align.batches import align_config, labelled_batch, pair_batch
from tests.lm.examples import first_state, packed_batch

OBJECTIVES = {
    "sft": (sft, dict(sft=dict(neftune_alpha=5.0)), lambda config: packed_batch(config, 0)),
    "dpo": (preference, dict(preference=dict(loss="dpo", nll_weight=0.5)), lambda _: pair_batch(14, filler=2)),
    "kto": (preference, dict(preference=dict(loss="kto")), lambda _: labelled_batch(14, filler=2)),
    "reward": (reward, dict(model=dict(score_head="reward")), lambda _: pair_batch(14, filler=2)),
}


MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}]


def updated(name: str, sizes: dict, accumulate: int, **more):
    """({metric: value}, the moments) after one step."""
    method, keys, make_batch = OBJECTIVES[name]
    keys = keys | more
    config = align_config(batch_size=16, **keys)
    config.accumulate = accumulate
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    with jax.set_mesh(mesh):
        trainer = make_trainer(config, method.objective(config))
        state = first_state(trainer, config, mesh)
        frozen = nnx.filter_state(state.params, trainable(model_config_of(config)))
        frozen = jax.tree.map(lambda p: 0.5 * p, frozen)  # a reference that is another policy
        feed = Feed(types.SimpleNamespace(batch_size=16, sequence_length=config.sequence_length), mesh)
        step = jax.jit(trainer.step)
        state, metrics = step(state, feed.to_devices(make_batch(config)), frozen)
    return {name: float(x) for name, x in metrics.items()}, [np.asarray(x) for x in jax.tree.leaves(state.optimizer[0].mu)]


@pytest.mark.parametrize(
    ("method", "keys", "named"),
    [
        ("rl", {"rewards": "length=1"}, "method=rl writes answers"),
        ("distill", {"distill": {"kind": "on_policy", "teacher": "other"}}, "method=distill writes answers"),
        ("best_of", {"rewards": "length=1"}, "method=best_of writes answers"),
        ("sft", {"sft": {"neftune_alpha": 5.0}}, "sft.neftune_alpha=5.0"),
    ],
)
def test_methods_that_need_whole_sequences_refuse_to_split_them(method, keys, named):
    config = default.get_config()
    config.update(method=method, init_from="model", **keys)
    config.data.input, config.mesh.context = "examples.jsonl", 2
    with pytest.raises(UserError, match=f"mesh.context=2 .*{named}.*set mesh.context=1"):
        settings.check(config)
    config.mesh.context = 1
    settings.check(config)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_as_on_one_device(name, sizes):
    more = {"sft": {}} if "context" in sizes and name == "sft" else {}  # noise needs whole sequences
    metrics, moments = updated(name, {}, 1, **more)
    # The zero point of KTO is that of a slice.
    spread, others = updated(name, sizes, 1 if name == "kto" else 2, **more)
    extremes = {"min_reward", "max_reward"}  # of a slice
    for key in metrics.keys() - extremes:
        assert spread[key] == pytest.approx(metrics[key], rel=1e-4, abs=1e-6), key
    for ours, theirs in zip(moments, others, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max() + 1e-9)
