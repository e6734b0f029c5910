"""Images and sound of requests: encode each once, and put its vectors in the places of its tokens.

A medium comes as tiles: an image of the encoder's size, or a window of sound. Before a request starts, its tiles are encoded, a
few between two steps, so that the other requests go on. The vectors stay with the request. Those of the last tiles are kept, so
a conversation's next turn does not encode its images again.

Axes: T tokens of a prompt, V vectors of a request, D model, B tokens of a step, N tiles, W shards of the mesh.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence as List

import jax
import numpy as np
from flax import nnx

from lm.config import ModelConfig
from lm.config.towers import NAMES
from lm.infer.engine.draw import by_rows
from lm.infer.engine.request import Tile
from lm.infer.engine.weights import Program
from lm.model.media import encoded
from lm.parallel.mesh import reshard, row_ways

AT_ONCE = 4  # tiles of one call of an encoder; fewer are encoded one by one
KEPT = 256 << 20  # bytes of vectors that no request needs at the moment


class Shown:
    """The media of one request. prompt: its first tokens, which have them, of T. tiles: in the order of their tokens for each
    encoder.

    numbers_T: for each token of the whole prompt the number of its vector, −1 for text. vectors_VD: None until all are encoded.
    """

    def __init__(self, prompt: List[int], T: int, tiles: List[Tile], config: ModelConfig):
        self.tiles = sorted(tiles, key=lambda tile: NAMES.index(tile.name))
        self.vectors_VD: np.ndarray | None = None
        self.found: dict[bytes, np.ndarray] = {}  # by digest
        prompt_T = np.asarray(prompt)
        self.numbers_T, begin = np.full(T, -1, np.int32), 0
        self._ends: list[int] = []  # of the tiles, in vectors
        for tile in self.tiles:
            self._ends.append((self._ends[-1] if self._ends else 0) + getattr(config, tile.name).tokens)
        for name in dict.fromkeys(tile.name for tile in self.tiles):
            places = np.flatnonzero(prompt_T == getattr(config, name).token_id)
            self.numbers_T[places] = np.arange(begin, begin + len(places))
            begin += len(places)

    def beside(self, size: int) -> dict[int, bytes]:
        """Return what the keys of blocks of `size` tokens depend on beside the tokens: the digests of a block's tiles."""
        tiles_T = np.searchsorted(self._ends, self.numbers_T, side="right")
        found: dict[int, bytes] = {}
        for block in np.unique(np.flatnonzero(self.numbers_T >= 0) // size).tolist():
            here = slice(block * size, (block + 1) * size)
            numbers = dict.fromkeys(tiles_T[here][self.numbers_T[here] >= 0].tolist())
            found[block] = b"".join(self.tiles[n].digest for n in numbers)
        return found

    def forget(self) -> None:
        """Forget all vectors, as after a change of weights."""
        self.found, self.vectors_VD = {}, None


class Encoder:
    """The encoders of a model, and the vectors of the last tiles. For one thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()  # by digest, the longest unused first
        self._size = 0

    def forget(self) -> None:
        self._known.clear()
        self._size = 0

    def advance(self, shown: Shown, program: Program, arrays: List[jax.Array]) -> None:
        """Encode the next tiles of a request, in one call of an encoder. program, arrays: as of lm.infer.engine.step."""
        missing = OrderedDict((tile.digest, tile) for tile in shown.tiles if tile.digest not in shown.found)
        for digest in [digest for digest in missing if digest in self._known]:
            self._known.move_to_end(digest)
            shown.found[digest] = self._known[digest]
            del missing[digest]
        if missing:
            first = next(iter(missing.values()))
            some = [tile for tile in missing.values() if tile.name == first.name]
            most = AT_ONCE * row_ways()
            some = some[: most if len(some) >= most else row_ways()]
            inputs_N = np.stack([tile.array for tile in some])
            for tile, vectors_VD in zip(some, vectors_of(program, first.name, arrays, inputs_N)):
                shown.found[tile.digest] = self._known[tile.digest] = vectors_VD
                self._size += vectors_VD.nbytes
            while self._size > KEPT:
                self._size -= self._known.popitem(last=False)[1].nbytes
        if all(tile.digest in shown.found for tile in shown.tiles):
            shown.vectors_VD = np.concatenate([shown.found[tile.digest] for tile in shown.tiles])
            shown.found = {}

    def warm(self, config: ModelConfig, program: Program, arrays: List[jax.Array]) -> None:
        """Compile the encoders."""
        for name in NAMES:
            section = getattr(config, name)
            for count in (1, AT_ONCE) if section.num_layers else ():
                vectors_of(program, name, arrays, np.zeros((count * row_ways(), *section.shape), np.float32))


def vectors_of(program: Program, name: str, arrays: List[jax.Array], inputs_N: np.ndarray) -> np.ndarray:
    """Return the vectors of N tiles, [N', V, D] in the compute dtype; N' ≥ N, which the shards of a mesh divide."""
    ways = row_ways()
    inputs_N = np.concatenate((inputs_N, np.zeros((-len(inputs_N) % ways, *inputs_N.shape[1:]), inputs_N.dtype)))
    vectors_VD = np.asarray(_encoded(program, name, arrays, inputs_N.reshape(ways, -1, *inputs_N.shape[1:])))
    return vectors_VD.reshape(len(inputs_N), -1, vectors_VD.shape[-1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encoded(program: Program, name: str, arrays: List[jax.Array], inputs_WN: jax.Array) -> jax.Array:
    """Return the vectors [W, V, D] of N tiles for each of W shards."""
    params, _ = jax.tree.unflatten(program.tree, arrays)
    return reshard(encoded(nnx.merge(program.graph, params), name, by_rows(inputs_WN)), None, None, None)


def empty_vectors(B: int, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays of Vectors for a step of B tokens, none of which has a vector yet."""
    return np.zeros((B, 1, config.embed_dim), config.compute_dtype), np.zeros((B, 1), bool)
