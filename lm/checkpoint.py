"""Checkpoints by Orbax: saved in the background, whole or not at all, and read back onto any mesh.

    <workdir>/checkpoints/<step>/state     parameters and, for a training run, optimizer state and counters
    <workdir>/checkpoints/<step>/meta      JSON: resolved config, loader state, tokens trained so far

Arrays are stored by name, without regard to the mesh they came from.
"""

import logging
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from lm.errors import UserError


class Checkpoints:
    """The checkpoints of one run. `keep_last` newest ones stay, and every one at a multiple of `keep_every` (0: none).

    On several hosts all processes call every method together. With `read_only` each reads for itself, and nothing is
    written, not even what a killed save left is swept away.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep_last: int = 2, keep_every: int = 0, read_only: bool = False):
        for name in ("absl", "asyncio"):  # Orbax tells the story of each save; its errors are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = Path(workdir).absolute() / "checkpoints"
        if read_only:
            hosts = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="read"
            )
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=hosts)
        else:
            hosts = ocp.options.MultiprocessingOptions()
            options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every or None)
        # Named here, since a process that has not saved yet could not tell what it finds.
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(multiprocessing_options=hosts),
            "meta": ocp.JsonCheckpointHandler(multiprocessing_options=hosts),
        }
        self._manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts saving; arrays are copied before this returns. A failure of this save shows at the next call."""
        items = {"state": ocp.args.PyTreeSave(plain(state)), "meta": ocp.args.JsonSave(meta)}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Blocks until what was started is on disk. Raises what went wrong with it."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def meta(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, abstract: Any) -> Any:
        """Reads the state onto the shardings of `abstract`, a tree of ShapeDtypeStructs like the state that was saved.

        Raises UserError if the checkpoint holds other arrays or other shapes.
        """
        wanted = plain(abstract)
        check_shapes(wanted, self._manager.item_metadata(step)["state"].tree, self.folder / str(step))
        return unplain(abstract, self._read(step, wanted))

    def restore_params(self, step: int, abstract_params: nnx.State) -> nnx.State:
        """Reads the parameters of a training state and nothing else of it."""
        wanted = {"params": plain(abstract_params)}
        return unplain(abstract_params, self._read(step, wanted)["params"])

    def _read(self, step: int, wanted: dict) -> dict:
        each = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=each, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def close(self) -> None:
        self._manager.close()


def plain(tree: Any) -> Any:
    """The tree as nested dicts named by field, module and parameter: what is written, whatever holds it in memory."""
    out: dict = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]:
        node = out
        *parents, last = _names(path)
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf.get_value() if _is_variable(leaf) else leaf
    return out


def unplain(like: Any, tree: Any) -> Any:
    """Inverse of `plain`: the leaves of nested dicts, put into a tree like `like`."""

    def pick(path, leaf):
        node = tree
        for name in _names(path):
            node = node[name]
        return jax.tree.map(lambda _: node, leaf)

    return jax.tree_util.tree_map_with_path(pick, like, is_leaf=_is_variable)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _names(path) -> list[str]:
    return [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", None)))) for key in path]


def check_shapes(wanted: Any, stored: Any, where: Path) -> None:
    """Raises UserError naming the first array that differs."""

    def shapes(tree):
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {".".join(_names(path)): tuple(leaf.shape) for path, leaf in flat if hasattr(leaf, "shape")}

    ours, theirs = shapes(wanted), shapes(stored)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{where} is of another architecture: {name} is {theirs.get(name, 'missing')} there and "
                f"{ours.get(name, 'missing')} in this config; use its config, or another --workdir"
            )
