"""Rotary frequencies, angles and turning against plain twins and transformers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Rope
from lm.model.positions import attention_factor, rotary_angles, rotary_frequencies, rotate, yarn_mscale
from lm.parallel.mesh import make_mesh, reshard

HEAD, ORIGINAL = 16, 64
FACTORS = dict(short_factor=tuple(np.linspace(1, 1.5, 8)), long_factor=tuple(np.linspace(1, 6, 8)))
YARN = Rope(scaling="yarn", factor=4.0, original_positions=ORIGINAL)
LONGROPE = Rope(scaling="longrope", factor=4.0, original_positions=ORIGINAL, **FACTORS)
NTK = Rope(scaling="ntk", factor=3.0, original_positions=ORIGINAL)
ROPES = {
    "none": Rope(theta=5e4),
    "partial": Rope(fraction=0.5),
    "linear": Rope(scaling="linear", factor=2.5),
    "linear, partial": Rope(scaling="linear", factor=2.5, fraction=0.75),
    "ntk": NTK,
    "ntk, partial": dataclasses.replace(NTK, fraction=0.5),
    "yarn": YARN,
    "yarn, partial": dataclasses.replace(YARN, fraction=0.5),
    "yarn, betas": dataclasses.replace(YARN, beta_fast=4.0, beta_slow=0.5),
    "yarn, one bound": dataclasses.replace(YARN, original_positions=5, beta_fast=1.0),
    "yarn, all dimensions between": dataclasses.replace(YARN, theta=100.0, original_positions=4096, beta_slow=0.01),
    "yarn, untruncated": dataclasses.replace(YARN, truncate=False, theta=1.5e5, original_positions=4096, factor=32.0),
    "yarn, given factor": dataclasses.replace(YARN, attention_factor=0.7),
    "yarn, DeepSeek": dataclasses.replace(YARN, mscale=0.707, mscale_all_dim=1.0),
    "yarn, one mscale": dataclasses.replace(YARN, mscale_all_dim=1.0),
    "llama3": Rope(theta=5e5, scaling="llama3", factor=8.0, original_positions=8192),
    "llama3, partial": Rope(scaling="llama3", factor=4.0, original_positions=ORIGINAL, low_freq_factor=2.0, fraction=0.75),
    "longrope": LONGROPE,
    "longrope, given factor": dataclasses.replace(LONGROPE, attention_factor=1.1),
    "longrope, not stretched": dataclasses.replace(LONGROPE, factor=1.0),
    "longrope, partial": dataclasses.replace(LONGROPE, fraction=0.5, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4),
}


def transformers_rotary(rope: Rope):
    """Llama's rotary module of transformers, made for this rope."""
    pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    given = dict(
        rope_type={"none": "default", "ntk": "dynamic"}.get(rope.scaling, rope.scaling),
        rope_theta=rope.theta,
        partial_rotary_factor=rope.fraction,
        factor=rope.factor,
        original_max_position_embeddings=rope.original_positions,
        attention_factor=rope.attention_factor or None,
    )
    if rope.scaling == "yarn":
        given |= dict(beta_fast=rope.beta_fast, beta_slow=rope.beta_slow, truncate=rope.truncate)
        given |= dict(mscale=rope.mscale, mscale_all_dim=rope.mscale_all_dim)
    if rope.scaling == "llama3":
        given |= dict(low_freq_factor=rope.low_freq_factor, high_freq_factor=rope.high_freq_factor)
    if rope.scaling == "longrope":
        given |= dict(short_factor=list(rope.short_factor), long_factor=list(rope.long_factor))
    positions = rope.original_positions if rope.scaling == "ntk" else round(ORIGINAL * rope.factor)
    config = llama.LlamaConfig(
        hidden_size=2 * HEAD, num_attention_heads=2, head_dim=HEAD, max_position_embeddings=positions, rope_parameters=given
    )
    if rope.scaling == "none" and rope.fraction < 1:  # Llama itself has no partial rotary without scaling
        return pytest.importorskip("transformers.models.phi.modeling_phi").PhiRotaryEmbedding(config)
    return llama.LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_equals_transformers(rope):
    """Frequencies, attention factor, cos and sin: within, at the end of and beyond the original context."""
    torch = pytest.importorskip("torch")
    rotary = transformers_rotary(rope)
    dim = int(HEAD * rope.fraction)
    for length in (20, ORIGINAL, ORIGINAL + 1, 200):  # upwards, since theirs remembers the longest for dynamic NTK
        positions = np.stack([np.arange(length - 20, length), np.arange(20)]).astype(np.int32)
        cos, sin = rotary(torch.zeros(1), torch.tensor(positions))
        frequencies = rotary_frequencies(dim, rope, jnp.int32(length))
        assert frequencies.dtype == np.float32
        np.testing.assert_allclose(frequencies, rotary.inv_freq, rtol=2e-6)
        assert attention_factor(rope) == pytest.approx(rotary.attention_scaling, rel=1e-12)
        ours = rotary_angles(positions, dim, rope, jnp.int32(length))
        for mine, theirs in zip(ours, (cos, sin), strict=True):
            assert mine.shape == (2, 20, 1, dim // 2) and mine.dtype == np.float32
            np.testing.assert_allclose(mine[:, :, 0], theirs[..., : dim // 2], atol=5e-5)


def test_one_pair_turns_by_its_position_at_every_length():
    """Here transformers' dynamic NTK divides by zero."""
    cos, _ = rotary_angles(np.array([[90]]), 2, NTK, jnp.int32(91))
    assert cos.item() == pytest.approx(math.cos(90), abs=1e-5)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_only_what_depends_on_length_reads_it(rope):
    dim = int(HEAD * rope.fraction)
    jaxpr = jax.make_jaxpr(lambda length: rotary_angles(jnp.arange(4)[None], dim, rope, length))(jnp.int32(4)).jaxpr
    used = {id(x) for equation in jaxpr.eqns for x in equation.invars}
    assert (id(jaxpr.invars[0]) in used) == rope.depends_on_length


def test_frequencies_that_were_worked_out_by_hand():
    """d = 4, θ = 10,000: 1 and 1/100."""
    np.testing.assert_allclose(rotary_frequencies(4, Rope(), None), [1, 0.01], rtol=1e-6)
    np.testing.assert_allclose(rotary_frequencies(4, Rope(scaling="linear", factor=4), None), [0.25, 0.0025], rtol=1e-6)
    # Twice the context: θ·(2·2 − 1)^(4/2) = 90,000, whose root is 300.
    ntk = Rope(scaling="ntk", factor=2, original_positions=8)
    np.testing.assert_allclose(rotary_frequencies(4, ntk, jnp.int32(16)), [1, 1 / 300], rtol=1e-6)
    np.testing.assert_allclose(rotary_frequencies(4, ntk, jnp.int32(5)), [1, 0.01], rtol=1e-6)
    # Over 100 positions they turn 15.9 and 0.159 times: more than 4, less than 1.
    llama3 = Rope(scaling="llama3", factor=8, original_positions=100)
    np.testing.assert_allclose(rotary_frequencies(4, llama3, None), [1, 0.00125], rtol=1e-6)
    step = dataclasses.replace(llama3, low_freq_factor=1.0, high_freq_factor=1.0)  # as Llama 4 has it
    with np.errstate(all="raise"):
        np.testing.assert_allclose(rotary_frequencies(4, step, None), [1, 0.00125], rtol=1e-6)
    longrope = Rope(scaling="longrope", factor=2, original_positions=8, short_factor=(1, 2), long_factor=(4, 5))
    np.testing.assert_allclose(rotary_frequencies(4, longrope, jnp.int32(8)), [1, 0.005], rtol=1e-6)
    np.testing.assert_allclose(rotary_frequencies(4, longrope, jnp.int32(9)), [0.25, 0.002], rtol=1e-6)
    assert attention_factor(longrope) == pytest.approx(math.sqrt(4 / 3))


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_eight_devices_equal_one(interleaved):
    x = np.random.default_rng(0).normal(size=(8, 4, 2, HEAD)).astype(np.float32)
    positions = np.zeros((8, 1), np.int32) + np.arange(70, 74, dtype=np.int32)

    def turned(x, positions):
        return rotate(x, *rotary_angles(positions, 8, NTK, jnp.max(positions) + 1), interleaved)

    with jax.set_mesh(make_mesh(dict(data=2, fsdp=2, tensor=2))):
        x_sharded = reshard(jnp.asarray(x), "batch", "length", "heads", None)
        together = jax.jit(turned)(x_sharded, reshard(jnp.asarray(positions), "batch", "length"))
        assert together.sharding == x_sharded.sharding
    np.testing.assert_allclose(together, turned(jnp.asarray(x), jnp.asarray(positions)), atol=1e-5)


def test_mscale():
    assert yarn_mscale(math.e**2) == pytest.approx(1.2)
    assert yarn_mscale(math.e**2, 0.5) == pytest.approx(1.1)
    assert yarn_mscale(1.0) == yarn_mscale(0.5) == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("dim", [8, 6], ids=["whole", "partial"])
def test_rotate_is_a_complex_product(dim, interleaved, dtype):
    K = 8
    x = np.random.default_rng(0).normal(size=(2, 3, 2, K)).astype(np.float32)
    positions = np.array([[0, 1, 2], [7, 0, 1]])
    cos, sin = rotary_angles(positions, dim, Rope(), None)
    y = rotate(jnp.asarray(x, dtype), cos, sin, interleaved)
    assert y.dtype == dtype and y.shape == x.shape
    first, second = (np.arange(0, dim, 2), np.arange(1, dim, 2)) if interleaved else np.split(np.arange(dim), 2)
    turned = (x[..., first] + 1j * x[..., second]) * np.exp(
        1j * positions[..., None, None] * 1e4 ** (-np.arange(0, dim, 2) / dim)
    )
    wanted = x.copy()
    wanted[..., first], wanted[..., second] = turned.real, turned.imag
    np.testing.assert_allclose(np.float32(y), wanted, atol=1e-5 if dtype == "float32" else 3e-2)


def test_interleaved_equals_deepseek():
    """Theirs also moves the pairs apart, which q·k does not see."""
    torch = pytest.importorskip("torch")
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    x = np.random.default_rng(0).normal(size=(1, 5, 2, HEAD)).astype(np.float32)
    cos, sin = rotary_angles(np.arange(5)[None], HEAD, YARN, None)
    ours = rotate(jnp.asarray(x), cos, sin, interleaved=True)
    doubled = [torch.tensor(np.concatenate((angle, angle), axis=-1))[:, :, 0] for angle in (cos, sin)]
    theirs, _ = deepseek.apply_rotary_pos_emb_interleave(*(torch.tensor(x).transpose(1, 2) for _ in range(2)), *doubled)
    np.testing.assert_allclose(jnp.concatenate((ours[..., 0::2], ours[..., 1::2]), -1), theirs.transpose(1, 2), atol=1e-6)
