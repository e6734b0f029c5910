"""A workdir into a Hugging Face checkpoint that transformers and vLLM read, or its adapter alone into one that PEFT reads."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.text.hf_tokenizer import load_tokenizer
from data.text.tokenizer import Tokenizer
from lm.adapt import lora
from lm.checkpoint import Checkpoints, named, nested, newest, plain, unplain
from lm.config import ModelConfig
from lm.convert.families import FAMILIES, config_json, copies, essence, family_for
from lm.convert.files import Planned, lay_out, read_json, write
from lm.convert.folders import check_free, written_whole
from lm.convert.peft import export_peft
from lm.convert.published import is_published
from lm.convert.rows import Place, places, theirs_of
from lm.convert.source import Source, config_of, on_first_device, open_source
from lm.convert.tokenizer_files import export_tokenizer
from lm.errors import UserError
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.progress import progress
from lm.saving import write_json
from lm.workdir import read_config

AS_IS = "as-is"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Arrays(NamedTuple):
    """A model to write: its blueprint, the dtype of each parameter by dotted name, and read(names) -> {name: array}."""

    config: ModelConfig
    dtypes: dict[str, np.dtype]
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]


def to_published(
    workdir: Path, to: Path, *, dtype: str = AS_IS, max_shard_gb: float = 5.0, family: str | None = None, merge: bool = False
) -> None:
    """Writes safetensors with an index, config.json, generation_config.json and the tokenizer's files.

    The files are laid out first; then our parameters are read one by one, each with all its layers, and their tensors put in
    place. A model that was imported leaves bit for bit as it came, if nothing else is asked for.

    Args:
      dtype: of the tensors, float32 or bfloat16; as-is: as they are stored.
      max_shard_gb: 10⁹ bytes of a file.
      family: a model_type to leave as; None: the one it came as, or the first that can hold it.
      merge: add an adapter to the weights that it stands beside, and turn quantised weights into floats. The model must then
        fit the first device, in float32. As-is is then the dtype of the model that the run started from.
    Raises: UserError if `to` is taken, there is no checkpoint, or no family can hold the model.
    """
    check_free(to, "to")
    checkpoints, step = newest(workdir)
    with contextlib.closing(checkpoints):
        saved = checkpoints.meta(step)["config"]
        arrays = without_mup(merged(workdir, dtype) if merge else unmerged(workdir, config_of(saved), checkpoints, step))
        arrays = without_other_heads(arrays)
        family = family_that_holds(arrays.config, family, saved.get("published", {}).get("model_type"))
        tensors: dict[str, list[Place]] = {}
        # An import leaves with the second copies that it came with; what was trained here, with those of its family.
        twice = copies(family, arrays.config) if saved.get("published", {}).get("twice", True) else []
        for place in [*places(family, arrays.config), *(Place(row.ours, (), row) for row in twice)]:
            tensors.setdefault(place.row.theirs, []).append(place)
        if odd := arrays.dtypes.keys() ^ {place.path for rows in tensors.values() for place in rows}:
            raise UserError(f"{workdir}: {family.MODEL_TYPES[-1]} and this checkpoint differ in {', '.join(sorted(odd)[:3])}")
        with written_whole(to) as beside:
            generation = _tokenizer_files(workdir, beside, arrays.config)
            dtypes = {name: _dtype(rows, arrays.dtypes, dtype) for name, rows in tensors.items()}
            _write_tensors(beside, arrays, tensors, dtypes, int(max_shard_gb * 1e9))
            first = {key: ids[0] if isinstance(ids, list) else ids for key, ids in generation.items() if key in TOKEN_IDS}
            if arrays.config.score_head == "reward":
                first["pad_token_id"] = padding(first)
            embedding = next(name for name, rows in tensors.items() if rows[0].path == "embedding")
            write_json(beside / "config.json", {**config_json(family, arrays.config), **first, "dtype": str(dtypes[embedding])})
            write_json(beside / "generation_config.json", generation)


def to_adapter(workdir: Path, to: Path, *, base: str | None = None, family: str | None = None) -> None:
    """Writes the adapter of the newest checkpoint as adapter_config.json and adapter_model.safetensors.

    Args:
      base: the model that adapter_config.json names, a folder or a name on the hub; None: the one that the run started from.
      family: the model_type whose modules it names; None: that of the base, or of what the run started from, or the first
        that can hold the model.
    Raises: UserError if `to` is taken, there is no checkpoint, it has no adapter, or no family can hold the model.
    """
    check_free(to, "to")
    checkpoints, step = newest(workdir)
    with contextlib.closing(checkpoints):
        saved = checkpoints.meta(step)["config"]
        config = config_of(saved)
        if not config.adapter.rank:
            raise UserError(f"{workdir} has no adapter: without --adapter the whole model is exported")
        start, origin = started_from(saved)
        base = base or start
        if base and Path(base).is_dir():
            base = str(Path(base).absolute())
            origin = read_config(Path(base)).get("model_type") if is_published(Path(base)) else origin
        plainer = dataclasses.replace(config, mup_base_dim=0, tie_embeddings=config.tie_embeddings and not config.mup_base_dim)
        chosen = family_that_holds(plainer, family, origin)
        if config.adapter.dora:  # its magnitudes need the weights
            params = on_first_device(open_source(workdir))
        else:
            few = nnx.filter_state(skeleton(config)[1], trainable(config))
            arrays = checkpoints.read_params(step, named(plain(few)))
            params = unplain(few, nested({name: jnp.asarray(x) for name, x in arrays.items()}))
        export_peft(to, config, params, base, chosen)


def started_from(saved: dict) -> tuple[str | None, str | None]:
    """The model beside whose weights a workdir's adapter stands, and its model_type, where these are known.

    A run may have started from a workdir that had the adapter already: then what that one started from counts. A workdir that
    is an import stands for the folder that it came from.
    """
    start, origin, seen = saved.get("init_from"), saved.get("published", {}).get("model_type"), set()
    while start and start not in seen and (Path(start) / "config.json").is_file():
        before = read_config(Path(start))
        if is_published(Path(start)):
            return start, before.get("model_type")
        published = before.get("published", {})
        if not before.get("model", {}).get("adapter", {}).get("rank"):
            return published.get("from", start), published.get("model_type")
        seen.add(start)
        start, origin = before.get("init_from"), published.get("model_type")
    return start, origin


def _write_tensors(
    folder: Path, arrays: Arrays, tensors: dict[str, list[Place]], dtypes: dict[str, np.dtype], shard_bytes: int
) -> None:
    planned = [Planned(name, dtypes[name], rows[0].row.theirs_shape) for name, rows in tensors.items()]
    at = lay_out(folder, planned, shard_bytes)
    together: dict[tuple[str, ...], list[str]] = {}  # what parameters make which tensors: several where theirs are fused
    for name, rows in tensors.items():
        together.setdefault(tuple(sorted({place.path for place in rows})), []).append(name)
    with progress("write", sum(t.nbytes for t in planned), unit="B", scaled=True, soon=False) as bar:
        for paths, names in together.items():
            ours = arrays.read(paths)
            for name in names:
                parts = [ours[place.path][place.index].astype(dtypes[name], copy=False) for place in tensors[name]]
                write(at[name], theirs_of([place.row for place in tensors[name]], parts))
                bar.update(at[name].nbytes)
            del ours, parts  # before the next are read


def unmerged(workdir: Path, config: ModelConfig, checkpoints: Checkpoints, step: int) -> Arrays:
    """The arrays of a checkpoint, read when they are wanted. Raises UserError for what no published family has."""
    if config.adapter.rank:
        how = "--merge adds it to the weights, --adapter exports it alone"
        raise UserError(f"{workdir} has an adapter of rank {config.adapter.rank}: {how}")
    if config.quantization.bits:
        raise UserError(f"{workdir} has weights of {config.quantization.bits} bits: --merge turns them into floats")
    dtypes = {name: np.dtype(x.dtype) for name, x in checkpoints.stored_params(step).items()}
    return Arrays(config, dtypes, functools.partial(checkpoints.read_params, step))


def merged(workdir: Path, dtype: str) -> Arrays:
    """The arrays without adapters, and without integers: added up in float32, and as-is in the dtypes of the model before."""
    source = open_source(workdir)
    params = on_first_device(source)
    params = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    config, params = lora.merge(source.config, params, dequantize=bool(source.config.quantization.bits))
    leaves = named(plain(params))
    before = stored_before(workdir, source) if dtype == AS_IS else {}
    dtypes = {name: np.dtype(before.get(name, x).dtype) for name, x in leaves.items()}
    return Arrays(config, dtypes, lambda names: {name: np.asarray(leaves[name]).astype(dtypes[name]) for name in names})


def stored_before(workdir: Path, source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """How the model was stored that a run of adapters or of integers started from, by dotted name; {} if it is gone."""
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
    """The same function without μP's multipliers: the head's and the routers' go into their weights.

    A tied head becomes one of its own, since the embedding has no multiplier.
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
    """What is published of a model with a score head: a policy without its value head, and a reward model as a classifier,
    which has neither a head of tokens nor modules that predict further ones."""
    config = arrays.config
    if config.score_head == "none":
        return arrays
    if config.score_head == "value":
        gone, config = {"score"}, dataclasses.replace(config, score_head="none")
    else:
        gone, config = {"head", "mtp"}, dataclasses.replace(config, mtp_depth=0)
    dtypes = {name: dtype for name, dtype in arrays.dtypes.items() if name.split(".")[0] not in gone}
    return Arrays(config, dtypes, arrays.read)


def padding(ids: dict) -> int | None:
    """The id that pads the rows of a reward model: transformers scores the last token of a row that is another.

    So it should end no text: where no pad token is named, it is the begin symbol; the end symbol only if that is all there is,
    and then the token before it is scored.
    """
    named = (ids.get(key) for key in ("pad_token_id", "bos_token_id", "eos_token_id"))
    return next((i for i in named if i is not None), None)


def family_that_holds(config: ModelConfig, asked: str | None, origin: str | None):
    """The family asked for; else the one that the model came as, if it still is one; else the first that can hold it."""
    if asked is not None and asked not in FAMILIES:
        raise UserError(f"--family={asked} is none of {', '.join(FAMILIES)}")
    if asked is None and origin in FAMILIES and not _lost(FAMILIES[origin], config):
        return FAMILIES[origin]
    if asked is None:
        return family_for(config)
    if lost := _lost(FAMILIES[asked], config):
        raise UserError(f"--family={asked} cannot hold this model: it does not know {', '.join(lost)}")
    return FAMILIES[asked]


def _lost(family, config: ModelConfig) -> list[str]:
    """What a family's config.json would not say of this model."""
    wanted = essence(config)
    try:
        kept = essence(family.from_hf(family.to_hf(config)))
    except UserError as error:
        return [str(error)]
    return [f"model.{key}={value!r}" for key, value in wanted.items() if kept[key] != value]


def _dtype(rows: list[Place], stored: dict[str, np.dtype], asked: str) -> np.dtype:
    """Of a tensor: as asked, but for what must stay float32; else of its parts, or what holds them all if they differ."""
    if asked != AS_IS:
        return np.dtype(jnp.float32 if any(place.row.float32 for place in rows) else asked)
    return np.dtype(jnp.result_type(*{stored[place.path] for place in rows}))


def _tokenizer_files(workdir: Path, to: Path, config: ModelConfig) -> dict:
    """Writes them, and returns what generation_config.json must say: that of the import, or all ids that end a completion."""
    if not any((workdir / name).exists() for name in ("tokenizer.model", "tokenizer.json")):
        file = workdir / "generation_config.json"
        return read_json(file) if file.exists() else {}
    tokenizer = load_tokenizer(workdir)
    export_tokenizer(tokenizer, to, max_length=config.max_positions)
    if (to / "generation_config.json").exists():
        return read_json(to / "generation_config.json")
    stops = list(tokenizer.stop_ids)
    if isinstance(tokenizer, Tokenizer):
        stops.append(tokenizer.control_id("<|end|>"))  # of a turn, in its chat template
    pad = tokenizer.pad_id if "pad_token" in tokenizer.special_tokens else None
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops, "pad_token_id": pad}
    return {key: value for key, value in ids.items() if value not in (None, [])}
