"""A published checkpoint into a workdir, as if it had been trained here up to step 0."""

import math
from pathlib import Path

import jax
from jax.sharding import Mesh

from lm.checkpoint import Checkpoints
from lm.cli import write_json
from lm.convert.folders import check_free, written_whole
from lm.convert.published import open_published
from lm.convert.source import Source, as_stored
from lm.convert.tokenizer_files import import_tokenizer
from lm.model.transformer import skeleton
from lm.parallel.mesh import check_fit, shardings


def to_workdir(folder: Path, workdir: Path, mesh: Mesh) -> None:
    """Writes config.json, checkpoints/0, and the tokenizer's files where there are any.

    Every parameter keeps the dtype it is stored in. Beyond the model itself, laid out on the mesh, the host holds a tensor.
    Raises: UserError if the workdir is taken, or the checkpoint is not one that we can hold.
    """
    check_free(workdir, "workdir")
    published = open_published(folder)
    check_fit(mesh, published.config, math.prod(mesh.shape.values()), 1)
    abstract = skeleton(published.config)[1]
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings(abstract, mesh)
    )
    source = Source.of(published)
    model = published.config.to_dict()
    origin = {"from": str(folder), "model_type": published.model_type, "twice": published.twice}
    config = {"dtype": model.pop("dtype"), "model": model, "published": origin}
    with written_whole(workdir) as beside:
        import_tokenizer(folder, beside)  # first: it can fail, and takes no time
        params = source.load(as_stored(source, abstract))
        checkpoints = Checkpoints(beside, compress=False)
        checkpoints.save(0, {"params": params}, {"config": config, "loader": None, "tokens": 0})
        checkpoints.wait()
        checkpoints.close()
        write_json(beside / "config.json", config)
