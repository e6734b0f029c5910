"""Start an engine on a checkpoint."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from data.text.hf_tokenizer import has_tokenizer
from data.text.tokenizer import load_tokenizer
from lm.convert.source import open_source
from lm.errors import UserError
from lm.infer.engine.adapters import Slots
from lm.infer.engine.engine import Engine
from lm.infer.load import load_model, load_onto

DTYPES, INTEGERS = ("float32", "bfloat16"), ("int8", "int4", "w8a8")
GUESSES = 3  # tokens ahead


def open_engine(
    path: str | os.PathLike[str],
    *,
    rows: int = 32,
    blocks: int = 0,
    budget: int = 64,
    dtype: str = "",
    cache_dtype: str = "",
    quantize: str = "",
    speculate: str = "",
    adapters: Mapping[str, str] | None = None,
    adapter_count: int = 0,
    adapter_rank: int = 16,
    adapter_targets: str = ".*",
    queue: int = 1024,
    mesh: Mesh | None = None,
) -> Engine:
    """Return an engine for the model at `path`: a workdir, a Hugging Face folder or a GGUF file.

    Args:
      rows: most requests that are decoded together. blocks: of 16 tokens of the cache; 0: `default_pages`. budget: most
        tokens of a step. queue: most waiting requests.
      dtype: of matrices; "": as in training. A CPU keeps them so, and computes in float32. quantize: "int8" or "int4": their
        weights; "w8a8": weights and activations in 8 bits; "": as stored.
      cache_dtype: "int8", "bfloat16", "float32"; "": that of `dtype`, bfloat16 for integer weights.
      speculate: "ngram": guess tokens that followed the same few tokens before; or the path of a smaller model that guesses. No
        token changes.
      adapters: name -> folder. adapter_count: room for so many, at least for those. adapter_rank, adapter_targets: their
        largest rank, and the matrices that they may change.
      mesh: split the model over its tensor axis; None: the first device.
    Raises: UserError if the model or its tokenizer cannot be read, or an option does not fit it.
    """
    if dtype not in ("", *DTYPES):
        raise UserError(f"dtype={dtype} is none of {', '.join(DTYPES)}")
    if quantize not in ("", *INTEGERS):
        raise UserError(f"quantize={quantize} is none of {', '.join(INTEGERS)}")
    if cache_dtype not in ("", *DTYPES, "int8"):
        raise UserError(f"cache_dtype={cache_dtype} is none of {', '.join(DTYPES)}, int8")
    packed = ""
    if mesh is None and jax.default_backend() == "cpu":
        config = open_source(path).config
        packed = quantize or dtype or config.dtype
        is_float = packed == "float32" and not config.quantization.bits
        cache_dtype, dtype = cache_dtype or ("float32" if is_float else "bfloat16"), "float32"
    elif quantize:
        raise UserError(
            f"quantize={quantize} packs matrices for one CPU: save an int8 model first (python -m lm.convert quantize)"
        )
    reopen = functools.partial(load_model if mesh is None else functools.partial(load_onto, mesh=mesh), dtype=dtype or None)
    count = max(adapter_count, len(adapters or {}))
    engine = Engine(
        reopen(path),
        load_tokenizer(path) if has_tokenizer(Path(path)) else None,
        rows=rows,
        budget=budget,
        pages=blocks,
        cache_dtype=cache_dtype,
        drafts=GUESSES if speculate else 0,
        draft_model=reopen(speculate) if speculate not in ("", "ngram") else None,
        packed=packed,
        slots=Slots(count, adapter_rank, adapter_targets) if count else None,
        owned=True,
        queue=queue,
        mesh=mesh,
    )
    engine.reopen = reopen
    try:
        for name, folder in (adapters or {}).items():
            engine.load_adapter(name, folder)
    except BaseException:
        engine.close()
        raise
    return engine
