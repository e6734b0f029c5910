"""A training run as a model that can be called."""

import os
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from data.tokenizer import Tokenizer
from lm.checkpoint import Checkpoints
from lm.config import ModelConfig
from lm.errors import UserError
from lm.model.transformer import Transformer, skeleton


def load(path: str | os.PathLike, dtype: str | None = None) -> tuple[Transformer, Tokenizer]:
    """The model of a run's newest checkpoint, on the first device, and its tokenizer.

    Args:
      path: the run's workdir. dtype: compute type, "float32" or "bfloat16"; None: the one it was trained with.
    Returns: model(tokens_BT) -> float32 logits [B, T, V]; see Transformer.
    Raises: UserError if there is no run or no checkpoint.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is no training run: it has no config.json")
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path} has no checkpoint yet; train it first")
    checkpoints = Checkpoints(path, read_only=True)
    step = checkpoints.latest()
    if step is None:
        raise UserError(f"{path} has no checkpoint yet; train it first")
    saved = checkpoints.meta(step)["config"]
    config = ModelConfig(**saved["model"], dtype=dtype or saved["dtype"])
    graph, abstract = skeleton(config)
    device = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
    params = checkpoints.restore_params(step, abstract)
    checkpoints.close()
    return nnx.merge(graph, params), Tokenizer(path / "tokenizer.model")
