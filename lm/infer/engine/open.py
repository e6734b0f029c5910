"""Start an engine on a checkpoint."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
from jax.sharding import Mesh

from data.text.hf_tokenizer import has_tokenizer
from data.text.tokenizer import load_tokenizer
from lm.convert.source import open_source
from lm.errors import UserError
from lm.files.gguf import find_gguf, open_gguf
from lm.infer.engine.adapters import Slots
from lm.infer.engine.engine import Engine
from lm.infer.engine.room import Capacity
from lm.infer.load import load_model
from lm.parallel import hosts
from lm.parallel.channel import Channel
from lm.parallel.mesh import check_fit, row_ways

DTYPES, INTEGERS = ("float32", "bfloat16"), ("int8", "int4", "w8a8")
GUESSES = 3  # tokens ahead


def open_engine(
    path: str | os.PathLike[str],
    capacity: Capacity = Capacity(),  # noqa: B008 (it is immutable)
    *,
    dtype: str = "",
    quantize: str = "",
    speculate: str = "",
    adapters: Mapping[str, str] = MappingProxyType({}),
    slots: Slots | None = None,
    mesh: Mesh | None = None,
) -> Engine:
    """Return an engine for the model at `path`: a workdir, a Hugging Face folder or a GGUF file.

    Args:
      capacity: its cache_dtype "" is that of `dtype`, bfloat16 for integer weights. Its drafts follow from `speculate`.
      dtype: of matrices; "": as in training, bfloat16 for those that a GGUF file has quantised. A CPU keeps them so, and
        computes in float32. quantize: "int8" or "int4": their weights; "w8a8": weights and activations in 8 bits.
      speculate: "ngram": guess tokens that followed the same few tokens before; "mtp": by the model's own module for
        multi-token prediction; or the path of a smaller model that guesses. No token changes.
      adapters: name -> folder. slots: room for them and for others; None: for none.
      mesh: split the model and the requests over it; None: the first device. On several processes all call this, and process 0
        gives the requests.
    Raises: UserError if the model or its tokenizer cannot be read, or an option does not fit it or the mesh.
    """
    cache_dtype, packed = capacity.cache_dtype, ""
    check_options(dtype, quantize, cache_dtype, mesh is None and jax.default_backend() == "cpu")
    config = open_source(path).config
    dtype = dtype or quantised_dtype(path)
    if mesh is None and jax.default_backend() == "cpu":
        packed = quantize or dtype or config.dtype
        is_float = packed == "float32" and not config.quantization.bits
        cache_dtype, dtype = cache_dtype or ("float32" if is_float else "bfloat16"), "float32"
    channel = Channel("lmcraft/steps") if hosts.several() else None
    if mesh is not None:
        check_fit(mesh, config, row_ways(mesh), 1)
        if channel is not None and (config.vision.num_layers or config.audio.num_layers):
            raise UserError(f"{path}: a model that sees or hears is served by one process")
    reopen = functools.partial(load_model, dtype=dtype or None, mesh=mesh)
    model = reopen(path)
    if speculate == "mtp" and (slots is not None or mesh is not None or not model.config.mtp_depth):
        raise UserError("speculate=mtp takes a model with model.mtp_depth, on one device, without room for adapters; try ngram")
    engine = Engine(
        model,
        load_tokenizer(path) if has_tokenizer(Path(path)) else None,
        capacity._replace(cache_dtype=cache_dtype, drafts=GUESSES if speculate else 0),
        draft_model=model if speculate == "mtp" else reopen(speculate) if speculate not in ("", "ngram") else None,
        packed=packed,
        slots=slots,
        owned=True,
        mesh=mesh,
        channel=channel,
    )
    engine.reopen = reopen
    try:
        for name, folder in adapters.items():
            engine.load_adapter(name, folder)
    except BaseException:
        engine.close()
        raise
    return engine


def quantised_dtype(path: str | os.PathLike[str]) -> str:
    """Return bfloat16 for a GGUF file of quantised matrices, which hold no more; else "", for the dtype of training."""
    file = find_gguf(path)
    return "bfloat16" if file and open_gguf(file).is_quantised else ""


def check_options(dtype: str, quantize: str, cache_dtype: str, is_cpu: bool) -> None:
    """Raise UserError for a value that an option of `open_engine` does not have. is_cpu: the engine runs on one CPU."""
    known = {"dtype": (dtype, DTYPES), "quantize": (quantize, INTEGERS), "cache_dtype": (cache_dtype, (*DTYPES, "int8"))}
    for key, (value, values) in known.items():
        if value not in ("", *values):
            raise UserError(f"{key}={value} is none of {', '.join(values)}")
    if quantize and not is_cpu:
        raise UserError(
            f"quantize={quantize} packs matrices for one CPU: save an int8 model first (python -m lm.convert quantize)"
        )
