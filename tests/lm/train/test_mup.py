"""μP's coordinate check (Yang et al. 2022, appendix D.1): how far a few updates move what a model computes, by width."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from lm.model.transformer import skeleton
from lm.train.optimizers.chain import role
from lm.train.step import make_trainer, model_config_of, token_loss
from tests.lm.align.batches import token_logprobs
from tests.lm.examples import first_state, parameters, plain_batch, tiny_config
from tests.slow import all_but

WIDTHS = (32, 64, 128, 256)


@functools.cache
def moved(mup: bool, width: int, tied: bool) -> tuple[float, float]:
    """Mean |change| of the residual stream and of the logits after four updates."""
    config = tiny_config(
        embed_dim=width,
        num_heads=width // 8,
        num_kv_heads=width // 8,
        head_dim=8,
        mlp_dim=2 * width,
        mup_base_dim=WIDTHS[0] if mup else 0,
        tie_embeddings=tied,
    )
    config.optimizer.update(schedule="constant", warmup=0, learning_rate=1e-2, weight_decay=0.0)
    trainer = make_trainer(config)
    graph = skeleton(model_config_of(config))[0]
    step = jax.jit(trainer.step)
    batch = plain_batch(np.random.default_rng(0).integers(0, 64, (8, 33)))

    @jax.jit
    def look(params):
        model = nnx.merge(graph, params)
        return model.residual(batch["tokens"]), model(batch["tokens"])

    state = first_state(trainer, config)
    before = look(state.params)
    for _ in range(4):
        state, _ = step(state, batch)
    return tuple(float(np.abs(a - b).mean()) for a, b in zip(look(state.params), before, strict=True))


def growth(mup, tied=False):
    """By how much what moves is more at the widest than at the narrowest: (residual stream, logits)."""
    return [wide / narrow for wide, narrow in zip(moved(mup, WIDTHS[-1], tied), moved(mup, WIDTHS[0], tied), strict=True)]


@pytest.mark.parametrize("tied", all_but([False], [False, True]))
def test_updates_move_every_width_alike(tied):
    assert all(0.5 < ratio < 2 for ratio in growth(True, tied))


@pytest.mark.slow
def test_without_it_they_move_the_wide_more():
    assert max(growth(False)) > 3


def test_the_base_width_is_the_standard_model():
    assert moved(True, WIDTHS[0], False) == moved(False, WIDTHS[0], False)


@pytest.mark.parametrize("tied", all_but([True], [False, True]))
def test_hidden_states_are_scaled_and_not_the_head(tied):
    """By half at twice the base's width: an array [B, T, D] costs less to scale than one [V, D], and in decoding far less."""
    plain, wide = (model_config_of(tiny_config(tie_embeddings=tied, mup_base_dim=base)) for base in (0, 16))
    params, batch = parameters(plain), plain_batch(np.random.default_rng(0).integers(0, 64, (2, 9)))

    def logits_and_loss(config, params):
        model = nnx.merge(skeleton(config)[0], params)
        return model(batch["tokens"]), token_loss(model, batch, z_loss=0.0)[0], token_logprobs(model, batch)[0]

    program = str(jax.make_jaxpr(functools.partial(logits_and_loss, wide))(params))
    assert "f32[64,32] = mul" not in program and "f32[2,8,32] = mul" in program
    logits, loss, logp = jax.jit(functools.partial(logits_and_loss, wide))(params)
    half = 0.5 * jax.jit(functools.partial(logits_and_loss, plain))(params)[0]
    np.testing.assert_allclose(logits, half, rtol=1e-5, atol=1e-6)
    expected = np.take_along_axis(jax.nn.log_softmax(half), batch["targets"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logp, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss, -np.sum(batch["weights"] * expected), rtol=1e-5)


def test_every_part_is_known():
    """Matrices between layers are hidden; a new parameter without the right role would not transfer."""
    config = tiny_config(mup_base_dim=16, mlp_pattern=("dense", "moe"), moe=dict(num_experts=4))
    roles = {}
    for path, variable in nnx.to_flat_state(skeleton(model_config_of(config))[1]):
        roles.setdefault(role(variable), set()).add(path[-2] if path[-1] in ("weight", "scale") else path[-1])
    assert roles["embedding"] == {"embedding"} and roles["head"] == {"head", "router"}
    assert roles["hidden"] == {"query", "key", "value", "output", "gate", "up", "down"}
