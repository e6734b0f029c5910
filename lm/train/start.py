"""What a run starts from: a checked config, its length, and weights: random, or those of init_from.

What opens and changes other models is imported by the runs that start from one.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from data.media.prompts import IDEFICS3, OWN, VOXTRAL
from data.text.batches import Sizes, constant, parse_sizes
from data.text.hf_tokenizer import has_tokenizer
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.adapt import lora, quantize
from lm.config import Adapter, ModelConfig, Quantization
from lm.errors import UserError
from lm.files.user_files import failing
from lm.model.transformer import skeleton
from lm.parallel.hosts import from_first, is_first
from lm.parallel.mesh import make_mesh, row_ways, shapes_on
from lm.runs.own_code import check_own_code, own_parts
from lm.runs.workdir import check_record, read_config, record, steps_saved
from lm.train.chips import dtype_here
from lm.train.step import model_config_of
from lm.train.values import check_length, check_values

SLICE = 2048  # tokens whose activations stay in a CPU's caches (docs/train.md)
# Model keys that the run's own config decides.
COMPILED = ("scan_layers", "remat", "offload", "context_attention", "pipeline", "quantized_training", "frozen")
OURS = (*COMPILED, "adapter", "quantization", "score_head")
TOWERS = {"vision": "image", "audio": "audio"}  # sections of encoders: kinds of media


def adopt(config: ml_collections.ConfigDict, workdir: Path | None) -> None:
    """Copy the model's config from `init_from` into `config`, and its tokenizer unless the config names one. Choose the dtype.

    A run that is already in the workdir keeps its recorded config, even if `init_from` has changed or moved since.
    """
    # Process 0 may know it from the record.
    config.dtype, why = from_first(lambda: dtype_here() if config.dtype == "auto" else (config.dtype, ""))
    if why and workdir and is_first():
        print(f"dtype={config.dtype}, chosen for {why}", flush=True)
    if not config.init_from:
        return
    from lm.convert.source import config_of, open_source

    saved = from_first(lambda: record(workdir)[0]) if workdir else None  # process 0 may be writing it
    # The record has the files that it names, not their copies: it must be the same.
    model = (config_of(saved) if saved else open_source(config.init_from).config).to_dict()
    for section, size in (("adapter", "rank"), ("quantization", "bits")):
        if model[section][size] and config.model[section][size] and not saved:
            raise UserError(
                f"model.{section}.{size}={config.model[section][size]}: {config.init_from} already has one with {size} "
                f"{model[section][size]}: export it with --merge and start from the export"
            )
        if model[section][size] and not config.model[section][size]:
            _put(config.model[section], model[section])
    if not saved and config.data.get("new_pieces"):
        model["vocab_size"] = max(
            model["vocab_size"], load_tokenizer(config.tokenizer or config.init_from).vocab_size + config.data.new_pieces
        )
    if not saved:
        model |= longer_positions(config, model)
    own = [*OURS, "dtype", *_own_towers(config, model, workdir, new=not saved)]
    _put(config.model, {key: value for key, value in model.items() if key not in own})
    if config.model.positions != "learned":  # the context grows to the training length
        config.model.max_positions = max(config.model.max_positions, config.sequence_length)
    if config.tokenizer is None:
        config.tokenizer = str(config.init_from)


def check_config(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raise UserError for invalid values, and for a workdir that belongs to another run."""
    check_values(config)
    model = model_config_of(config)
    lora.check_targets(model)
    quantize.check_targets(model)
    if model.positions == "learned" or not steps_saved(workdir):
        check_length(model, config.sequence_length)
    check_record(config, workdir)
    check_own_code(config, workdir)
    if parts := own_parts(model):
        with failing(", ".join(f"{key}={value}" for key, value in parts.items())):
            _trace(model)


def _trace(model: ModelConfig) -> None:
    """Trace a model and its gradient without computing them, so that mistakes in the user's parts of it show before the run."""
    with jax.set_mesh(make_mesh({"data": 1}, jax.local_devices()[:1])):
        graph, params = skeleton(model)
        tokens_BT = jax.ShapeDtypeStruct((2, 8), jnp.int32)
        jax.eval_shape(jax.grad(lambda params, tokens_BT: jnp.sum(nnx.merge(graph, params)(tokens_BT))), params, tokens_BT)


def choose_slices(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> str:
    """Set config.accumulate if it is 0: on a CPU to the fewest slices of at most SLICE tokens a device, else to 1.

    Return what was chosen and why, "" for nothing. Process 0 decides for all: only it may have the record of a run.
    """
    config.accumulate = from_first(lambda: config.accumulate)
    if config.accumulate:
        return ""
    sizes, config.accumulate = parse_sizes(config.batch_warmup, config.batch_size).rows, 1
    tokens = config.batch_size // row_ways(mesh) * config.sequence_length
    if jax.default_backend() == "cpu" and config.mesh.stage == 1 and tokens > SLICE:
        rows = max(1, math.gcd(*sizes) // row_ways(mesh))  # of which each slice has a share, whatever the size of the batch
        shares = [n for n in range(1, rows + 1) if rows % n == 0]
        config.accumulate = next((n for n in shares if tokens <= n * SLICE), rows)
        return f"accumulate={config.accumulate}, chosen for {tokens:,} tokens a step and device of a CPU"
    return ""


def choose_steps(config: ml_collections.ConfigDict, rows: int, rows_per_step: int | Sizes | None = None) -> None:
    """Set config.steps from config.epochs if that is given, and print how often the run reads the training data.

    Args: rows: sequences, pairs or tasks of an epoch. rows_per_step: of them in a step; None: config.batch_size.
    """
    rows_per_step = rows_per_step or config.batch_size
    sizes = constant(rows_per_step) if isinstance(rows_per_step, int) else rows_per_step
    if config.epochs is not None:
        config.steps = sizes.batches(math.ceil(config.epochs * rows))
    if is_first():
        largest = sizes.rows[-1]
        epochs, most = sizes.start(config.steps) / rows, f"{largest:,} row{'s' * (largest > 1)}" + " at most" * bool(sizes.ends)
        print(f"{config.steps:,} steps of {most} are {epochs:.3g} epochs of {rows:,} rows", flush=True)


def longer_positions(config: ml_collections.ConfigDict, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model keys that `extend` changes: `rope`, and `local_rope_theta` of local layers that rotated by `rope` too.

    Local layers never see far, so they keep the angles that they were trained with (as in Gemma 3, 2025).
    model: the keys of init_from, with nested dicts.
    Raises: UserError if these positions cannot be changed so.
    """
    theta, yarn = (config.extend.theta, config.extend.yarn) if config.get("extend") else (0, 0)
    if not theta and not yarn:
        return {}
    asked, old = f"extend.theta={theta}" if theta else f"extend.yarn={yarn}", model["rope"]
    if model["positions"] != "rotary" or old["scaling"] != "none":
        have = f"positions={model['positions']}" if model["positions"] != "rotary" else f"rope.scaling={old['scaling']}"
        raise UserError(f"{asked} changes plain rotary positions, and init_from={config.init_from} has {have}: leave it out")
    if theta and theta <= old["theta"]:
        raise UserError(f"{asked} must be above rope.theta={old['theta']} of init_from={config.init_from}")
    run, context = read_config(Path(config.init_from)), model["max_positions"]
    if run.get("optimizer") and not run.get("init_from"):  # trained from random weights on rows of one length
        context = min(context, run["sequence_length"])
    new = {"theta": theta} if theta else {"scaling": "yarn", "factor": yarn, "original_positions": context}
    own = old["theta"] if {"local", "chunk"} & {*model["attention_pattern"]} else 0.0
    return {"rope": old | new, "local_rope_theta": model["local_rope_theta"] or own}


def _own_towers(config: ml_collections.ConfigDict, model: dict[str, Any], workdir: Path | None, *, new: bool) -> list[str]:
    """Return the sections of encoders that the run's own config decides, and set their token_id if it is -1.

    These are fresh encoders of a model without one. new: whether `model` is that of init_from, not the record of the run.
    Raises: UserError if `init_from` has another encoder, or the tokenizer no symbol for its tokens.
    """
    asked = [name for name in TOWERS if config.model[name].num_layers]
    for name in asked:
        ours, theirs = config.model[name], model[name]
        if ours.token_id == -1:
            ours.token_id = theirs["token_id"] if theirs["num_layers"] else _symbol_of(config, TOWERS[name], workdir)
        differs = [key for key, value in ours.items() if value != theirs[key]]
        if new and theirs["num_layers"] and differs:
            key = differs[0]
            raise UserError(
                f"model.{name}.{key}={ours[key]}: {config.init_from} already has an encoder in model.{name}, with {key}="
                f"{theirs[key]}: set that, or leave model.{name} out as configs/align/sft.py does"
            )
        if new and not theirs["num_layers"] and config.model.adapter.rank:
            raise UserError(
                f"model.adapter.rank={config.model.adapter.rank}: adapters beside a fresh encoder in model.{name}, which would "
                "never be trained: train the encoder first, without adapters, and start from that run"
            )
    return asked


def _symbol_of(config: ml_collections.ConfigDict, kind: str, workdir: Path | None) -> int:
    """Return the id of the tokenizer's symbol for the tokens of a kind of media."""
    place = workdir if workdir and from_first(lambda: has_tokenizer(workdir)) else config.tokenizer or config.init_from
    tokenizer = load_tokenizer(place)
    for symbol in (style.symbols[kind] for style in (OWN, IDEFICS3, VOXTRAL) if kind in style.symbols):
        if (found := tokenizer.chat_symbols(symbol).get(symbol)) is not None:
            return found
    name = next(name for name in TOWERS if TOWERS[name] == kind)
    raise UserError(
        f"model.{name}.token_id is not set, and the tokenizer of {place} has no usual symbol for {kind}: name the id of a "
        "token that nothing else uses"
    )


def _put(section: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _put(section[key], value)
        else:
            section[key] = value


def initial_params(config: ml_collections.ConfigDict, mesh: Mesh, tokenizer: Tokenizer | None = None) -> nnx.State | None:
    """Return the float32 weights of `init_from` on the current mesh, with fresh encoders, quantised and adapted if configured.

    tokenizer: the run's own, which has more pieces than that of `init_from` if data.new_pieces is set.
    """
    if not config.init_from:
        return None
    from data.text.grow import old_pieces
    from lm.adapt.rebuild import with_pieces, with_score_head, with_towers
    from lm.convert.source import open_source

    source, wanted = open_source(config.init_from), model_config_of(config)
    same = ["dtype", *COMPILED] + ([] if wanted.positions == "learned" else ["max_positions", "rope", "local_rope_theta"])
    base = dataclasses.replace(source.config, **{name: getattr(wanted, name) for name in same})
    params = source.load(shapes_on(skeleton(base)[1], mesh))
    if config.data.get("new_pieces"):
        assert tokenizer is not None
        old = load_tokenizer(config.tokenizer)
        base, params = with_pieces(base, params, old_pieces(tokenizer, old), old.vocab_size, wanted.vocab_size)
    fresh = {name: getattr(wanted, name) for name in TOWERS if not getattr(base, name).num_layers}
    if fresh := {name: tower for name, tower in fresh.items() if tower.num_layers}:
        base, params = with_towers(base, params, fresh, config.seed)
    if wanted.quantization != base.quantization and wanted.quantization != Quantization():
        base, params = quantize.quantize(base, params, wanted.quantization)
    if wanted.adapter != base.adapter and wanted.adapter != Adapter():
        base, params = lora.with_adapter(base, params, wanted.adapter, config.seed)
    if wanted.score_head != base.score_head:
        base, params = with_score_head(base, params, wanted.score_head, config.seed)
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(wanted, field.name), getattr(base, field.name)
        if ours != theirs:
            raise UserError(f"model.{field.name}={ours!r} differs from init_from={config.init_from}, which has {theirs!r}")
    return params
