"""The tiny config and the packed batches that the tests of the model and of the training step share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs.train import default
from lm.config import ModelConfig
from lm.model.transformer import build
from lm.train.step import make_trainer, model_config_of, state_shardings
from lm.train.update import TrainState


def tiny_config(**model):
    """A float32 training config of a two-layer model with grouped queries; `model` overrides keys of its model."""
    config = default.get_config()
    default.adamw(config)
    config.steps, config.batch_size, config.sequence_length, config.dtype = 20, 8, 32, "float32"
    config.model.update(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    config.model.update(model)
    config.optimizer.update(learning_rate=2e-3, warmup=5)
    return config


def packed_batch(config, seed: int, low: int = 0) -> dict[str, np.ndarray]:
    """Rows of packed documents over ids `low`…V−1, as data/text/batches.py gives them.

    Rows are filled unevenly (the first not at all), so that an average over rows is not the average over tokens. A
    token mostly follows from the one before, so that there is something to learn.
    """
    rng = np.random.default_rng(seed)
    B, T, V = config.batch_size, config.sequence_length, config.model.vocab_size
    tokens, segments, positions = np.zeros((3, B, T + 1), np.int32)
    for row in range(1, B):
        start, filled = 0, rng.integers(3, T + 2)
        for segment in range(1, T):
            n = min(rng.integers(2, 14), filled - start)
            document = rng.integers(low, V, n)
            for i in range(1, n):
                if rng.random() < 0.8:
                    document[i] = low + (5 * document[i - 1] + 3) % (V - low)
            tokens[row, start : start + n], segments[row, start : start + n] = document, segment
            positions[row, start : start + n] = np.arange(n)
            start += n
            if start == filled:
                break
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments[:, :-1],
        "positions": positions[:, :-1],
        "weights": same.astype(np.float32),
    }


def plain_batch(rows_BT: np.ndarray) -> dict[str, np.ndarray]:
    """One whole document a row: T−1 inputs and targets, every target of weight 1."""
    tokens = np.asarray(rows_BT, np.int32)[:, :-1]
    return {
        "tokens": tokens,
        "targets": np.asarray(rows_BT, np.int32)[:, 1:],
        "segment_ids": np.ones_like(tokens),
        "positions": np.zeros_like(tokens) + np.arange(tokens.shape[1], dtype=np.int32),
        "weights": np.ones(tokens.shape, np.float32),
    }


@functools.cache
def parameters(config: ModelConfig, seed: int = 0, scale: float = 1.0):
    """Initial parameters, their matrices `scale` times as large, on one device; shared, so leave them as they are.

    They are computed one operation at a time: models share the small programs of their shapes, and none has a large one.
    Those of a quantised model are computed at once, because rounding takes many operations.
    """
    with jax.set_mesh(None):
        params = jax.jit(lambda: build(config, seed))() if config.quantization.bits else build(config, seed)
    if scale == 1:
        return params
    return jax.tree.map(lambda p: jnp.asarray(np.asarray(p) * np.float32(scale)) if p.ndim > 1 else p, params)


def trainer_and_state(config):
    """(trainer, its initial state without a guard) on one device; the state is shared, so leave it as it is."""
    trainer = make_trainer(config)
    params, zero = parameters(model_config_of(config), config.seed), jnp.asarray(np.int32(0))
    moments = jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), jax.eval_shape(trainer.init, params).optimizer)
    return trainer, TrainState(zero, params, moments, zero, zero)


def first_state(trainer, config, mesh=None):
    """What `trainer.init` returns but for rounding, on one device or a mesh, without a program that draws random numbers.

    It may be donated.
    """
    params = parameters(model_config_of(config), config.seed)
    with jax.set_mesh(None):
        abstract = jax.eval_shape(trainer.init, params)
        others = jax.jit(lambda params: trainer.init(params)._replace(params=(), optimizer=()))(params)
    moments = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract.optimizer)
    state = jax.device_get(others._replace(params=params, optimizer=moments))
    if not mesh:
        return jax.device_put(state, jax.devices()[0], may_alias=False)
    where, tree = jax.tree.flatten(state_shardings(trainer, mesh))
    return tree.unflatten(jax.device_put(jax.tree.leaves(state), where, may_alias=False))
