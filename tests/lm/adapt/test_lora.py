"""Adapters: how they start, what training changes, what merging gives, and their way to disk and back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from lm.adapt import lora
from lm.adapt.quantize import dequantize, quantize
from lm.adapt.rebuild import arrays_of, combined
from lm.config import Adapter, ModelConfig, Quantization
from lm.errors import UserError
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from lm.train.step import make_trainer
from tests.lm.adapt.models import LATENT, TINY, TOKENS, adapted_model, forward, logits, shaken
from tests.lm.examples import packed_batch, parameters, tiny_config
from tests.slow import all_but

KINDS = {
    "lora": Adapter(rank=4, alpha=8.0, targets=r".*"),
    "rank-stabilised": Adapter(rank=4, alpha=8.0, targets=r"attention\.(query|value)|feed_forward.*", rank_stabilized=True),
    "dora": Adapter(rank=4, alpha=8.0, targets=r".*", dora=True),
}


STARTS = [("lora", "float32"), ("dora", "float32"), ("dora", "bfloat16")]


@pytest.mark.parametrize("kind, dtype", all_but([("dora", "bfloat16")], STARTS))
def test_an_adapted_model_starts_bit_equal_to_its_base(kind, dtype, optimised):
    config = dataclasses.replace(TINY, dtype=dtype)
    run = jax.jit(forward, static_argnums=0)
    np.testing.assert_array_equal(run(*adapted_model(config, KINDS[kind])), run(config, parameters(config)))


ADAPTED = [*((TINY, adapter) for adapter in KINDS.values()), (LATENT, KINDS["dora"])]


@pytest.mark.parametrize("config, adapter", all_but([ADAPTED[1], ADAPTED[3]], ADAPTED), ids=[*KINDS, "dora-latent"])
def test_merged_and_unmerged_models_are_the_same(config, adapter):
    base = logits(config, parameters(config))
    adapted, params = adapted_model(config, adapter)
    np.testing.assert_array_equal(logits(adapted, params), base)
    params = shaken(params)
    plain, merged = lora.merge(adapted, params)
    assert plain == config
    ours = logits(adapted, params)
    np.testing.assert_allclose(logits(plain, merged), ours, atol=1e-5)
    assert np.abs(ours - base).max() > 0.1


def test_adapters_are_put_beside_weights_that_stay():
    base = parameters(TINY, seed=5)
    config, params = lora.with_adapter(TINY, base, KINDS["rank-stabilised"], seed=3)
    arrays = arrays_of(params)
    for name, x in arrays_of(base).items():
        assert arrays[name] is x
    # torch's Linear starts so, and PEFT's A.
    a = np.asarray(arrays["stacks.0.0.feed_forward.down.lora_a"])
    assert 0.9 * 48**-0.5 < np.abs(a).max() <= 48**-0.5 and abs(a.mean()) < 0.02
    other = lora.with_adapter(TINY, base, KINDS["rank-stabilised"], seed=4)[1]
    assert not np.array_equal(arrays_of(other)["stacks.0.0.feed_forward.down.lora_a"], a)
    np.testing.assert_array_equal(logits(config, params), logits(TINY, base))


def test_dora_is_what_its_paper_says():
    """m · (W + s·A·B) / ‖W + s·A·B‖ with the matrix made, against a factor found without it."""
    adapter = dataclasses.replace(KINDS["dora"], targets=r"attention\.output|feed_forward\.up")
    config, params = adapted_model(TINY, adapter)
    before, params = arrays_of(params), shaken(params)
    _, merged = lora.merge(config, params)
    arrays, merged = arrays_of(params), arrays_of(merged)
    for name, outputs in (("stacks.0.0.attention.output", 1), ("stacks.0.0.feed_forward.up", 1)):
        w, a, b, change = (np.asarray(arrays[f"{name}.{x}"], np.float64) for x in ("weight", "lora_a", "lora_b", "magnitude"))
        inputs = tuple(range(1, w.ndim - outputs))
        m = np.sqrt((w**2).sum(inputs)) + change
        v = w + 2.0 * np.einsum("n...r,nro->n...o", a, b)
        expected = v * np.expand_dims(m / np.sqrt((v**2).sum(inputs)), inputs)
        np.testing.assert_allclose(merged[f"{name}.weight"], expected, atol=1e-6)
        assert np.asarray(before[f"{name}.magnitude"] == 0).all()


@pytest.mark.parametrize("kind, bits, group", all_but([("dora", 4, 8)], [("lora", 0, 0), ("dora", 4, 8)]))
def test_training_changes_adapters_alone(kind, bits, group):
    quantization = dataclasses.asdict(Quantization(bits=bits, group=group))
    config = tiny_config(adapter=dataclasses.asdict(KINDS[kind]), quantization=quantization)
    config.optimizer.learning_rate, config.optimizer.weight_decay = 3e-2, 0.1
    trainer = make_trainer(config)
    state = jax.jit(trainer.init)()
    step = jax.jit(trainer.step)
    first, losses = arrays_of(state.params), []
    for _ in range(6):
        state, metrics = step(state, packed_batch(config, 0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    moments = jax.tree.leaves(state.optimizer[0].mu)
    learned = arrays_of(lora.adapter_only(state.params))
    assert sum(x.size for x in moments) == sum(x.size for x in learned.values())
    for name, x in arrays_of(state.params).items():
        assert np.array_equal(x, first[name]) == (name not in learned), name


def test_gradients_are_those_of_the_merged_weight():
    """dL/dA = s · dL/dW · Bᵀ and dL/dB = s · Aᵀ · dL/dW."""
    config, params = adapted_model(TINY, KINDS["lora"])
    params = shaken(params)
    plain, merged = lora.merge(config, params)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(config, params):
        learned, frozen = nnx.split_state(params, trainable(config), ...)

        def loss(learned):
            return jnp.sum(nnx.merge(skeleton(config)[0], nnx.merge_state(learned, frozen))(TOKENS) ** 2)

        return arrays_of(jax.grad(loss)(learned))

    low, full, arrays = gradient(config, params), gradient(plain, merged), arrays_of(params)
    for name in ("attention.query", "feed_forward.down"):
        name = f"stacks.0.0.{name}"
        a, b, w = arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"], full[f"{name}.weight"]
        n, D, r = a.shape
        w, b = w.reshape(n, D, -1), b.reshape(n, r, -1)
        np.testing.assert_allclose(low[f"{name}.lora_a"], 2 * w @ b.swapaxes(1, 2), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(low[f"{name}.lora_b"].reshape(b.shape), 2 * a.swapaxes(1, 2) @ w, rtol=1e-3, atol=1e-3)


def test_a_seed_makes_the_same_base_with_and_without_adapters():
    adapted = arrays_of(parameters(dataclasses.replace(TINY, adapter=KINDS["dora"])))
    for name, x in arrays_of(parameters(TINY)).items():
        np.testing.assert_array_equal(x, adapted[name])


@pytest.mark.slow
def test_a_mesh_gives_the_same_numbers():
    config, params = adapted_model(TINY, KINDS["dora"])
    params = shaken(params)
    expected, (_, whole) = logits(config, params), lora.merge(config, params)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        put = lambda config, params: jax.device_put(params, shardings(skeleton(config)[1], mesh))  # noqa: E731
        np.testing.assert_allclose(logits(config, put(config, params)), expected, atol=1e-5)
        new, fresh = lora.with_adapter(TINY, put(TINY, parameters(TINY)), KINDS["dora"])
        assert fresh["stacks"][0][0]["attention"]["query"]["lora_b"].get_value().sharding.spec == P(None, None, "tensor", None)
        plain, merged = lora.merge(config, put(config, params))
        for name, x in arrays_of(merged).items():
            assert x.sharding.mesh == mesh
            np.testing.assert_allclose(x, arrays_of(whole)[name], atol=1e-6)


def test_a_quantised_base_gives_its_adapters_up_when_asked():
    config, params = quantize(*adapted_model(TINY, KINDS["dora"]), Quantization(bits=4, group=8))
    params = shaken(params)
    with pytest.raises(UserError, match="dequantize=True"):
        lora.merge(config, params)
    plain, merged = lora.merge(config, params, dequantize=True)
    assert plain == TINY
    np.testing.assert_allclose(logits(plain, merged), logits(config, params), atol=1e-5)
    alone, floats = dequantize(config, params)
    assert alone.adapter == config.adapter
    np.testing.assert_allclose(logits(alone, floats), logits(config, params), atol=1e-5)


def test_targets_that_match_nothing_are_an_error():
    with pytest.raises(UserError, match=r"targets='q_proj' matches none of attention.key, .*feed_forward.up"):
        lora.with_adapter(TINY, parameters(TINY), Adapter(rank=2, targets="q_proj"))
    config, params = adapted_model(TINY, KINDS["lora"])
    with pytest.raises(UserError, match="merge it first"):
        lora.with_adapter(config, params, KINDS["lora"])
    with pytest.raises(KeyError):
        combined(dataclasses.replace(config, adapter=KINDS["dora"]), arrays_of(params))


def test_which_variables_are_trained():
    for config in (TINY, ModelConfig(**{**TINY.to_dict(), "adapter": KINDS["dora"]})):
        abstract = skeleton(config)[1]
        learned = arrays_of(nnx.filter_state(abstract, trainable(config)))
        assert set(learned) == set(arrays_of(lora.adapter_only(abstract) if config.adapter.rank else abstract))
