"""Sampler and trainer compute equal log-probabilities, to the bit (rl.require_equal), and gradients are those of training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.align import grpo
from lm.adapt import lora
from lm.align.rl import objective as rl
from lm.align.rl.rollouts import Rollout, arrays
from lm.align.rl.stream import differences
from lm.config import Adapter
from lm.infer.engine.local import Layout, LocalEngine
from lm.infer.engine.request import Sampling
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, place_rows, shardings
from lm.train.step import model_config_of
from tests.lm.weights import drawn as parameters
from tests.slow import all_but

T, COPIES = 60, 4
LENGTHS = 3, 17, 20, 31, 16, 33  # of prompts
KINDS = {
    "plain": {},
    "tied": {"tie_embeddings": True, "qk_norm": "head", "scan_layers": False},
    "gemma": {
        "norm_plus_one": True,
        "embed_scale": 5.0,
        "logit_softcap": 20.0,
        "attention_softcap": 15.0,
        "norm_position": "sandwich",
        "activation": "gelu_tanh",
        "attention_pattern": ("local", "global"),
        "window": 7,
    },
    "gpt2": {"positions": "learned", "norm": "layer", "activation": "gelu", "gated": False, "mlp_bias": True, "qkv_bias": True},
    "gpt-oss": {"attention_sinks": True, "output_bias": True, "qk_norm": "full", "num_kv_heads": 1},
    "partial blocks": {"embed_dim": 48, "mlp_dim": 72, "head_dim": 12, "vocab_size": 203, "remat": "none"},
    "lora": {"adapter": {"rank": 3, "alpha": 8.0, "targets": ".*"}},
}
CASES = [(name, dtype, t) for name in KINDS for dtype in ("float32", "bfloat16") for t in (1.0, 0.7)]
QUICK = [("plain", "bfloat16", 0.7)]


def config_of(name: str, dtype: str, temperature: float, equal: bool = True):
    config = grpo.get_config()
    config.batch_size, config.sequence_length, config.dtype, config.steps = len(LENGTHS) * COPIES, T, dtype, 10
    config.model.update(vocab_size=256, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=160)
    config.model.update(KINDS[name])
    config.model.score_head = "none"
    config.rollout.max_new_tokens, config.rollout.temperature = 24, temperature
    config.optimizer.update(learning_rate=1e-3, warmup=0)
    config.rl.group_size, config.rl.require_equal = COPIES, equal
    return config


@functools.cache
def params_of(config):
    plain = dataclasses.replace(config, adapter=Adapter())
    params = parameters(plain, scale=4.0)
    if not config.adapter.rank:
        return params
    params = lora.with_adapter(plain, params, config.adapter, seed=1)[1]
    rng = np.random.default_rng(2)

    def learnt(path, x):
        return x.replace(x.get_value() + 0.1 * rng.standard_normal(x.shape, np.float32)) if path[-1] == "lora_b" else x

    return nnx.map_state(learnt, params)


def rollouts(model, config, rows: int = 64) -> dict[str, np.ndarray]:
    """Return a batch that an engine of so many rows sampled."""
    rng, engine = np.random.default_rng(0), LocalEngine(None, 1 << 30, rows=rows)
    prompts = [rng.integers(4, config.model.vocab_size, n).tolist() for n in LENGTHS]
    sampling = Sampling(24, config.rollout.temperature, stop_ids=(5, 6, 7), seed=3)
    drawn = engine.draw(model, prompts, sampling, Layout(COPIES))
    engine.close()
    of_rows = []
    for i, (tokens, logps) in enumerate(zip(drawn.tokens, drawn.logps, strict=True)):
        rollout = Rollout([], [], [], [])
        rollout._add(prompts[i // COPIES])
        rollout._add(tokens, logps)
        of_rows.append(rollout)
    batch = arrays(of_rows, T, 0)
    B = len(of_rows)
    share = np.full(B, batch["weights"].sum() / B, np.float32)
    return batch | {"tokens_share": share, "advantages": rng.standard_normal(B).astype(np.float32)}


def trained(config, params, batch):
    """Return the batch with the trainer's log-probabilities, and (loss, sums) and gradients of the objective."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        graph, abstract = skeleton(model_config_of(config))
        params = jax.device_put(params, shardings(abstract, mesh))
        batch = dict(zip(batch, place_rows(*batch.values(), mesh=mesh)))
        batch = jax.jit(rl.prepared(graph, config))(params, None, batch)
        objective = rl.objective(config)
        loss = jax.jit(
            jax.value_and_grad(
                lambda p: objective.loss(nnx.merge(graph, p), batch, None, train=True), has_aux=True, allow_int=True
            )
        )
        return batch, *loss(params)


def norm(tree) -> float:
    return float(jnp.sqrt(sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(tree))))


@pytest.mark.parametrize(("name", "dtype", "temperature"), all_but(QUICK, CASES))
def test_sampler_and_trainer_are_equal(name, dtype, temperature):
    config = config_of(name, dtype, temperature)
    model_config = model_config_of(config)
    params = params_of(model_config)
    batch = rollouts(nnx.merge(skeleton(model_config)[0], params), config)
    assert batch["weights"].sum() > 100
    out, (loss, sums), gradients = trained(config, params, batch)
    apart = differences(*(out[key] for key in ("old_logps", "sampler_logps", "weights")))
    assert float(apart["max"]) == 0
    ratio, tokens = sums.metrics["ratio"]
    assert ratio == tokens  # in the update too
    # The gradient is that of float32 with the rounded weights, up to the rounding of its products. An adapter is part of them.
    untied = () if model_config.tie_embeddings else ("embedding",)
    weights = dict(nnx.to_flat_state(lora.merge(model_config, params)[1]))

    def rounded(path, x):
        if path == untied or x.ndim == 1 or path[-1] in ("lora_a", "lora_b"):
            return x
        w = weights[path].get_value()
        return x.replace(x.get_value() + (w.astype(dtype).astype(jnp.float32) - w))

    exact = config_of(name, "float32", temperature, equal=False), nnx.map_state(rounded, params)
    _, (ordinary, _), others = trained(*exact, batch)
    tolerance = 1e-4 if dtype == "float32" else 0.03
    np.testing.assert_allclose(loss, ordinary, rtol=tolerance, atol=tolerance)
    assert norm(jax.tree.map(jnp.subtract, gradients, others)) <= tolerance * norm(others)
