"""A model on disk as a model that can be called."""

import dataclasses
import os
from pathlib import Path

import jax
from flax import nnx

from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.convert.source import as_stored, on_first_device, open_source
from lm.model.transformer import Transformer, skeleton
from lm.parallel.mesh import shardings


def load(path: str | os.PathLike, dtype: str | None = None) -> tuple[Transformer, Tokenizer]:
    """A model, on the first device, and its tokenizer.

    Args:
      path: the workdir of a run or an import, whose newest checkpoint is taken; or a Hugging Face checkpoint as it is.
      dtype: compute type, "float32" or "bfloat16"; None: the one it was trained with. Weights keep the one they have on disk.
    Returns: model(tokens_BT) -> float32 logits [B, T, V]; see Transformer.
    Raises: UserError if there is no model, no checkpoint or no tokenizer.
    """
    model = load_model(path, dtype)
    return model, load_tokenizer(path)


def load_onto(path: str | os.PathLike, mesh, dtype: str | None = None) -> Transformer:
    """The model of `load` spread over a mesh by its logical axes, with its weights as they are on disk."""
    source = open_source(Path(path))
    config = dataclasses.replace(source.config, dtype=dtype or source.config.dtype)
    graph, abstract = skeleton(config)
    where = shardings(abstract, mesh)
    abstract = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, where)
    return nnx.merge(graph, source.load(as_stored(source, abstract)))


def load_model(path: str | os.PathLike, dtype: str | None = None) -> Transformer:
    """The model of `load` alone, where there is no tokenizer."""
    source = open_source(Path(path))
    config = dataclasses.replace(source.config, dtype=dtype or source.config.dtype)
    return nnx.merge(skeleton(config)[0], on_first_device(source))
