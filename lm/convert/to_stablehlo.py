"""Export a model as StableHLO programs with their weights, for runtimes that do not have this code.

    NAME.stablehlo/
      manifest.json                    arguments and results of both programs, in order; files, ids, versions
      prefill.jax, decode.jax          for jax.export.deserialize: all platforms in one file
      prefill.PLATFORM.mlirbc, decode.PLATFORM.mlirbc    portable StableHLO bytecode of one platform: PJRT clients, IREE
      model.safetensors                the weights, or several files with an index
      tokenizer.json …                 the tokenizer's files

A program for several platforms takes the platform's number as an argument and branches on it at every product, which JAX folds
away before it compiles. Other runtimes would not; so they get one file for each platform, without that argument.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
from flax import nnx
from jax import export

from data.chat.template import end_of_turn
from data.text.hf_tokenizer import has_tokenizer
from data.text.tokenizer import load_tokenizer
from lm.config import ModelConfig
from lm.convert.files import lay_out, write
from lm.convert.folders import check_target, written_whole
from lm.convert.multimodal.text import check_text_only
from lm.convert.programs import Programs, for_decoding, programs
from lm.convert.source import Source, on_first_device, open_source
from lm.convert.to_published import AS_IS, merged_params
from lm.convert.tokenizer_files import export_tokenizer
from lm.errors import UserError
from lm.files.saving import write as save
from lm.files.saving import write_json
from lm.progress import progress
from lm.runs.checkpoint import named, plain

PLATFORMS = ("cpu", "tpu", "cuda")
CALLS = {
    "prefill": (("params", "tokens", "lengths"), "prefill(params, tokens, lengths) -> (logits, cache)"),
    "decode": (("params", "cache", "token", "position"), "decode(params, cache, token, position) -> (logits, cache)"),
}


def to_stablehlo(
    path: Path,
    to: Path,
    *,
    batch: int = 1,
    length: int = 1024,
    prompt: int = 0,
    dtype: str = AS_IS,
    max_shard_gb: float = 5.0,
    merge: bool = False,
) -> None:
    """Write the folder of a model, from a workdir, a Hugging Face folder or a GGUF file. It must fit the first device.

    Args:
      batch: rows. length: cache slots of a row. prompt: those that prefill fills, padded on the left; 0: half of them.
      dtype: of products, matrices and cache, float32 or bfloat16; as-is: the model's own.
      max_shard_gb: size of a file of weights in 10⁹ bytes.
      merge: merge an adapter into its weights, and dequantize weights. Else the programs compute with them as they are.
    Raises: UserError if `to` holds anything but this export, there is no model, or its programs cannot have these sizes.
    """
    check_target(to)
    prompt = prompt or length // 2
    source = open_source(path)
    check_text_only(source.config, path, "our StableHLO")
    config = for_decoding(source.config)
    if dtype != AS_IS:
        config = dataclasses.replace(config, dtype=dtype)
    _check(path, source, prompt, length)
    params = on_first_device(source)
    if merge:
        merged, params = merged_params(source.config, params)
        config = dataclasses.replace(config, adapter=merged.adapter, quantization=merged.quantization)
    found = programs(config, params, batch, prompt, length)
    with written_whole(to) as staging:
        shapes = {name: (np.dtype(x.dtype), x.shape) for name, x in found.prefill_arguments[0].items()}
        places = lay_out(staging, shapes, int(max_shard_gb * 1e9))  # reserves the disk
        manifest = {
            "format": 1,
            "platforms": PLATFORMS,
            "batch": batch,
            "prompt": prompt,
            "length": length,
            "padding": "left",
            "dtype": config.dtype,
            "sharding": "none: all arrays are on one device",
            "weights": sorted({place.file.name for place in places.values()}),
            **_tokenizer(path, staging, config),
            "functions": _functions(staging, found),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
        }
        _write_weights(places, found, params)
        write_json(staging / "manifest.json", manifest)


def _check(path: Path, source: Source, prompt: int, length: int) -> None:
    """Raise UserError if the model has no programs, or none of these sizes."""
    config = source.config
    if config.score_head == "reward":
        raise UserError(f"{path} is a reward model, which predicts no tokens: export it to a Hugging Face folder")
    if prompt >= length:
        raise UserError(f"--prompt={prompt} must be below --length={length}: every new token takes another slot of the cache")
    if config.positions == "learned" and length > config.max_positions:
        raise UserError(f"--length={length}: the model has {config.max_positions} positions; choose at most as many")
    if config.rope.scaling == "longrope" and length > config.rope.original_positions:
        raise UserError(
            f"--length={length}: LongRoPE rotates all keys again beyond {config.rope.original_positions} positions, which a "
            "program with a cache cannot; choose at most as many"
        )


def _functions(folder: Path, found: Programs) -> dict[str, Any]:
    """Write the programs, and return their descriptions for the manifest."""
    described = {}
    for name, (arguments, signature) in CALLS.items():
        given = getattr(found, f"{name}_arguments")
        donated = [argument for argument in arguments if argument == "cache"]
        call = jax.jit(getattr(found, name), keep_unused=True, donate_argnames=donated)
        with _without_source_lines():
            whole = export.export(call, platforms=PLATFORMS)(*given)
            apart = {platform: export.export(call, platforms=[platform])(*given) for platform in PLATFORMS}
        save(folder / f"{name}.jax", bytes(whole.serialize()))
        files = {platform: f"{name}.{platform}.mlirbc" for platform in PLATFORMS}
        for platform, file in files.items():
            save(folder / file, apart[platform].mlir_module_serialized)
        logits, cache = jax.tree.unflatten(whole.out_tree, whole.out_avals)
        described[name] = {
            "signature": signature,
            "jax": f"{name}.jax",
            "calling_convention": whole.calling_convention_version,
            "mlirbc": files,
            "stablehlo": re.search(rb"StableHLO_v([\d.]+)", whole.mlir_module_serialized)[1].decode(),
            "dialects": sorted({dialect for one in apart.values() for dialect in _dialects(one)}),
            "arguments": [x for argument, value in zip(arguments, given) for x in _listed(argument, value)],
            "results": [*_listed("logits", logits), *_listed("cache", cache)],
            "donated": donated,
        }
    return described


def _dialects(program: export.Exported) -> set[str]:
    return set(re.findall(r"\b(stablehlo|chlo)\.", program.mlir_module()))


def _listed(argument: str, value: Any) -> list[dict]:
    """Return the arrays of one argument or result in the order in which a program takes them."""
    arrays = value if isinstance(value, dict) else {None: value}
    return [
        {"of": argument, **({"name": name} if name else {}), "dtype": str(np.dtype(x.dtype)), "shape": list(x.shape)}
        for name, x in sorted(arrays.items())
    ]


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Leave the paths and lines of this code out of programs, so that they do not depend on where it is installed."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _tokenizer(path: Path, folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Write the tokenizer's files. Return its part of the manifest: how many ids may be sampled, and which end a text."""
    if not has_tokenizer(path):
        return {"vocab_size": config.vocab_size, "tokenizer": None}
    tokenizer, before = load_tokenizer(path), {file.name for file in folder.iterdir()}
    export_tokenizer(tokenizer, folder, max_length=config.max_positions)
    turn = list(tokenizer.stop_ids)
    with contextlib.suppress(UserError):  # no template, or one that ends a turn with no symbol
        turn.append(end_of_turn(tokenizer, None))
    about = {
        "files": sorted({file.name for file in folder.iterdir()} - before),
        "begin_id": tokenizer.bos_id,
        "end_of_text_ids": list(tokenizer.stop_ids),
        "end_of_turn_ids": list(dict.fromkeys(turn)),
    }
    return {"vocab_size": min(tokenizer.vocab_size, config.vocab_size), "tokenizer": about}


def _write_weights(places: dict, found: Programs, params: nnx.State) -> None:
    arrays = named(plain(params))
    total = sum(place.nbytes for place in places.values())
    with progress("write", total, unit="B", soon=False) as bar:
        for name, weight in found.weights.items():
            x = np.asarray(arrays[weight.path])  # JAX keeps it for the other repeats
            write(places[name], (x if weight.repeat is None else x[weight.repeat]).astype(places[name].dtype))
            bar.update(places[name].nbytes)
