"""Initial weights of a run: random, or from another run, an import or a published checkpoint (init_from)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_collections
from flax import nnx

from data.text.grow import old_pieces
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.adapt.lora import with_adapter
from lm.adapt.quantize import quantize
from lm.adapt.score import with_score_head
from lm.adapt.vocabulary import with_pieces
from lm.config import Adapter, ModelConfig, Quantization
from lm.convert.source import config_of, open_source
from lm.errors import UserError
from lm.model.transformer import skeleton
from lm.parallel.hosts import from_first
from lm.parallel.mesh import shardings
from lm.train.step import model_config_of
from lm.workdir import record

# Model keys that the run's own config decides.
COMPILED = ("scan_layers", "remat", "offload", "context_attention", "pipeline", "quantized_training", "frozen")
OWN = (*COMPILED, "adapter", "quantization", "score_head")


def adopt(config: ml_collections.ConfigDict, workdir: Path | None) -> None:
    """Copy the model's config from `init_from` into `config`, and its tokenizer unless the config names one.

    A run that is already in the workdir keeps its recorded config, even if `init_from` has changed or moved since.
    """
    if not config.init_from:
        return
    saved = from_first(lambda: record(workdir)[0]) if workdir else None  # process 0 may be writing it
    if saved:
        model = config_of(saved).to_dict()
    else:
        model = open_source(config.init_from).config.to_dict()
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
    _put(config.model, {key: value for key, value in model.items() if key not in (*OWN, "dtype")})
    if config.model.positions != "learned":  # the context grows to the training length
        config.model.max_positions = max(config.model.max_positions, config.sequence_length)
    if config.tokenizer is None:
        config.tokenizer = str(config.init_from)


def _put(section: ml_collections.ConfigDict, values: Mapping) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _put(section[key], value)
        else:
            section[key] = value


def initial_params(config: ml_collections.ConfigDict, mesh, tokenizer: Tokenizer | None = None) -> nnx.State | None:
    """Return the float32 weights of `init_from` on the current mesh, quantised and with fresh adapters if configured.

    tokenizer: the run's own, which has more pieces than that of `init_from` if data.new_pieces is set.
    """
    if not config.init_from:
        return None
    source, wanted = open_source(config.init_from), model_config_of(config)
    same = ["dtype", *COMPILED] + ([] if wanted.positions == "learned" else ["max_positions"])
    base = dataclasses.replace(source.config, **{name: getattr(wanted, name) for name in same})
    abstract = skeleton(base)[1]
    params = source.load(
        jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, shardings(abstract, mesh)
        )
    )
    if config.data.get("new_pieces"):
        old = load_tokenizer(config.tokenizer)
        base, params = with_pieces(base, params, old_pieces(tokenizer, old), old.vocab_size, wanted.vocab_size)
    if wanted.quantization != base.quantization and wanted.quantization != Quantization():
        base, params = quantize(base, params, wanted.quantization)
    if wanted.adapter != base.adapter and wanted.adapter != Adapter():
        base, params = with_adapter(base, params, wanted.adapter, config.seed)
    if wanted.score_head != base.score_head:
        base, params = with_score_head(base, params, wanted.score_head, config.seed)
    _same(base, wanted, config.init_from)
    return params


def _same(base: ModelConfig, wanted: ModelConfig, init_from: str) -> None:
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(wanted, field.name), getattr(base, field.name)
        if ours != theirs:
            raise UserError(f"model.{field.name}={ours!r} differs from init_from={init_from}, which has {theirs!r}")
