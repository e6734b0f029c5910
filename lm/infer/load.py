"""Load a model from disk."""

import dataclasses
import os
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from data.text.hf_tokenizer import has_tokenizer
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.convert.source import as_stored, on_first_device, open_source
from lm.model.transformer import Transformer, skeleton
from lm.parallel.mesh import shapes_on


def load(path: str | os.PathLike[str], dtype: str | None = None) -> tuple[Transformer, Tokenizer | None]:
    """Return the model at `path`, on the first device, and its tokenizer, or None if it has none.

    Args:
      path: the workdir of a run or an import, of which the newest checkpoint is loaded; a Hugging Face folder; a GGUF file.
      dtype: compute type, "float32" or "bfloat16"; None: the one it was trained with. Weights keep their stored dtype.
    Returns: model(tokens_BT) -> float32 logits [B, T, V]; see Transformer.
    Raises: UserError if there is no model or no checkpoint, or the tokenizer cannot be read.
    """
    model = load_model(path, dtype)
    return model, load_tokenizer(path) if has_tokenizer(Path(path)) else None


def load_model(path: str | os.PathLike[str], dtype: str | None = None, mesh: Mesh | None = None) -> Transformer:
    """Return the model of `load` without its tokenizer, which need not exist. mesh: shard it over one by its logical axes."""
    source = open_source(Path(path))
    graph, abstract = skeleton(dataclasses.replace(source.config, dtype=dtype or source.config.dtype))
    params = on_first_device(source) if mesh is None else source.load(as_stored(source, shapes_on(abstract, mesh)))
    return nnx.merge(graph, params)
