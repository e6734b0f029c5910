"""Open a model's parameters: in a workdir, in a Hugging Face folder or in a GGUF file."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import NamedSharding, SingleDeviceSharding

from lm.adapt.quantize import quantize
from lm.adapt.rebuild import arrays_of
from lm.config import ModelConfig
from lm.convert import base
from lm.convert.files import is_adapter
from lm.convert.published import Published, is_published, open_published
from lm.errors import UserError, no_base, no_model
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.parallel.mesh import shapes_on, shardings
from lm.runs.checkpoint import Checkpoints, check_shapes, named, nested, newest, plain, unplain
from lm.runs.own_code import opened


class Source(NamedTuple):
    """Parameters on disk: the model's config, the stored shape and dtype of each by dotted name, and a load function.

    load(abstract): returns the parameters with the shardings and dtypes of a tree of ShapeDtypeStructs. One tensor at a time
      passes through the host. On several hosts every process calls it. Raises UserError if shapes differ.
    before: for a checkpoint that holds only an adapter, `stored` of its base model.
    """

    config: ModelConfig
    stored: dict[str, jax.ShapeDtypeStruct]
    load: Callable[[nnx.State], nnx.State]
    before: dict[str, jax.ShapeDtypeStruct] | None = None

    @staticmethod
    def of(published: Published) -> "Source":
        stored = {path: published.stored(path) for path in published.places}

        def load(abstract: nnx.State) -> nnx.State:
            check_shapes(plain(abstract), nested(stored), published.folder)
            return unplain(abstract, nested(published.load(named(plain(abstract)))))

        return Source(published.config, stored, load)


def open_source(path: str | os.PathLike, step: int | None = None) -> Source:
    """Open the model in a workdir, a Hugging Face folder or a GGUF file, without reading weights.

    step: of a workdir's checkpoint; None: the newest one.
    Raises: UserError if there is no model, it does not fit its config, or it is an adapter whose base is gone or has changed.
    """
    path = Path(path)
    if is_adapter(path):
        raise UserError(no_base(path))
    if is_published(path):
        return Source.of(open_published(path))
    if not path.is_dir():
        raise UserError(no_model(path))
    checkpoints, step = newest(path, step)
    with contextlib.closing(checkpoints):
        meta, stored = checkpoints.meta(step), checkpoints.stored_params(step)

    def load(abstract: nnx.State) -> nnx.State:
        with contextlib.closing(Checkpoints(path, read_only=True)) as checkpoints:
            return checkpoints.restore_params(step, abstract)

    source = Source(config_of(meta.get("config"), path), stored, load)
    if meta.get("base") is None:
        return source
    return with_adapter(open_source(base.found(meta["base"], path), meta["base"]["step"]), source)


def with_adapter(model: Source, adapter: Source) -> Source:
    """Return the source of a model with the adapter of another source, which replaces the model's own adapter, if any.

    `adapter` holds only the trained parameters; its config also gives the quantisation of the weights.
    """
    config, abstract = adapter.config, named(plain(skeleton(adapter.config)[1]))
    stored = {name: adapter.stored.get(name) or model.stored.get(name) or x for name, x in abstract.items()}

    def load(abstract: nnx.State) -> nnx.State:
        targets, all_of_it = named(plain(abstract)), skeleton(model.config)[1]
        mesh = next((x.sharding.mesh for x in targets.values() if isinstance(x.sharding, NamedSharding)), None)
        device = next(iter(targets.values())).sharding
        placed = named(plain(shardings(all_of_it, mesh) if mesh else jax.tree.map(lambda _: device, all_of_it)))
        of_model = {
            name: jax.ShapeDtypeStruct(x.shape, targets.get(name, x).dtype, sharding=placed[name])
            for name, x in named(plain(all_of_it)).items()
        }
        params = model.load(unplain(all_of_it, nested(of_model)))
        if config.quantization != model.config.quantization:
            with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
                params = quantize(model.config, params, config.quantization)[1]
        arrays = arrays_of(params) | arrays_of(adapter.load(nnx.filter_state(abstract, trainable(config))))
        arrays = {name: jax.device_put(arrays[name].astype(x.dtype), x.sharding) for name, x in targets.items()}
        return unplain(abstract, nested(arrays))

    return Source(config, stored, load, model.before or model.stored)


def as_stored(source: Source, abstract: nnx.State) -> nnx.State:
    """Return `abstract` with the dtypes in which the parameters are stored."""

    def typed(name: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = source.stored[name].dtype if name in source.stored else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

    return unplain(abstract, nested({name: typed(name, x) for name, x in named(plain(abstract)).items()}))


def on_first_device(source: Source) -> nnx.State:
    """Load the parameters in their stored dtypes onto the first device."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    return source.load(as_stored(source, shapes_on(skeleton(source.config)[1], device)))


def config_of(saved: dict, workdir: Path | None = None) -> ModelConfig:
    """Return the ModelConfig in the config of a run in the workdir.

    The compute dtype is a top-level key, and quantized training is left out. Raises: UserError if the config cannot be used, or
    the model computes by a file that is not trusted.
    """
    try:
        config = ModelConfig(**{**saved["model"], "quantized_training": "none"}, dtype=saved["dtype"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"the run's config has an unknown model key or value: {error}") from None
    return opened(config, workdir)
