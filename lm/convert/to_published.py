"""Export a workdir to a Hugging Face checkpoint for transformers and vLLM, or its adapter alone for PEFT."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.text.hf_tokenizer import has_tokenizer
from data.text.sentencepiece_tokenizer import SentencePieceTokenizer
from data.text.tokenizer import load_tokenizer
from lm.adapt import lora
from lm.config import ModelConfig
from lm.convert.families import config_json, family_for
from lm.convert.files import check_target, lay_out, read_json, write
from lm.convert.multimodal.processor import copy_processor
from lm.convert.peft import export_peft
from lm.convert.published import is_published, model_type_of
from lm.convert.rows import Place, by_tensor, places, theirs_of
from lm.convert.source import Source, config_of, on_first_device, open_source
from lm.convert.tokenizer_files import export_tokenizer
from lm.errors import UserError
from lm.files.saving import write_json, written_whole
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.progress import progress
from lm.runs.checkpoint import named, nested, newest, plain, unplain
from lm.runs.workdir import read_config

AS_IS = "as-is"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Arrays(NamedTuple):
    """A model to export: its config, the dtype of each parameter by dotted name, and read(names) -> {name: array}."""

    config: ModelConfig
    dtypes: dict[str, np.dtype]
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]

    def without(self, *parts: str, **changes) -> "Arrays":
        """Return the model without parts, such as "mtp", and with changes of its config."""
        dtypes = {name: dtype for name, dtype in self.dtypes.items() if name.split(".")[0] not in parts}
        return Arrays(dataclasses.replace(self.config, **changes), dtypes, self.read)


def to_published(workdir: Path, to: Path, *, dtype: str = AS_IS, max_shard_gb: float = 5.0, merge: bool = False) -> None:
    """Write safetensors with an index, config.json, generation_config.json and the tokenizer's files.

    The files are laid out first. Then our parameters are read one by one, each with all its layers, and their tensors are
    written in place. With the default arguments an imported model is exported bit for bit as it was.

    Args:
      dtype: of the tensors, float32 or bfloat16; as-is: their stored dtype.
      max_shard_gb: size of a file in 10⁹ bytes.
      merge: merge an adapter into its weights, and dequantize weights. The model must then fit the first device in float32;
        as-is then means the dtype of the model that the run started from.
    Raises: UserError if `to` holds anything but this export, there is no checkpoint, or no family can hold the model.
    """
    check_target(to)
    with opened(workdir, merge, before=dtype == AS_IS) as (saved, arrays):
        origin = saved.get("published", {})
        family = family_for(arrays.config, origin.get("model_type"))
        # An imported model is exported with the duplicates that it had, other models with those of their family.
        twice = family.copies(arrays.config) if origin.get("twice", True) else []
        tensors = by_tensor([*places(family, arrays.config), *(Place(row.ours, (), row) for row in twice)])
        if odd := arrays.dtypes.keys() ^ {place.path for rows in tensors.values() for place in rows}:
            raise UserError(f"{workdir}: {family.name} and this checkpoint differ in {', '.join(sorted(odd)[:3])}")
        with written_whole(to) as staging:
            generation = _tokenizer_files(workdir, staging, arrays.config)
            dtypes = {name: _dtype(rows, arrays.dtypes, dtype) for name, rows in tensors.items()}
            write_tensors(staging, arrays, tensors, dtypes, int(max_shard_gb * 1e9))
            first = {key: ids[0] if isinstance(ids, list) else ids for key, ids in generation.items() if key in TOKEN_IDS}
            if arrays.config.score_head == "reward":
                first["pad_token_id"] = padding(first)
            embedding = next(name for name, rows in tensors.items() if rows[0].path == "embedding")
            settings = config_json(family, arrays.config) | first | {"dtype": str(dtypes[embedding])}
            if "text_config" in settings:
                settings["text_config"] |= first
                copy_processor(workdir, staging)
            write_json(staging / "config.json", settings)
            write_json(staging / "generation_config.json", generation)


def to_adapter(workdir: Path, to: Path, *, base: str | None = None) -> None:
    """Write the adapter of the newest checkpoint as adapter_config.json and adapter_model.safetensors.

    Modules are named as in the base, or the model that the run started from, or the first family that can hold the model.
    Args: base: the base model for adapter_config.json, a folder or a hub name; None: the model that the run started from.
    Raises: UserError if `to` holds anything but this export, no checkpoint or no adapter is there, or no family can hold it.
    """
    check_target(to)
    checkpoints, step = newest(workdir)
    with contextlib.closing(checkpoints):
        saved = checkpoints.meta(step)["config"]
        config = config_of(saved, workdir)
        if not config.adapter.rank:
            raise UserError(f"{workdir} has no adapter: leave out --adapter to export the whole model")
        start, origin = started_from(saved)
        base = base or start
        if base and Path(base).exists():
            base = str(Path(base).absolute())
        if config.adapter.dora:  # its magnitudes need the weights
            params = on_first_device(open_source(workdir))
        else:
            few = nnx.filter_state(skeleton(config)[1], trainable(config))
            stored = checkpoints.stored_params(step)
            arrays = checkpoints.read_params(step, {name: stored[name] for name in named(plain(few))})
            params = unplain(few, nested({name: jax.device_put(x) for name, x in arrays.items()}))
        export_peft(to, config, params, base, origin)


def started_from(saved: dict) -> tuple[str | None, str | None]:
    """Return the base model of a workdir's adapter and its model_type, each None if unknown.

    If the run started from a workdir that already had the adapter, return that workdir's base. For an imported workdir, return
    the folder that it was imported from.
    """
    start, origin, seen = saved.get("init_from"), saved.get("published", {}).get("model_type"), set()
    while start and start not in seen and (is_published(Path(start)) or (Path(start) / "config.json").is_file()):
        if is_published(Path(start)):
            return start, model_type_of(Path(start))
        before = read_config(Path(start))
        published = before.get("published", {})
        if not before.get("model", {}).get("adapter", {}).get("rank"):
            return published.get("from", start), published.get("model_type")
        seen.add(start)
        start, origin = before.get("init_from"), published.get("model_type")
    return start, origin


def write_tensors(
    folder: Path, arrays: Arrays, tensors: dict[str, list[Place]], dtypes: dict[str, np.dtype], shard_bytes: int
) -> None:
    """Write the tensors, each from its rows, into the files of a folder. Our parameters are read one by one."""
    at = lay_out(folder, {name: (dtypes[name], rows[0].row.theirs_shape) for name, rows in tensors.items()}, shard_bytes)
    together: dict[tuple[str, ...], list[str]] = {}  # our parameters -> their tensors; a fused tensor needs several parameters
    for name, rows in tensors.items():
        together.setdefault(tuple(sorted({place.path for place in rows})), []).append(name)
    with progress("write", sum(place.nbytes for place in at.values()), unit="B", soon=False) as bar:
        for paths, names in together.items():
            ours = arrays.read(paths)
            for name in names:
                parts = [ours[place.path][place.index].astype(dtypes[name], copy=False) for place in tensors[name]]
                write(at[name], theirs_of([place.row for place in tensors[name]], parts))
                bar.update(at[name].nbytes)
            del ours, parts  # free memory before the next read


@contextlib.contextmanager
def opened(workdir: Path, merge: bool = False, before: bool = True) -> Iterator[tuple[dict, Arrays]]:
    """Yield the config of the newest checkpoint as it was saved, and its arrays as they are published, read lazily.

    merge: merge adapters, and dequantize weights. before: then the dtypes are those of the model that the run started from.
    Raises: UserError if there is no checkpoint, or without `merge` adapters or quantised weights.
    """
    checkpoints, step = newest(workdir)
    with contextlib.closing(checkpoints):
        saved = checkpoints.meta(step)["config"]
        config = config_of(saved, workdir)
        if merge:
            arrays = merged(workdir, before)
        elif config.adapter.rank:
            how = "--merge adds it to the weights, --adapter exports it alone"
            raise UserError(f"{workdir} has an adapter of rank {config.adapter.rank}: {how}")
        elif config.quantization.bits:
            raise UserError(f"{workdir} has weights of {config.quantization.bits} bits: --merge turns them into floats")
        else:
            stored = checkpoints.stored_params(step)
            dtypes = {name: np.dtype(x.dtype) for name, x in stored.items()}
            arrays = Arrays(config, dtypes, lambda names: checkpoints.read_params(step, {name: stored[name] for name in names}))
        yield saved, without_other_heads(without_mup(arrays))


def merged(workdir: Path, before: bool) -> Arrays:
    """Return the arrays with adapters merged and weights dequantized, computed in float32. before: with the base's dtypes."""
    source = open_source(workdir)
    stored = on_first_device(source)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, stored)
    config, params = lora.merge(source.config, wide, dequantize=bool(source.config.quantization.bits))
    leaves = named(plain(params))
    started = stored_before(workdir, source) if before else {}
    dtypes = {name: np.dtype(started.get(name, x).dtype) for name, x in leaves.items()}
    return Arrays(config, dtypes, lambda names: {name: np.asarray(leaves[name]).astype(dtypes[name]) for name in names})


def stored_before(workdir: Path, source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the stored shapes and dtypes of the model that an adapter or quantised run started from; {} if it is gone."""
    if source.before is not None:
        return source.before
    if not (source.config.adapter.rank or source.config.quantization.bits):
        return source.stored
    start = read_config(workdir).get("init_from")
    try:
        return stored_before(Path(start), open_source(start)) if start else source.stored
    except UserError:
        return {}


def without_mup(arrays: Arrays) -> Arrays:
    """Return the same model without μP's multipliers: those of head and routers are multiplied into the weights.

    A tied head becomes a separate one, because the embedding has no multiplier.
    """
    config = arrays.config
    if not config.mup_base_dim:
        return arrays
    factor, tied = config.mup_base_dim / config.embed_dim, config.tie_embeddings
    source = "embedding" if tied else "head"

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        found = arrays.read({source if name == "head" else name for name in names})
        scaled = {name for name in names if name == "head" or name.endswith(".router")}
        ours = {name: found[source if name == "head" else name] for name in names}
        return {name: (x * factor).astype(x.dtype) if name in scaled else x for name, x in ours.items()}

    new = dataclasses.replace(config, mup_base_dim=0, tie_embeddings=False)
    return Arrays(new, arrays.dtypes | {"head": arrays.dtypes[source]}, read)


def without_other_heads(arrays: Arrays) -> Arrays:
    """Return the arrays to publish of a model with a score head: a policy loses its value head; a reward model becomes a
    classifier, without token head and multi-token prediction modules."""
    if arrays.config.score_head == "value":
        return arrays.without("score", score_head="none")
    return arrays if arrays.config.score_head == "none" else arrays.without("head", "mtp", mtp_depth=0)


def padding(ids: dict) -> int | None:
    """Return the padding id of a reward model. transformers scores the last token of a row that is not padding.

    So the id should not end texts: without a pad token it is the begin symbol. The end symbol is the last resort; then the
    token before it is scored.
    """
    order = ("pad_token_id", "bos_token_id", "eos_token_id")
    return next((ids[key] for key in order if ids.get(key) is not None), None)


def _dtype(rows: list[Place], stored: dict[str, np.dtype], asked: str) -> np.dtype:
    """Return a tensor's dtype: as asked, except rows that stay float32; as-is: the dtype that holds all of its parts."""
    if asked != AS_IS:
        return np.dtype(jnp.float32 if any(place.row.float32 for place in rows) else asked)
    return np.dtype(jnp.result_type(*{stored[place.path] for place in rows}))


def _tokenizer_files(workdir: Path, to: Path, config: ModelConfig) -> dict:
    """Write the tokenizer's files. Return generation_config.json: that of the import, or all ids that end a completion."""
    if not has_tokenizer(workdir):
        file = workdir / "generation_config.json"
        return read_json(file) if file.exists() else {}
    tokenizer = load_tokenizer(workdir)
    export_tokenizer(tokenizer, to, max_length=config.max_positions)
    if (to / "generation_config.json").exists():
        return read_json(to / "generation_config.json")
    stops = list(tokenizer.stop_ids)
    if isinstance(tokenizer, SentencePieceTokenizer):
        stops.append(tokenizer.controls["<|end|>"])  # ends a turn in the chat template
    pad = tokenizer.pad_id if "pad_token" in tokenizer.special_tokens else None
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops, "pad_token_id": pad}
    return {key: value for key, value in ids.items() if value not in (None, [])}
