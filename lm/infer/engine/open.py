"""Start an engine on a checkpoint."""

import os
from pathlib import Path

import jax

from data.text.hf_tokenizer import has_tokenizer
from data.text.tokenizer import load_tokenizer
from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.load import load_model, load_onto


def open_engine(path: str | os.PathLike, *, dtype: str = "", mesh=None, **options) -> Engine:
    """Return an engine for the model at `path`: a workdir, a Hugging Face folder or a GGUF file.

    dtype: compute type; "": float32 on a CPU, else the one of the model's training. mesh: split the model over its devices;
    None: the first device. options: of Engine.
    Raises: UserError if the model or its tokenizer cannot be read, or an option does not fit it.
    """
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "")
    if dtype not in ("", "float32", "bfloat16"):
        raise UserError(f"dtype={dtype} is neither float32 nor bfloat16")
    model = load_model(path, dtype or None) if mesh is None else load_onto(path, mesh, dtype or None)
    tokenizer = load_tokenizer(path) if has_tokenizer(Path(path)) else None
    return Engine(model, tokenizer, mesh=mesh, **options)
