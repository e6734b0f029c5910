"""Where a model's parameters come from: a workdir of ours, or a Hugging Face checkpoint as it is."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from lm.checkpoint import Checkpoints, check_shapes, named, nested, plain, unplain
from lm.config import ModelConfig
from lm.convert import stream
from lm.convert.peft import is_adapter
from lm.convert.published import Published, is_published, open_published
from lm.errors import UserError
from lm.model.transformer import skeleton


class Source(NamedTuple):
    """Parameters on disk: their blueprint, the shape and dtype of each by dotted name, and a function that loads them.

    load(abstract): reads onto the shardings and in the dtypes of a tree of ShapeDtypeStructs.
    """

    config: ModelConfig
    stored: dict[str, jax.ShapeDtypeStruct]
    load: Callable[[nnx.State], nnx.State]

    @staticmethod
    def of(published: Published) -> "Source":
        stored = {path: published.stored(path) for path in published.places}

        def load(abstract: nnx.State) -> nnx.State:
            check_shapes(plain(abstract), nested(stored), published.folder)
            return stream.load(published, abstract)

        return Source(published.config, stored, load)


def open_source(path: str | os.PathLike) -> Source:
    """Looks into the folder, without reading a weight. Raises UserError if it holds no model, or none that fits its config."""
    path = Path(path)
    if is_adapter(path):
        raise UserError(
            f"{path} is an adapter without its model: python -m lm.convert import --from={path} --base=MODEL --workdir=DIR, "
            "and take DIR"
        )
    if is_published(path):
        return Source.of(open_published(path))
    checkpoints, step = newest(path)
    saved = checkpoints.meta(step)["config"]
    stored = checkpoints.stored_params(step)
    checkpoints.close()

    def load(abstract: nnx.State) -> nnx.State:
        checkpoints = Checkpoints(path, read_only=True)
        try:
            return checkpoints.restore_params(step, abstract)
        finally:
            checkpoints.close()

    return Source(config_of(saved), stored, load)


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


def newest(workdir: Path) -> tuple[Checkpoints, int]:
    """The checkpoints of a workdir, opened for reading, and the step of the newest one.

    Raises: UserError if there is none, or if it is damaged: another one would give other results.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no training run: it has no config.json")
    if (workdir / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir, read_only=True)
        step = checkpoints.whole()
        if step is not None:
            return checkpoints, step
        checkpoints.close()
    raise UserError(f"{workdir} has no checkpoint yet; train it first")


def config_of(saved: dict) -> ModelConfig:
    """The blueprint in the config that a checkpoint holds; the compute type stands at its top level."""
    return ModelConfig(**saved["model"], dtype=saved["dtype"])
