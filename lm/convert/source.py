"""Where a model's parameters come from: a workdir of ours, or a Hugging Face checkpoint as it is."""

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
from lm.checkpoint import Checkpoints, check_shapes, named, nested, newest, plain, unplain
from lm.config import ModelConfig
from lm.convert import base, stream
from lm.convert.peft import is_adapter
from lm.convert.published import Published, is_published, open_published
from lm.errors import UserError
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.parallel.mesh import shardings


class Source(NamedTuple):
    """Parameters on disk: their blueprint, the shape and dtype of each by dotted name, and a function that loads them.

    load(abstract): reads onto the shardings and in the dtypes of a tree of ShapeDtypeStructs.
    before: of a checkpoint that holds an adapter alone, `stored` of the model that it stands beside.
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
            return stream.load(published, abstract)

        return Source(published.config, stored, load)


def open_source(path: str | os.PathLike, step: int | None = None) -> Source:
    """Looks into the folder, without reading a weight.

    step: of a workdir's checkpoint; None: the newest one.
    Raises: UserError if it holds no model, none that fits its config, or an adapter whose base is gone or has changed.
    """
    path = Path(path)
    if is_adapter(path):
        raise UserError(
            f"{path} is an adapter without its model: python -m lm.convert import --from={path} --base=MODEL --workdir=DIR, "
            "and take DIR"
        )
    if is_published(path):
        return Source.of(open_published(path))
    checkpoints, step = newest(path, step)
    meta = checkpoints.meta(step)
    stored = checkpoints.stored_params(step)
    checkpoints.close()

    def load(abstract: nnx.State) -> nnx.State:
        checkpoints = Checkpoints(path, read_only=True)
        try:
            return checkpoints.restore_params(step, abstract)
        finally:
            checkpoints.close()

    source = Source(config_of(meta["config"]), stored, load)
    if "base" not in meta:
        return source
    return beside(open_source(base.found(meta["base"], path), meta["base"]["step"]), source)


def beside(model: Source, adapter: Source) -> Source:
    """The model with an adapter in place of any that it has, whose source holds what learns and tells how the model is held."""
    config, abstract = adapter.config, named(plain(skeleton(adapter.config)[1]))
    stored = {name: adapter.stored.get(name) or model.stored.get(name) or x for name, x in abstract.items()}

    def load(abstract: nnx.State) -> nnx.State:
        targets, all_of_it = named(plain(abstract)), skeleton(model.config)[1]
        mesh = next((x.sharding.mesh for x in targets.values() if isinstance(x.sharding, NamedSharding)), None)
        one = next(iter(targets.values())).sharding
        placed = named(plain(shardings(all_of_it, mesh) if mesh else jax.tree.map(lambda _: one, all_of_it)))
        asked = {
            name: jax.ShapeDtypeStruct(x.shape, targets.get(name, x).dtype, sharding=placed[name])
            for name, x in named(plain(all_of_it)).items()
        }
        params = model.load(unplain(all_of_it, nested(asked)))
        if config.quantization != model.config.quantization:
            with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
                params = quantize(model.config, params, config.quantization)[1]
        arrays = arrays_of(params) | arrays_of(adapter.load(nnx.filter_state(abstract, trainable(config))))
        arrays = {name: jax.device_put(arrays[name].astype(x.dtype), x.sharding) for name, x in targets.items()}
        return unplain(abstract, nested(arrays))

    return Source(config, stored, load, model.before or model.stored)


def load_params(path: str | os.PathLike, abstract: nnx.State) -> nnx.State:
    """The parameters in a workdir or a Hugging Face checkpoint, on the shardings and in the dtypes of `abstract`.

    A tensor at a time goes through the host; on several hosts every process calls this.
    Raises: UserError if there is no model, or one of other shapes.
    """
    return open_source(path).load(abstract)


def as_stored(source: Source, abstract: nnx.State) -> nnx.State:
    """`abstract` with the dtypes that the parameters are stored in."""

    def typed(name: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = source.stored[name].dtype if name in source.stored else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

    return unplain(abstract, nested({name: typed(name, x) for name, x in named(plain(abstract)).items()}))


def on_first_device(source: Source) -> nnx.State:
    """Its parameters as they are stored, all on one device."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    abstract = skeleton(source.config)[1]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
    return source.load(as_stored(source, abstract))


def config_of(saved: dict) -> ModelConfig:
    """The blueprint in the config that a checkpoint holds; the compute type stands at its top level."""
    try:
        return ModelConfig(**saved["model"], dtype=saved["dtype"])
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"the config of a run holds a key or value that no model has: {error}") from None
