"""Load a published checkpoint onto the devices of any mesh, one tensor at a time.

A stacked parameter starts as zeros on its devices; each layer is read, sharded and written into it in place. The host holds
only one layer's part of one parameter, or all layers of a small one, which needs no compiled programs.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from lm.convert.published import Published
from lm.model.transformer import STACKED
from lm.parallel.memory import check_room
from lm.progress import progress
from lm.runs.checkpoint import named, nested, plain, unplain

SMALL = 1 << 24  # bytes of a stack that the host puts together: sooner than two programs for it are compiled


def load(published: Published, abstract: nnx.State) -> nnx.State:
    """Return the parameters with the shardings and dtypes of `abstract`, whose leaves are ShapeDtypeStructs.

    The shapes must be those of the checkpoint. On several hosts every process calls this and reads its devices' part.
    """
    targets = named(plain(abstract))
    check_room(targets, published.folder)
    total = sum(math.prod(x.shape) * published.dtype(path).itemsize for path, x in targets.items())
    with progress("read", total, unit="B", soon=False) as bar:
        return unplain(abstract, nested({path: _parameter(published, path, x, bar.update) for path, x in targets.items()}))


def _parameter(published: Published, path: str, target: jax.ShapeDtypeStruct, progress) -> jax.Array:
    if not path.startswith(STACKED):
        return _placed(published, path, (), target, target.sharding, progress).astype(target.dtype)
    layer = jax.ShapeDtypeStruct(target.shape[1:], target.dtype)
    if math.prod(target.shape) * target.dtype.itemsize <= SMALL:
        return _stacked(published, path, layer, target, progress)
    stack = jnp.zeros(target.shape, target.dtype, device=target.sharding)
    for r in range(target.shape[0]):
        part = _placed(published, path, (r,), layer, _of_a_layer(target.sharding), progress)
        stack = jax.block_until_ready(_written(stack, part, r))  # otherwise many layers would be in flight at once
    return stack


def _stacked(published: Published, path: str, layer, target: jax.ShapeDtypeStruct, progress) -> jax.Array:
    wanted, stack = _wanted(_of_a_layer(target.sharding), layer.shape), np.empty(target.shape, target.dtype)
    for r in range(target.shape[0]):
        block = published.block(path, (r,), layer.shape, wanted)
        stack[r] = block
        progress(block.nbytes)
    return jax.make_array_from_callback(target.shape, target.sharding, lambda at: stack[at])


@functools.partial(jax.jit, donate_argnums=0)
def _written(stack: jax.Array, layer: jax.Array, r: int) -> jax.Array:
    return lax.dynamic_update_index_in_dim(stack, layer.astype(stack.dtype), r, 0)


def _placed(published: Published, path: str, index: tuple[int, ...], like, sharding: Sharding, progress) -> jax.Array:
    """Return a parameter, or one layer of it, in its stored dtype on its devices."""
    block = published.block(path, index, like.shape, _wanted(sharding, like.shape))
    x = jax.make_array_from_callback(like.shape, sharding, lambda at: block[at])
    progress(block.nbytes)
    return jax.block_until_ready(x)


def _wanted(sharding: Sharding, shape: tuple[int, ...]) -> set[int] | None:
    """Return the indices of the first axis that this host's devices need."""
    here = sharding.addressable_devices_indices_map(shape).values()
    return {i for at in here for i in range(*at[0].indices(shape[0]))} if shape else None


def _of_a_layer(sharding: Sharding) -> Sharding:
    """Return the sharding of a stacked parameter without its first axis."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding
