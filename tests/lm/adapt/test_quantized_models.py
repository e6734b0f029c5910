"""Quantised models: how far their logits are off, what they weigh, and that they come back."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from lm.adapt.quantize import dequantize, memory, quantize
from lm.adapt.rebuild import arrays_of
from lm.config import Quantization
from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Request
from lm.infer.engine.room import Capacity
from lm.model.transformer import build, skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.adapt.models import LATENT, TINY, TOKENS, logits
from tests.lm.examples import parameters
from tests.slow import all_but

# Root mean square of the logits' error over that of the logits, of a random model: the bounds that docs/adapt.md states.
BOUNDS = {(8, 0): 0.015, (8, 8): 0.01, (4, 0): 0.25, (4, 8): 0.15}


def loud(config):
    """Weights so large that what the layers do shows in the logits."""
    return parameters(config, scale=2.0)


@pytest.mark.parametrize("bits, group", all_but([(8, 0), (4, 8)], BOUNDS))
def test_logits_stay_within_the_stated_error(bits, group):
    exact = np.asarray(logits(TINY, loud(TINY)))
    config, params = quantize(TINY, loud(TINY), Quantization(bits=bits, group=group))
    error = np.sqrt(np.mean((logits(config, params) - exact) ** 2) / np.mean(exact**2))
    assert BOUNDS[bits, group] / 4 < error < BOUNDS[bits, group]
    # The integers are multiplied as what they stand for.
    floats, dequantised = dequantize(config, params)
    assert floats == TINY
    np.testing.assert_allclose(logits(floats, dequantised), logits(config, params), atol=1e-4)


@pytest.mark.parametrize("bits, group", all_but([(4, 4)], [(8, 0), (4, 4)]))
def test_memory_falls_as_computed(bits, group):
    """n·bits/8 bytes of integers and 2 of each scale, instead of 4·n; embedding, head, router and vectors stay."""
    params = parameters(LATENT)
    config, integers = quantize(LATENT, params, Quantization(bits=bits, group=group))
    expected = 0
    for name, x in arrays_of(params).items():
        kept = x.nbytes
        if name.endswith(".weight") or name.split(".")[-1] in ("gate", "up", "down"):
            layers, *shape = x.shape
            experts = shape.pop(0) if not name.endswith(".weight") else 1
            inputs = math.prod(shape[:2]) if "attention.output" in name else shape[0]
            scales = x.size // (group or inputs)
            kept = x.size * bits // 8 + 2 * scales
            assert layers * experts * math.prod(shape) == x.size
        expected += kept
    assert memory(params) == sum(x.nbytes for x in jax.tree.leaves(params)) == memory(skeleton(LATENT)[1])
    assert memory(integers) == expected == memory(skeleton(config)[1])
    # What devices hold is what was computed, int4 included.
    assert sum(x.on_device_size_in_bytes() for x in jax.tree.leaves(integers)) == expected


def test_experts_are_quantised_each_on_its_own():
    config, params = quantize(LATENT, loud(LATENT), Quantization(bits=4, group=4, targets=r"feed_forward\.(gate|down)"))
    arrays = arrays_of(params)
    assert arrays["stacks.0.0.feed_forward.gate.integers"].shape == (2, 4, 16, 16)
    assert arrays["stacks.0.0.feed_forward.gate.scale"].shape == (2, 4, 8, 16)
    assert "stacks.0.0.feed_forward.up" in arrays and "stacks.0.0.feed_forward.shared.gate.weight" in arrays
    exact = np.asarray(logits(LATENT, loud(LATENT)))
    error = np.sqrt(np.mean((logits(config, params) - exact) ** 2) / np.mean(exact**2))
    assert 0.005 < error < 0.15
    np.testing.assert_allclose(logits(*dequantize(config, params)), logits(config, params), atol=1e-4)


def test_a_seed_makes_what_quantising_makes():
    begun = jax.jit(lambda: build(TINY, 0))()
    config, params = quantize(TINY, begun, Quantization(bits=4, group=4))
    made = arrays_of(jax.jit(lambda: build(config, 0))())
    for name, x in arrays_of(params).items():
        np.testing.assert_array_equal(x, made[name])


@pytest.mark.slow
@pytest.mark.parametrize("config, group", [(TINY, 8), (LATENT, 4)], ids=["grouped", "latent"])
def test_a_mesh_gives_the_same_integers_and_logits(config, group):
    params = loud(config)
    expected_config, expected = quantize(config, params, Quantization(bits=4, group=group))
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert": 2} if config is LATENT else {"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        there = jax.device_put(params, shardings(skeleton(config)[1], mesh))
        new, integers = quantize(config, there, Quantization(bits=4, group=group))
        assert new == expected_config
        wanted = arrays_of(shardings(skeleton(new)[1], mesh))
        for name, x in arrays_of(integers).items():
            assert x.sharding == wanted[name]
            np.testing.assert_array_equal(x, arrays_of(expected)[name])
        np.testing.assert_allclose(logits(new, integers), logits(new, expected), atol=1e-4)


def test_what_cannot_be_quantised_is_said():
    with pytest.raises(UserError, match="matches none"):
        quantize(TINY, parameters(TINY), Quantization(bits=8, targets="q_proj"))
    with pytest.raises(UserError, match="quantization.group=7 does not divide"):
        quantize(TINY, parameters(TINY), Quantization(bits=8, group=7))
    config, params = quantize(TINY, parameters(TINY), Quantization(bits=8, targets=".*query"))
    with pytest.raises(UserError, match="dequantize them first"):
        quantize(config, params, Quantization(bits=4))


@pytest.mark.parametrize("config", all_but([TINY], [TINY, LATENT]), ids=["grouped", "latent"])
def test_decoding_with_an_int8_cache_stays_within_the_stated_error(config):
    model, found = nnx.merge(skeleton(config)[0], loud(config)), {}
    requests = [Request(tuple(row), 1, temperature=0, prompt_logprobs=0) for row in TOKENS.tolist()]
    for dtype in ("float32", "int8"):
        engine = Engine(model, None, Capacity(rows=4, budget=16, pages=64, page=4, cache_dtype=dtype))
        found[dtype] = np.asarray([[one.chosen for one in answer.prompt[1:]] for answer in engine.answers(requests)])
        engine.close()
    assert 0 < np.std(found["int8"] - found["float32"]) < 0.01 * np.std(found["float32"])
